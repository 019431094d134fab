"""Image sets: opening a source, setting validation images aside, and keeping pixels in memory or on disk."""

import difflib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor

from vaegan import counter
from vaegan.config import NAMED_SOURCES, ConfigError, DataConfig
from vaegan.data.damaged import Substitutes
from vaegan.data.decode import to_channels, to_square
from vaegan.data.files import FileImages
from vaegan.data.named import ArrayImages, open_named
from vaegan.data.shards import open_files

_CHUNK = 64  # images that a thread decodes at a time


@dataclass(frozen=True)
class Form:
    """What images are fitted to: the fields of DataConfig by these names."""

    image_size: int
    channels: int = 3
    fit: str = "crop"

    def __post_init__(self):
        if self.image_size < 1 or self.channels not in (1, 3) or self.fit not in ("crop", "pad", "stretch"):
            raise ConfigError(f"form must be a size, 1 or 3 channels, and crop, pad or stretch, got {astuple(self)}")

    def __str__(self) -> str:
        return f"{self.image_size}x{self.image_size}x{self.channels} {self.fit}"


class ImageSet:
    """Square uint8 images of one size, decoded beforehand (`in_memory`) or each time they are asked for."""

    def __init__(self, source: FileImages | ArrayImages, config: DataConfig):
        """Raises ConfigError naming the file if an image that is decoded beforehand is damaged, or too many are for
        others to stand in for them."""
        self._source = source
        self._form = (config.image_size, config.channels, config.fit)
        substitutes = config.damaged == "substitute" and isinstance(source, FileImages)
        self.substitutes = Substitutes(source, self._form, config.damaged_limit) if substitutes else None
        self.shape = (config.channels, config.image_size, config.image_size)
        self.labels = source.labels  # (N,) int64, or None
        self.classes = source.classes
        self.written = source.written
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
        """The same of a streaming set, in one thread as a worker process should. The training process has to be told
        what is then in `substitutes.found`."""
        if self.substitutes is not None:
            return self.substitutes.decode(rows)
        return self._source.images(rows, *self._form)

    def _decode_in_threads(self, rows) -> Tensor:
        image_size, channels, _ = self._form
        images = torch.empty(len(rows), channels, image_size, image_size, dtype=torch.uint8)

        def decode_chunk(start: int) -> None:
            images[start : start + _CHUNK] = self.decode(rows[start : start + _CHUNK])

        with ThreadPoolExecutor(cores() if self._source.gains_from_threads else 1) as pool:
            for _ in pool.map(decode_chunk, range(0, len(rows), _CHUNK)):
                pass  # an error of a thread is raised here, and cancels the rest
        if self.substitutes is not None:
            self.substitutes.report(self.substitutes.found)
        return images


def load_data(config: DataConfig) -> tuple[ImageSet, ImageSet | None]:
    """Training and validation images; the latter are None where `val_fraction` leaves none.

    Raises ConfigError with a line that says what to do.
    """
    train, val = open_splits(config)
    return ImageSet(train, config), None if val is None else ImageSet(val, config)


def open_splits(config: DataConfig) -> tuple[FileImages | ArrayImages, FileImages | ArrayImages | None]:
    """What `load_data` takes training and validation images from.

    Validation images are `val_source` (of a named set, its validation split), else the named set's validation split,
    else a share of the training images.
    """
    train = open_images("data.source", config.source, config.root, train=True)
    if config.val_source is not None:
        return train, open_images("data.val_source", config.val_source, config.root, train=False)
    if config.source in NAMED_SOURCES:
        return train, open_images("data.source", config.source, config.root, train=False)
    return _split(train, config.val_fraction, config.split_seed)


def open_images(field: str, value: str, root: str, *, train: bool) -> FileImages | ArrayImages:
    """A named set's split, or all images of a folder, archive or folder of archives. Errors name `field`."""
    if value in NAMED_SOURCES:
        return open_named(field, value, root, train)
    path = Path(value).expanduser()
    if path.is_dir() or path.is_file():
        return open_files(field, path)
    near = difflib.get_close_matches(value.lower(), NAMED_SOURCES, 1)
    remedy = f"did you mean {near[0]}?" if near else f"named sets are {', '.join(NAMED_SOURCES)}"
    raise ConfigError(f"{field} {value!r} is no named set, and no such folder or archive exists ({remedy})")


def decode_each(images: FileImages, rows: list[int], form: Form | None, *, skip: bool) -> list[Tensor | None]:
    """These rows as uint8 (C, H, W), fitted to the form or, where it is None, at their own sizes.

    Raises ConfigError naming a damaged file, or with `skip` gives None for it.
    """

    def decode(row: int) -> Tensor | None:
        try:
            image = images.native(row)
        except ConfigError:
            if skip:
                return None
            raise
        if form is not None:
            image = to_channels(to_square(image, form.image_size, form.fit), form.channels)
        return image.contiguous()

    if not images.gains_from_threads:
        return [decode(row) for row in rows]
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(decode, rows))


def spread_rows(total: int, n: int) -> Tensor:
    """min(n, total) row numbers spread evenly over a set, whose images may lie sorted by class."""
    n = min(n, total)
    return torch.arange(n) * total // n


def _split(source: FileImages, fraction: float, seed: int) -> tuple[FileImages, FileImages | None]:
    """Set a share aside at random, both parts in their original order. At least one image stays for training."""
    count = min(round(len(source) * fraction), len(source) - 1)
    if count == 0:
        return source, None
    order = counter.permutation(len(source), counter.key(seed, "split"))
    return source.subset(order[count:].sort().values), source.subset(order[:count].sort().values)


def cores() -> int:
    """Cores that this process may use; not every system can tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
