"""Whether the contents of a checkpoint are those of a run: its state has the right fields, its tensors the right shapes.

Sums cannot tell: a file may be whole, and of another version or of other networks.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vaegan.training import optimizers
from vaegan.training.checkpoint import STATE, Contents, DamagedCheckpoint

if TYPE_CHECKING:
    from vaegan.training.trainer import Trainer

_OPTIONAL = (str, type(None))
_KINDS = {"step": int, "look_due": bool, "skipped": list, "monitor": dict, "statistics_counts": dict, "ema_updates": int,
          "data": str, "validation": _OPTIONAL, "config": dict}  # fmt: skip
_SECTIONS = ("model", "data", "objective", "train")  # of the config, that a resume reads


def require_state(state: dict, path: Path) -> None:
    """DamagedCheckpoint unless the state of the checkpoint at `path` has all fields, of the right kinds."""
    if problem := _problem(state):
        raise DamagedCheckpoint(f"{path / STATE}: {problem}; of another version?")


def require_tensors(contents: Contents, trainer: "Trainer", path: Path) -> None:
    """DamagedCheckpoint unless the tensors of the checkpoint at `path` have the names and shapes of this run's."""
    for group, fits in _groups(*contents, trainer):
        if not fits:
            raise DamagedCheckpoint(f"{path / group}.safetensors: not the tensors of this run's {group}")


def _problem(state: dict) -> str:
    """What is wrong with a state, or ""."""
    if missing := sorted(_KINDS.keys() - state.keys()):
        return f"no {', '.join(missing)}"
    wrong = [name for name, kind in _KINDS.items() if not isinstance(state[name], kind)]
    monitor, config = state["monitor"], state["config"]
    checks = {
        "skipped": lambda: all(isinstance(step, int) for step in state["skipped"]),
        "statistics_counts": lambda: all(isinstance(count, int) for count in state["statistics_counts"].values()),
        "monitor": lambda: (
            monitor.keys() == {"name", "best", "failures"}
            and isinstance(best := monitor["best"], dict | None)
            and (best is None or best.keys() == {"step", "value"})
        ),
        "config": lambda: "seed" in config and all(isinstance(config.get(section), dict) for section in _SECTIONS),
    }
    wrong += [name for name, check in checks.items() if name not in wrong and not check()]
    return f"{', '.join(wrong)} cannot be read" if wrong else ""


def _groups(tensors: dict[str, dict[str, Tensor]], state: dict, trainer: "Trainer"):
    """Yield each group and whether its tensors fit."""
    modules = {"model": trainer.plain_model, "discriminator": trainer.plain_discriminator}
    modules["ema"] = trainer.ema.module if trainer.ema else None
    for group, module in modules.items():
        if module is not None:
            yield group, _forms(tensors.get(group)) == _forms(module.state_dict())
    for group in ("model_optimizer", "discriminator_optimizer"):
        if (optimizer := getattr(trainer, group)) is not None:
            yield group, optimizers.fits(optimizer, tensors.get(group))
    # They come with the terms that are followed, so that before the first step there are none.
    statistics, shapes = tensors.get("statistics"), ((), (trainer.config.model.latent_dim,))
    sound = statistics is not None and all(v.is_floating_point() and v.shape in shapes for v in statistics.values())
    yield "statistics", sound and statistics.keys() == state["statistics_counts"].keys()


def _forms(tensors: dict[str, Tensor] | None) -> dict | None:
    return None if tensors is None else {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
