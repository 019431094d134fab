"""What the tests of resumed runs share; and, as a script, their other processes: `resume_worker.py JOB FOLDER`."""

import contextlib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from vaegan.cli import config_from_dict
from vaegan.config import Config
from vaegan.data import load_data
from vaegan.training import Trainer, process, run_state
from vaegan.training.optimizers import optimizer_tensors

Make = Callable[[Config], Trainer]
RESUMED_AT = 5  # the step at which the number of processes changes, in the middle of the first epoch
SAMPLE_EVERY = 100  # steps between two looks at the process of a long run


def weights(t: Trainer) -> dict[str, Tensor]:
    """Weights and buffers by name, those of the average among them."""
    modules = {"model": t.plain_model, "discriminator": t.plain_discriminator, "ema": t.ema.module}
    return {f"{m}.{k}": v for m, module in modules.items() for k, v in module.state_dict().items()}


def bits(t: Trainer) -> dict[str, str]:
    """All that the coming steps depend on: tensors as the SHA-256 of their bytes, numbers as they are written."""
    tensors = weights(t) | {f"statistics.{k}": v for k, v in t.statistics.values.items()}
    for name in ("model_optimizer", "discriminator_optimizer"):
        tensors |= {f"{name}.{k}": v for k, v in optimizer_tensors(getattr(t, name)).items()}
    numbers = {
        "step": t.step, "look_due": t.look_due, "skipped": t.skipped, "ema.updates": t.ema.updates,
        "statistics.counts": sorted(t.statistics.counts.items()), "monitor.name": t.monitor.name,
        "monitor.best": sorted((t.monitor.best or {}).items()), "monitor.failures": t.monitor.failures,
    }  # fmt: skip
    return {name: _sha256(tensor) for name, tensor in tensors.items()} | {k: repr(v) for k, v in numbers.items()}


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def differences(one: dict[str, str], two: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def advance(t: Trainer, to: int | None = None, before_each: Callable[[Trainer, list[Tensor]], None] | None = None):
    """Train to a step, or to the end."""
    with contextlib.closing(t.batches()) as batches:
        while t.step < (t.total_steps if to is None else to):
            micro_batches = next(batches)
            if before_each:
                before_each(t, micro_batches)
            t.train_step(micro_batches)
    return t


def uninterrupted(make: Make, config: Config, folder: Path) -> Trainer:
    """A whole run, which leaves the run `folder`/k before each step k."""
    return advance(make(config), None, lambda t, _: run_state.save(t, folder / str(t.step)))


def restored(make: Make, config: Config, run_dir: Path) -> Trainer:
    t = make(config)
    assert run_state.restore(t, run_dir)
    return t


def differing_resumes(make: Make, config: Config, folder: Path, final: dict[str, str], steps) -> dict[int, list[str]]:
    """Of the runs that are resumed at each of `steps`, those that do not end as the uninterrupted one did, and in what."""
    found = {}
    for k in steps:
        t = restored(make, config, folder / str(k))
        assert t.step == k
        if wrong := differences(bits(advance(t)), final):
            found[k] = wrong
    return found


# ---------------------------------------------------------------------- jobs


def ranks(folder: Path) -> None:
    """Resume a run of these processes at every step, and go on with one of a single process (`folder`/one)."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rank, config = accelerator.process_index, _config(folder)
    images = load_data(config.data)

    def make(config: Config) -> Trainer:
        return Trainer(config, accelerator, *images)

    whole = uninterrupted(make, config, folder / "several")
    differing = differing_resumes(make, config, folder / "several", bits(whole), range(whole.total_steps))
    resumed, seen = restored(make, config, folder / "one" / str(RESUMED_AT)), {}
    report = {"world": accelerator.num_processes, "differing": differing, "restored": bits(resumed)}
    advance(resumed, None, lambda t, micro_batches: seen.update(of_step(t, micro_batches)))
    report["resumed"] = bits(resumed)
    (folder / f"{rank}.json").write_text(json.dumps(report))
    for name, tensors in (("whole", weights(whole)), ("resumed", weights(resumed)), ("seen", seen)):
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"{name}.{rank}.safetensors")
    process.leave(accelerator)


def of_step(t: Trainer, micro_batches: list[Tensor]) -> dict[str, Tensor]:
    """What this process is given in a step: places in the data set, images and noise, all in rows of the batch."""
    noises = [t._noise(i, len(x))._asdict() for i, x in enumerate(micro_batches)]
    rows = [noise | {"augment": noise["augment"].transpose(0, 1)} for noise in noises]
    given = {name: torch.cat([noise[name] for noise in rows]) for name in rows[0]}
    given |= {"places": t.places_of_batch(), "images": torch.cat(micro_batches)}
    return {f"{t.step}.{name}": values for name, values in given.items()}


def hashes(folder: Path) -> None:
    """Train the run of config.json and write the hash of each of its tensors."""
    process.use_cpu(1)
    config = _config(folder)
    t = Trainer(config, Accelerator(cpu=True), *load_data(config.data))
    (folder / f"hashes-{os.environ['PYTHONHASHSEED']}.json").write_text(json.dumps(bits(advance(t))))


def long(folder: Path) -> None:
    """Train the run of config.json as scripts/train.py does, and note now and then what the process holds."""
    config, messages, samples, this = _config(folder), [], [], psutil.Process()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    t = Trainer(config, process.start(config), *load_data(config.data))
    step = t.train_step

    def observed(micro_batches):
        if t.step % SAMPLE_EVERY == 0:
            samples.append([t.step, this.memory_info().rss, this.num_fds(), this.num_threads()])
        return step(micro_batches)

    t.train_step = observed
    t.fit(folder / "run")
    (folder / "report.json").write_text(json.dumps({"samples": samples, "messages": messages}))


def _config(folder: Path) -> Config:
    return config_from_dict(json.loads((folder / "config.json").read_text()))


if __name__ == "__main__":
    {"ranks": ranks, "hashes": hashes, "long": long}[sys.argv[1]](Path(sys.argv[2]))
