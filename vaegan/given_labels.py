"""Labels of images that a user gives to a conditional model."""

from pathlib import Path

import torch
from torch import Tensor

from vaegan.config import ConfigError
from vaegan.data.labels import aligned
from vaegan.data.shards import open_files
from vaegan.model import VAEGAN


def read_labels(paths: list[Path], model: VAEGAN, limit: int) -> Tensor:
    """Labels (B,) of what `sampling.read_images` reads, in a conditional model's numbering: of their folders' names where they are
    classes of the model, else of the set's own labels. Raises ConfigError if there are none."""
    labels: list[int] = []
    for path in paths:
        left = limit - len(labels)
        if path.is_dir() or path.suffix.lower() in (".zip", ".tar"):
            found = open_files("images", path)
            folders = [(path.resolve() / name).parent.name for name in found.names[:left]]
            known, of, names = all(f in model.class_names for f in folders), found.labels, found.classes
        else:
            folders = [path.resolve().parent.name][:left]
            known, of, names = all(f in model.class_names for f in folders), None, None
        if known:
            labels += map(model.class_names.index, folders)
            continue
        try:
            labels += aligned(of, names, model.classes, model.class_names, str(path))[:left].tolist()
        except ConfigError as error:
            raise ConfigError(f"{error}; or give --class N_OR_NAME") from error
    return torch.tensor(labels)
