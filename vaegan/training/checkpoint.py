"""Checkpoints: folders of safetensors and JSON that appear whole or not at all.

A checkpoint is written beside its place, flushed to the disk, sealed by a manifest of SHA-256 sums and renamed.
Whoever reads one checks the sums first, and uses the very bytes that were checked. Nothing is pickled.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from
from safetensors.torch import save as bytes_of
from torch import Tensor

from vaegan.config import ConfigError

MANIFEST, STATE = "manifest.json", "state.json"
log = logging.getLogger("vaegan")


Contents = tuple[dict[str, dict[str, Tensor]], dict]


class DamagedCheckpoint(Exception):
    """A checkpoint whose files are not those of its manifest, or do not fit the run."""


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict) -> Path:
    """Write checkpoint `step` into `folder`: a safetensors file for each entry of `tensors`, and `state` as JSON.

    OSError with the bytes it takes and the bytes that are free if it cannot be written; what was there stays.
    """
    target = checkpoint_path(folder, step)
    partial = folder / f".partial-{target.name}"
    try:
        _clear_leftovers(folder)
        partial.mkdir(parents=True)
        sums = {f"{name}.safetensors": _write(partial / f"{name}.safetensors", bytes_of(_plain(group)))
                for name, group in tensors.items()}  # fmt: skip
        sums[STATE] = _write(partial / STATE, json.dumps(state, indent=1).encode())
        _write(partial / MANIFEST, json.dumps(sums, indent=1).encode())
        _sync(partial)
        if target.exists():  # damaged, or the run would have gone on from it
            _remove(target)
        os.rename(partial, target)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        needed = sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
        raise OSError(
            error.errno,
            f"{target} cannot be written ({error.strerror or error}): it takes {needed} bytes, {_free(folder)} are free",
        ) from error
    return target


def load(path: Path) -> Contents:
    """Tensors and state of a checkpoint; DamagedCheckpoint if any file is missing, extra or changed."""
    try:
        if not _is_plain(path / MANIFEST):
            raise OSError("not there, or no file")
        sums = json.loads((path / MANIFEST).read_bytes())
        present = {file.name for file in path.iterdir()} - {MANIFEST}
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path / MANIFEST}: {error}") from None
    plain = all(_is_plain(path / name) for name in present)
    if not isinstance(sums, dict) or present != set(sums) or STATE not in sums or not plain:
        raise DamagedCheckpoint(f"{path}: files are not those of {MANIFEST}")
    tensors, state = {}, None
    for name, expected in sums.items():
        try:
            data = (path / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != expected:
                raise DamagedCheckpoint(f"{path / name}: SHA-256 is not that of {MANIFEST}")
            if name == STATE:
                state = json.loads(data)
            else:
                tensors[name.removesuffix(".safetensors")] = tensors_from(data)
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            raise DamagedCheckpoint(f"{path / name}: {error}") from None
    step = state.get("step") if isinstance(state, dict) else None
    if type(step) is not int or checkpoint_path(path.parent, step).name != path.name:
        raise DamagedCheckpoint(f"{path / STATE}: not the state of this step")
    return tensors, state


def _is_plain(path: Path) -> bool:
    """Whether it is a file: a pipe, or a link to a device, could be read for ever."""
    return path.is_file() and not path.is_symlink()


def list_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, ascending."""
    names = [path.name for path in folder.glob("step_*") if path.is_dir()]
    return sorted(int(name[5:]) for name in names if name[5:].isdecimal())


def load_latest(folder: Path, check: Callable[[Contents], None] = lambda contents: None) -> Contents | None:
    """The newest checkpoint that is sound and passes `check`, which raises DamagedCheckpoint; others are named in the log
    and passed over. None if there are none; ConfigError if none of them is sound."""
    steps = list_steps(folder)
    for step in reversed(steps):
        try:
            contents = load(checkpoint_path(folder, step))
            check(contents)
        except DamagedCheckpoint as error:
            log.warning("damaged checkpoint passed over: %s", error)
            continue
        if step != steps[-1]:
            log.warning("going on from %s instead", checkpoint_path(folder, step))
        return contents
    if steps:
        raise ConfigError(f"resume: all {len(steps)} checkpoints in {folder} are damaged: start a new run")
    return None


def prune(folder: Path, now: int, keep_last: int, also_keep: int | None) -> None:
    """Remove all checkpoints up to step `now` but the last `keep_last` and the one of step `also_keep`. Later ones were
    damaged when the run went on: they must not push out a sound one."""
    for step in [step for step in list_steps(folder) if step <= now][:-keep_last]:
        if step != also_keep:
            _remove(checkpoint_path(folder, step))


def _remove(path: Path) -> None:
    """Out of sight first: a checkpoint that is half removed would look damaged."""
    aside = path.with_name(f".removed-{path.name}")
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _clear_leftovers(folder: Path) -> None:
    """What a run left that was killed while it wrote or removed a checkpoint."""
    for leftover in (*folder.glob(".partial-step_*"), *folder.glob(".removed-step_*")):
        shutil.rmtree(leftover, ignore_errors=True)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write(file: Path, data: bytes) -> str:
    """Write and flush to the disk; SHA-256 of what was written."""
    with open(file, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return hashlib.sha256(data).hexdigest()


def _free(folder: Path) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return str(shutil.disk_usage(folder).free)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
