"""Labels of image files: from the dataset.json that StyleGAN and EDM write, else from class subfolders; and the classes
of a conditional model."""

import json

import torch
from torch import Tensor

from vaegan.config import ConfigError

_MOST_CLASSES = 1 << 31
_MOST_OF_A_MODEL = 1 << 14  # each has weights of its own
_MOST_NAMES = 1 << 19  # characters, as a model's config.json keeps them
_REMEDY = "put the images into a subfolder a class, or give a dataset.json with labels"


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


def classes_of(labels: Tensor | None, names: list[str] | None, where: str) -> tuple[int, list[str]]:
    """How many classes a training set has, and what they are called, [] if that is unknown.

    Raises ConfigError if the set has no labels, or more classes than a model may have.
    """
    if labels is None:
        raise ConfigError(
            f"{where} has no labels, and model.conditional true needs them: {_REMEDY}, or set it to false"
        )
    count = max(int(labels.max()) + 1, len(names or ()))
    if count > _MOST_OF_A_MODEL:
        raise ConfigError(
            f"{where} has labels up to {count - 1}, and model.conditional true takes at most {_MOST_OF_A_MODEL} classes: "
            "number them from 0 on, or set it to false"
        )
    short = names is not None and len(names) == count and len(json.dumps(names)) <= _MOST_NAMES
    return count, list(names) if short else []


def aligned(labels: Tensor | None, names: list[str] | None, classes: int, class_names: list[str], where: str) -> Tensor:
    """Labels (N,) of another set in the numbering of a model's classes: by their names where both have some.

    Raises ConfigError if the set has no labels, or classes that the model does not know.
    """
    if labels is None:
        raise ConfigError(f"{where} has no labels, and a conditional model needs them: {_REMEDY}")
    if names is not None and class_names and names != class_names:
        number = {name: i for i, name in enumerate(class_names)}
        unknown = [names[label] for label in labels.unique().tolist() if names[label] not in number]
        if unknown:
            shown, known = (", ".join(f"{name!r:.40}" for name in of[:5]) for of in (unknown, class_names))
            raise ConfigError(f"{where} has classes that the model does not know: {shown} (it knows {known} …)")
        labels = torch.tensor([number.get(name, -1) for name in names])[labels]
    if (labels >= classes).any():
        raise ConfigError(
            f"{where} has labels up to {int(labels.max())}, and the model has {classes} classes, from 0 on"
        )
    return labels
