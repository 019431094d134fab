"""Named sets: MNIST from the repository, others through torchvision, which downloads them on first use."""

import gzip
import hashlib
import http.client
import math
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaegan.config import ConfigError
from vaegan.data.decode import to_channels, to_square
from vaegan.data.files import FileImages, listed_files

EMBEDDED_MNIST = Path(__file__).parents[2] / "assets" / "mnist"

_LARGEST_IDX = 64 << 20  # bytes; MNIST has 47 million
# URLError is an OSError; torchvision raises RuntimeError where a checksum is wrong, and what it likes on damaged IDX files.
_DOWNLOAD_ERRORS = (
    OSError, RuntimeError, ValueError, EOFError, http.client.HTTPException, tarfile.TarError, zipfile.BadZipFile,
    AssertionError, LookupError, struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class ArrayImages:
    """Decoded images of one size. They are fitted to the wanted size only when asked for."""

    pixels: Tensor
    """uint8 (N, 1 or 3, H, W)."""
    labels: Tensor | None
    """(N,) int64."""
    classes: list[str] | None

    written = ""  # the digest is of the pixels
    gains_from_threads = False  # torch has threads of its own

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def digest(self) -> str:
        """SHA-256 of shape and pixels."""
        sha = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        sha.update(self.pixels.contiguous().numpy())
        return sha.hexdigest()

    def images(self, rows, image_size: int, channels: int, fit: str) -> Tensor:
        """These rows as uint8 (B, C, image_size, image_size)."""
        pixels = self.pixels[torch.as_tensor(rows, dtype=torch.int64)]
        return to_channels(to_square(pixels, image_size, fit), channels).contiguous()

    def native(self, row: int) -> Tensor:
        """This row as uint8 (1 or 3, H, W)."""
        return self.pixels[row]


def open_named(field: str, name: str, root: str, train: bool) -> ArrayImages | FileImages:
    """The training or the validation split of a named set: the test split, but `valid` of CelebA and `val` of
    Flowers102. Raises ConfigError if it is neither there nor to be downloaded."""
    if name == "mnist" and EMBEDDED_MNIST.is_dir():
        return _embedded_mnist(train)
    folder = Path(root).expanduser()
    old = folder / {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}.get(name, name) / "processed"
    if old.is_dir():  # which torchvision would unpickle
        raise ConfigError(
            f"{field} {name}: {old} is of an old torchvision; remove it, and keep the folder raw beside it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        from torchvision import datasets  # takes a second or two, and is seldom needed

        dataset = _TORCHVISION[name](datasets, folder, train)
        if name == "celeba":  # forty attributes, but no classes
            return listed_files(field, folder / "celeba" / "img_align_celeba", list(dataset.filename), None, None)
        if name == "flowers102":  # torchvision keeps its lists private, and gives only decoded images
            files = [path.name for path in dataset._image_files]
            jpg = folder / "flowers-102" / "jpg"
            return listed_files(field, jpg, files, torch.tensor(dataset._labels), list(dataset.classes))
    except ImportError as error:
        raise ConfigError(f"{field} {name} needs the package {error.name}; install it with pip") from error
    except _DOWNLOAD_ERRORS as error:
        raise ConfigError(
            f"{field} {name} was not found in {folder} and could not be downloaded ({_short(error)}); place its files "
            "there, or give a folder or zip of images"
        ) from error
    return _from_torchvision(dataset)


# Looked up when called, so that importing this module costs nothing and a split's name is beside its set.
_TORCHVISION = {
    "mnist": lambda datasets, root, train: datasets.MNIST(root, train=train, download=True),
    "fashion_mnist": lambda datasets, root, train: datasets.FashionMNIST(root, train=train, download=True),
    "cifar10": lambda datasets, root, train: datasets.CIFAR10(root, train=train, download=True),
    "svhn": lambda datasets, root, train: datasets.SVHN(root, split="train" if train else "test", download=True),
    "celeba": lambda datasets, root, train: datasets.CelebA(root, split="train" if train else "valid", download=True),
    "flowers102": lambda datasets, root, train: datasets.Flowers102(
        root, split="train" if train else "val", download=True
    ),
}


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _from_torchvision(dataset) -> ArrayImages:
    """A set that torchvision keeps as one array: (N, H, W), (N, H, W, 3) or, of SVHN, (N, 3, H, W)."""
    pixels = torch.as_tensor(np.ascontiguousarray(dataset.data))
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[1] != 3:
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    classes = getattr(dataset, "classes", None)
    return ArrayImages(pixels, torch.as_tensor(labels, dtype=torch.int64), None if classes is None else list(classes))


def _embedded_mnist(train: bool) -> ArrayImages:
    part = "train" if train else "t10k"
    pixels = read_idx(EMBEDDED_MNIST / f"{part}-images-idx3-ubyte.gz", 3)
    labels = read_idx(EMBEDDED_MNIST / f"{part}-labels-idx1-ubyte.gz", 1)
    return ArrayImages(pixels[:, None], labels.long(), [str(digit) for digit in range(10)])


def read_idx(path: Path, dimensions: int) -> Tensor:
    """A gzipped IDX file of bytes (format: http://yann.lecun.com/exdb/mnist) as uint8 with so many dimensions.

    Raises ConfigError if it is missing, damaged or of another kind.
    """
    try:
        with gzip.open(path) as file:
            data = file.read(_LARGEST_IDX + 1)
        if len(data) > _LARGEST_IDX:
            raise ValueError(f"more than {_LARGEST_IDX} bytes")
        magic, *shape = struct.unpack_from(f">{1 + dimensions}I", data)
        if magic != 0x0800 + dimensions:
            raise ValueError(f"magic number {magic:#x}, not {0x0800 + dimensions:#x}")
        start = 4 * (1 + dimensions)
        if len(data) - start != math.prod(shape):
            raise ValueError(f"{len(data) - start} bytes of data, not {math.prod(shape)}")
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        raise ConfigError(f"data.source mnist: {path} is no good IDX file ({error}); restore it") from error
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)[start:].view(*shape)
