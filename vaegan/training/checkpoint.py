"""Checkpoints: folders of safetensors and JSON that appear whole or not at all.

A checkpoint is written beside its place, flushed to the disk, sealed by a manifest of SHA-256 sums and renamed.
Whoever reads one checks the sums first. Nothing is pickled.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from vaegan.config import ConfigError

MANIFEST, STATE = "manifest.json", "state.json"
log = logging.getLogger("vaegan")


class DamagedCheckpoint(Exception):
    """A checkpoint whose files are not those of its manifest."""


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict) -> Path:
    """Write checkpoint `step` into `folder`: a safetensors file for each entry of `tensors`, and `state` as JSON."""
    target = checkpoint_path(folder, step)
    partial = folder / f".partial-{target.name}"
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed here
    partial.mkdir(parents=True)
    for name, group in tensors.items():
        save_file({k: v.detach().cpu().contiguous() for k, v in group.items()}, partial / f"{name}.safetensors")
    (partial / STATE).write_text(json.dumps(state, indent=1))
    sums = {file.name: _sha256(file) for file in sorted(partial.iterdir())}
    (partial / MANIFEST).write_text(json.dumps(sums, indent=1))
    for file in partial.iterdir():
        _sync(file)
    _sync(partial)
    if target.exists():  # a resumed run comes by again
        shutil.rmtree(target)
    os.rename(partial, target)
    _sync(folder)
    return target


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """Tensors and state of a checkpoint; DamagedCheckpoint if any file is missing, extra or changed."""
    try:
        sums = json.loads((path / MANIFEST).read_text())
        present = {file.name for file in path.iterdir()} - {MANIFEST}
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{path / MANIFEST}: {error}") from None
    if not isinstance(sums, dict) or present != set(sums):
        raise DamagedCheckpoint(f"{path}: files are not those of {MANIFEST}")
    for name, expected in sums.items():
        if _sha256(path / name) != expected:
            raise DamagedCheckpoint(f"{path / name}: SHA-256 is not that of {MANIFEST}")
    tensors = {name.removesuffix(".safetensors"): load_file(path / name) for name in sums if name != STATE}
    return tensors, json.loads((path / STATE).read_text())


def list_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, ascending."""
    names = [path.name for path in folder.glob("step_*") if path.is_dir()]
    return sorted(int(name[5:]) for name in names if name[5:].isdigit())


def load_latest(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict] | None:
    """The newest sound checkpoint; damaged ones are named in the log and passed over. None if there is none."""
    steps = list_steps(folder)
    for step in reversed(steps):
        try:
            return load(checkpoint_path(folder, step))
        except DamagedCheckpoint as error:
            log.warning("damaged checkpoint passed over: %s", error)
    if steps:
        raise ConfigError(f"resume: all {len(steps)} checkpoints in {folder} are damaged: start a new run")
    return None


def prune(folder: Path, keep_last: int, also_keep: int | None) -> None:
    """Remove all checkpoints but the last `keep_last` and the one of step `also_keep`."""
    for step in list_steps(folder)[:-keep_last]:
        if step != also_keep:
            shutil.rmtree(checkpoint_path(folder, step))


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
