"""Reference statistics as files: written whole or not at all, read with their protocol, cached under it."""

import contextlib
import hashlib
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from vaegan.config import ConfigError
from vaegan.evaluation.distances import FeatureStatistics

SUFFIXES = (".safetensors", ".npz")
_EXPANSION = 50  # of real statistics, compression saves a tenth


def save_statistics(path: Path, statistics: FeatureStatistics, protocol: Mapping[str, str]) -> None:
    """Write `.safetensors`, features included where there are any, or `.npz` with `mu` and `sigma`, as pytorch-fid,
    clean-fid and EDM read it. Raises ConfigError if the name ends otherwise or the disk does not take it."""
    check_name(path)
    text = json.dumps({**protocol, "n": str(statistics.n)}, sort_keys=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            mu, sigma = statistics.mean.cpu().numpy(), statistics.covariance.cpu().numpy()
            np.savez(partial, mu=mu, sigma=sigma, protocol=np.array(text))
        else:
            partial.write_bytes(save(_tensors(statistics), metadata={"protocol": text}))
        os.replace(partial, path)  # a reader sees the old file or the new one
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def check_name(path: Path) -> None:
    """ConfigError unless `save_statistics` knows the format that a name ends in."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path} must end in .safetensors or .npz")


def load_statistics(path: Path) -> tuple[FeatureStatistics, dict[str, str]]:
    """Read what `save_statistics` wrote, or a bare `.npz` of another tool, whose protocol is empty and n is 0 (unknown).

    Raises ConfigError naming the file if it is missing, damaged, or no statistics.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise ValueError("it is no file")
        return _load_npz(path) if path.suffix == ".npz" else _load_safetensors(path)
    except Exception as error:  # from zip, zlib, tokenize, safetensors, …: they interpret whatever bytes they find
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        reason = (reason if reason.isprintable() else repr(reason))[:150] or type(error).__name__
        raise ConfigError(
            f"{path} does not hold statistics ({reason}); make them with fid.py ref, or give a .npz with mu and sigma"
        ) from error


def cached(folder: Path, key: Mapping[str, str]) -> Path:
    """The file in which statistics of this protocol are kept."""
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
    return folder / f"{key['extractor']}-{digest[:32]}.safetensors".replace("/", "-").replace(":", "-")


def _tensors(statistics: FeatureStatistics) -> dict[str, Tensor]:
    tensors = {"mean": statistics.mean, "covariance": statistics.covariance}
    if statistics.features is not None:
        tensors["features"] = statistics.features
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _load_safetensors(path: Path) -> tuple[FeatureStatistics, dict[str, str]]:
    with safe_open(path, "pt") as file:
        protocol = _protocol((file.metadata() or {})["protocol"])
        names = set(file.keys())
        mean, covariance = file.get_tensor("mean"), file.get_tensor("covariance")
        features = file.get_tensor("features") if "features" in names else None
    return _checked(int(protocol["n"]), mean, covariance, features), protocol


def _load_npz(path: Path) -> tuple[FeatureStatistics, dict[str, str]]:
    _refuse_bombs(path)
    with np.load(path, allow_pickle=False) as file:
        mean, covariance = (torch.from_numpy(np.array(file[name], dtype=np.float64)) for name in ("mu", "sigma"))
        protocol = _protocol(str(file["protocol"])) if "protocol" in file else {}
    return _checked(int(protocol.get("n", 0)), mean, covariance, None), protocol


def _refuse_bombs(path: Path) -> None:
    """ValueError for arrays that are larger than their member of the archive, or members much larger than the file:
    NumPy allocates what a header asks for before it reads."""
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > _EXPANSION * path.stat().st_size:
            raise ValueError("an archive that expands without measure")
        for member in archive.infolist():
            with archive.open(member) as stream:
                header = np.lib.format.read_array_header_1_0
                if np.lib.format.read_magic(stream) != (1, 0):
                    header = np.lib.format.read_array_header_2_0
                shape, _, dtype = header(stream)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize > member.file_size or min(shape, default=0) < 0:
                raise ValueError(f"an array that is not what its header says: {shape} of {dtype}")


def _protocol(text: str) -> dict[str, str]:
    """ValueError unless it holds words by words."""
    protocol = json.loads(text)
    if not isinstance(protocol, dict) or not all(isinstance(value, str) for value in protocol.values()):
        raise ValueError("a protocol that is no table of words")
    return protocol


def _checked(n: int, mean: Tensor, covariance: Tensor, features: Tensor | None) -> FeatureStatistics:
    """ValueError unless the shapes fit each other and all numbers are finite."""
    d = mean.numel()
    if not 0 <= n < 2**53:
        raise ValueError(f"a count of {n} images" if n < 2**53 else "a count of images beyond measure")
    if d == 0 or not all(t.is_floating_point() for t in (mean, covariance, features) if t is not None):
        raise ValueError("no floating-point numbers")
    if mean.shape != (d,) or covariance.shape != (d, d) or (features is not None and features.shape[1:] != (d,)):
        raise ValueError(f"shapes {tuple(mean.shape)} and {tuple(covariance.shape)} do not belong together")
    mean, covariance = mean.double(), covariance.double()
    if not all(t.isfinite().all() for t in (mean, covariance, features) if t is not None):
        raise ValueError("numbers that are not finite")
    return FeatureStatistics(n, mean, covariance, features)
