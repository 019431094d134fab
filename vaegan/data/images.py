"""Image sets: opening a source, setting validation images aside, and keeping pixels in memory or on disk."""

import difflib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from vaegan import counter
from vaegan.config import NAMED_SOURCES, ConfigError, DataConfig
from vaegan.data.files import FileImages, open_folder, open_zip
from vaegan.data.named import ArrayImages, open_named

_CHUNK = 64  # images that a thread decodes at a time


class ImageSet:
    """Square uint8 images of one size, decoded beforehand (`in_memory`) or each time they are asked for."""

    def __init__(self, source: FileImages | ArrayImages, config: DataConfig):
        """Raises ConfigError naming the file if an image that is decoded beforehand cannot be."""
        self._source = source
        self._form = (config.image_size, config.channels, config.fit)
        self.labels = source.labels  # (N,) int64, or None
        self.classes = source.classes
        self.fingerprint = hashlib.sha256(repr((source.digest, *self._form)).encode()).hexdigest()
        size = len(source) * config.channels * config.image_size**2
        fits = config.storage == "auto" and size <= config.memory_limit * 2**30
        self.in_memory = config.storage == "memory" or fits
        self.pixels = self._decode_in_threads(range(len(source))) if self.in_memory else None  # (N, C, H, W) uint8

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, indices: Tensor) -> Tensor:
        """uint8 (B, C, H, W) on the CPU of the images at (B,) int64. Raises ConfigError naming a damaged file."""
        if self.pixels is not None:
            return self.pixels[indices.cpu()]
        return self._decode_in_threads(indices.tolist())

    def decode(self, rows: list[int]) -> Tensor:
        """The same for a streaming set in a worker process, which should keep to one thread."""
        return self._source.images(rows, *self._form)

    def _decode_in_threads(self, rows) -> Tensor:
        image_size, channels, _ = self._form
        images = torch.empty(len(rows), channels, image_size, image_size, dtype=torch.uint8)

        def decode_chunk(start: int) -> None:
            images[start : start + _CHUNK] = self.decode(rows[start : start + _CHUNK])

        with ThreadPoolExecutor(_cores() if self._source.gains_from_threads else 1) as pool:
            for _ in pool.map(decode_chunk, range(0, len(rows), _CHUNK)):
                pass  # an error of a thread is raised here, and cancels the rest
        return images


def load_data(config: DataConfig) -> tuple[ImageSet, ImageSet | None]:
    """Training and validation images; the latter are None where `val_fraction` leaves none.

    Validation images are `val_source` (of a named set, its validation split), else the named set's validation split,
    else a share of the training images. Raises ConfigError with a line that says what to do.
    """
    train = _open("data.source", config.source, config.root, train=True)
    if config.val_source is not None:
        val = _open("data.val_source", config.val_source, config.root, train=False)
    elif config.source in NAMED_SOURCES:
        val = _open("data.source", config.source, config.root, train=False)
    else:
        train, val = _split(train, config.val_fraction, config.split_seed)
    return ImageSet(train, config), None if val is None else ImageSet(val, config)


def _open(field: str, value: str, root: str, *, train: bool) -> FileImages | ArrayImages:
    if value in NAMED_SOURCES:
        return open_named(field, value, root, train)
    path = Path(value).expanduser()
    if path.is_dir():
        return open_folder(field, path)
    if path.is_file():
        return open_zip(field, path)
    near = difflib.get_close_matches(value.lower(), NAMED_SOURCES, 1)
    remedy = f"did you mean {near[0]}?" if near else f"named sets are {', '.join(NAMED_SOURCES)}"
    raise ConfigError(f"{field} {value!r} is no named set, and no such folder or zip archive exists ({remedy})")


def _split(source: FileImages, fraction: float, seed: int) -> tuple[FileImages, FileImages | None]:
    """Set a share aside at random, both parts in their original order. At least one image stays for training."""
    count = min(round(len(source) * fraction), len(source) - 1)
    if count == 0:
        return source, None
    order = counter.permutation(len(source), counter.key(seed, "split"))
    return source.subset(order[count:].sort().values), source.subset(order[:count].sort().values)


def _cores() -> int:
    """Cores that this process may use; not every system can tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
