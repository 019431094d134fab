"""What a run needs to go on, taken from a trainer and given back to it; and the exported model."""

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import broadcast_object_list
from torch import Tensor

from vaegan.config import Config, ConfigError
from vaegan.model import VAEGAN, build_model
from vaegan.training import checkpoint, fitting, optimizers

if TYPE_CHECKING:
    from vaegan.training.trainer import Trainer

# Fields that may differ when a run goes on: they change neither the networks, nor the losses, nor the data order.
FREE_FIELDS = ("root", "storage", "memory_limit", "workers", "damaged", "damaged_limit")
log = logging.getLogger("vaegan")


def save(trainer: "Trainer", run_dir: Path, together: bool = True) -> str:
    """Write a checkpoint and export the model; all ranks call it, the first one writes. Why it could not be written, or
    "", on all of them; `together` false is for ranks that can no longer wait for each other."""
    problem = [""]
    if trainer.accelerator.is_main_process:
        try:
            checkpoint.save(run_dir / "checkpoints", trainer.step, _tensors(trainer), _state(trainer))
            kept = (trainer.monitor.best or {}).get("step")
            checkpoint.prune(run_dir / "checkpoints", trainer.step, trainer.config.train.keep_last, kept)
            _export(trainer.sampling_model, run_dir)
        except OSError as error:
            problem = [error.strerror or str(error)]
    if together and trainer.accelerator.num_processes > 1:
        broadcast_object_list(problem)
    return problem[0]


def _tensors(trainer: "Trainer") -> dict[str, dict[str, Tensor]]:
    tensors = {"model": trainer.plain_model.state_dict(), "statistics": trainer.statistics.values}
    tensors["model_optimizer"] = optimizers.optimizer_tensors(trainer.model_optimizer)
    if trainer.ema:
        tensors["ema"] = trainer.ema.module.state_dict()
    if trainer.discriminator is not None:
        tensors["discriminator"] = trainer.plain_discriminator.state_dict()
        tensors["discriminator_optimizer"] = optimizers.optimizer_tensors(trainer.discriminator_optimizer)
    return tensors


def _state(trainer: "Trainer") -> dict:
    monitor = trainer.monitor
    return {
        "step": trainer.step,
        "look_due": trainer.look_due,
        "skipped": trainer.skipped,
        "monitor": {"name": monitor.name, "best": monitor.best, "failures": monitor.failures},
        "statistics_counts": trainer.statistics.counts,
        "ema_updates": trainer.ema.updates if trainer.ema else 0,
        "data": _data(trainer),
        "validation": _validation(trainer),
        "config": trainer.config.as_dict(),
    }


def _data(trainer: "Trainer") -> str:
    """What tells the training images from others; where labels are used, them as well."""
    images = trainer.images
    if not trainer.config.model.conditional:
        return images.fingerprint
    sha = hashlib.sha256(repr((images.fingerprint, images.classes)).encode())
    sha.update(images.labels.contiguous().numpy())
    return sha.hexdigest()


def _validation(trainer: "Trainer") -> str | None:
    return None if trainer.validation is None else trainer.validation.fingerprint


def restore(trainer: "Trainer", run_dir: Path) -> bool:
    """Go back to the newest sound checkpoint of a run; False if it has none. ConfigError if it does not fit."""

    def check(contents: checkpoint.Contents) -> None:
        state = contents[1]
        path = checkpoint.checkpoint_path(run_dir / "checkpoints", state["step"])
        fitting.require_state(state, path)
        _require_same_run(state, trainer.config, _data(trainer), run_dir, _validation(trainer))
        fitting.require_tensors(contents, trainer, path)

    loaded = checkpoint.load_latest(run_dir / "checkpoints", check)
    if loaded is None:
        return False
    tensors, state = loaded
    trainer.plain_model.load_state_dict(tensors["model"])
    optimizers.load_optimizer_tensors(trainer.model_optimizer, tensors["model_optimizer"])
    if trainer.ema:
        trainer.ema.module.load_state_dict(tensors["ema"])
        trainer.ema.updates = state["ema_updates"]
    if trainer.discriminator is not None:
        trainer.plain_discriminator.load_state_dict(tensors["discriminator"])
        optimizers.load_optimizer_tensors(trainer.discriminator_optimizer, tensors["discriminator_optimizer"])
    trainer.statistics.values = {k: v.to(trainer.accelerator.device) for k, v in tensors["statistics"].items()}
    trainer.statistics.counts = state["statistics_counts"]
    trainer.step, trainer.look_due, trainer.skipped = state["step"], state["look_due"], state["skipped"]
    if state["monitor"]["name"] == trainer.monitor.name:  # else the best by another figure says nothing
        trainer.monitor.best, trainer.monitor.failures = state["monitor"]["best"], state["monitor"]["failures"]
    return True


def export_best(trainer: "Trainer", run_dir: Path) -> None:
    """Where the monitor may stop the run, the exported model is the one that it found best."""
    best = trainer.monitor.best
    if trainer.config.train.patience == 0 or best is None or best["step"] == trainer.step:
        return
    if trainer.accelerator.is_main_process:
        try:
            tensors, _ = checkpoint.load(checkpoint.checkpoint_path(run_dir / "checkpoints", best["step"]))
        except checkpoint.DamagedCheckpoint as error:  # or it could not be written
            log.warning("the exported model is the last, since the best cannot be read: %s", error)
        else:
            model = build_model(trainer.config, trainer.plain_model.classes, trainer.plain_model.class_names)
            model.load_state_dict(tensors["ema" if trainer.ema else "model"])
            _export(model, run_dir)
    trainer.accelerator.wait_for_everyone()


def _require_same_run(state: dict, config: Config, fingerprint: str, run_dir: Path, validation: str | None) -> None:
    """ConfigError unless a checkpoint continues under this config: the same networks and the same data order."""
    old, new = state["config"], config.as_dict()
    added = {"model.conditional": False, "objective.reconstruct_every": 1}  # what runs of versions before a field did
    pairs = [
        ("seed", old.get("seed"), new["seed"]),
        ("train.batch_size", old["train"].get("batch_size"), config.train.batch_size),
    ]
    if old["train"].get("ema_decay") == 0:  # there is no average to go on with
        pairs.append(("train.ema_decay", 0.0, config.train.ema_decay))
    for section in ("model", "data", "objective"):
        for name, value in new[section].items():
            if name not in FREE_FIELDS:
                field = f"{section}.{name}"
                pairs.append((field, old[section].get(name, added.get(field)), value))
    problems = [
        f"{name} is {value} but {run_dir} was trained with {before}: set it so, or choose another name for a new run"
        for name, before, value in pairs
        if before != value
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    if (state["data"], state["validation"]) != (fingerprint, validation) and not config.allow_changed_data:
        raise ConfigError(
            f"data.source {config.data.source} has changed since {run_dir} was trained: restore the images, choose "
            "another name for a new run, or go on with --allow_changed_data true"
        )


def _export(model: VAEGAN, run_dir: Path) -> None:
    """Write the model for use (`VAEGAN.from_pretrained`) into the run's folder, file by file whole."""
    partial = run_dir / ".partial-export"
    shutil.rmtree(partial, ignore_errors=True)  # what a run left that was killed in the midst of this
    model.save_pretrained(partial)
    for file in sorted(partial.iterdir()):
        os.replace(file, run_dir / file.name)
    partial.rmdir()
