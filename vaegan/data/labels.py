"""Labels of image files: from the dataset.json that StyleGAN and EDM write, else from class subfolders."""

import json

import torch
from torch import Tensor

from vaegan.config import ConfigError

_MOST_CLASSES = 1 << 31

def labels_of(names: list[str], manifest: bytes | None, where: str) -> tuple[Tensor | None, list[str] | None]:
    """Labels, (N,) int64, and class names of the images of a folder or archive, each None if unknown.

    `manifest` is the content of dataset.json, which goes before folders. Raises ConfigError if it is of no use.
    """
    if manifest is None:
        return _labels_from_folders(names)
    try:
        return _labels_from_manifest(names, json.loads(manifest))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"no label for {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"{where}/dataset.json has no usable labels ({reason}); mend or remove it") from error


def _labels_from_manifest(names: list[str], manifest: dict) -> tuple[Tensor | None, list[str] | None]:
    labels, classes = manifest.get("labels"), manifest.get("classes")
    if labels is None:
        return None, None
    by_name = {name.replace("\\", "/"): label for name, label in dict(labels).items()}
    values = [by_name[name] for name in names]
    if not all(type(value) is int and 0 <= value < _MOST_CLASSES for value in values):
        raise ValueError("labels must be whole numbers from 0")
    if classes is not None and len(classes) <= max(values):
        raise ValueError(f"label {max(values)} for {len(classes)} classes")
    return torch.tensor(values), None if classes is None else [str(name) for name in classes]


def _labels_from_folders(names: list[str]) -> tuple[Tensor | None, list[str] | None]:
    """Class subfolders, if all images lie in some. A folder that all images share wraps the set and is no class."""
    parts = [name.split("/") for name in names]
    depth = 0
    while all(len(part) > depth + 1 for part in parts):
        classes = sorted({part[depth] for part in parts})
        if len(classes) > 1:
            index = {name: i for i, name in enumerate(classes)}
            return torch.tensor([index[part[depth]] for part in parts]), classes
        depth += 1
    return None, None
