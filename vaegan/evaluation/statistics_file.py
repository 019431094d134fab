"""Reference statistics as files: written whole or not at all, read with their protocol, cached under it."""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vaegan.config import ConfigError
from vaegan.evaluation.distances import FeatureStatistics

SUFFIXES = (".safetensors", ".npz")


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
            save_file(_tensors(statistics), partial, metadata={"protocol": text})
        os.replace(partial, path)  # a reader sees the old file or the new one
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be written ({getattr(error, 'strerror', None) or error})") from error
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
        return _load_npz(path) if path.suffix == ".npz" else _load_safetensors(path)
    except (OSError, SafetensorError, zipfile.BadZipFile, EOFError, KeyError, ValueError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:150]
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
        protocol = json.loads((file.metadata() or {})["protocol"])
        names = set(file.keys())
        mean, covariance = file.get_tensor("mean"), file.get_tensor("covariance")
        features = file.get_tensor("features") if "features" in names else None
    return _checked(int(protocol["n"]), mean, covariance, features), protocol


def _load_npz(path: Path) -> tuple[FeatureStatistics, dict[str, str]]:
    with np.load(path, allow_pickle=False) as file:
        mean, covariance = (torch.from_numpy(np.array(file[name], dtype=np.float64)) for name in ("mu", "sigma"))
        protocol = json.loads(str(file["protocol"])) if "protocol" in file else {}
    return _checked(int(protocol.get("n", 0)), mean, covariance, None), protocol


def _checked(n: int, mean: Tensor, covariance: Tensor, features: Tensor | None) -> FeatureStatistics:
    """ValueError unless the shapes fit each other and all numbers are finite."""
    d = mean.numel()
    if mean.shape != (d,) or covariance.shape != (d, d) or (features is not None and features.shape[1:] != (d,)):
        raise ValueError(f"shapes {tuple(mean.shape)} and {tuple(covariance.shape)} do not belong together")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError("numbers that are not finite")
    return FeatureStatistics(n, mean, covariance, features)
