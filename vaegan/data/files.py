"""Image files in a folder: their names, labels and bytes, decoded only when asked for."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaegan.config import ConfigError
from vaegan.data.decode import decode_array, to_channels, to_square
from vaegan.data.labels import labels_of
from vaegan.data.limits import MOST_BYTES, require_few_label_bytes, shown

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class FileImages:
    """Encoded images that can be read by name, from any thread or process."""

    where: str
    """The field and the folder or archive, as errors name it."""
    names: list[str]
    """Paths inside the folder or archive, with forward slashes."""
    stamps: list[tuple[int, ...]]
    """Bytes (and CRC in a zip archive) of each, for the fingerprint."""
    read: Callable[[str], bytes]
    """Bytes of a name; picklable."""
    labels: Tensor | None
    """(N,) int64."""
    classes: list[str] | None
    written: str = ""
    """When the files were last written, hashed: what tells of changes that leave sizes as they were. (CRCs do.)"""

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def gains_from_threads(self) -> bool:
        """Small files do not: two threads decoded files of 1 KB no faster than one, as they spend their time in handing
        Python's lock to each other. Pillow lets go of it while it decodes, which counts for larger files."""
        return sum(stamp[0] for stamp in self.stamps) > 1536 * len(self)

    @property
    def digest(self) -> str:
        """SHA-256 of names and stamps."""
        lines = "\n".join(f"{name}\t{stamp}" for name, stamp in zip(self.names, self.stamps))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def subset(self, rows: Tensor) -> "FileImages":
        """The images of these rows, (M,) int64, in that order."""
        index = rows.tolist()
        return replace(
            self,
            names=[self.names[i] for i in index],
            stamps=[self.stamps[i] for i in index],
            labels=None if self.labels is None else self.labels[rows],
        )

    def images(self, rows: Sequence[int], image_size: int, channels: int, fit: str) -> Tensor:
        """Decode these rows to uint8 (B, C, image_size, image_size). Raises ConfigError naming the file."""
        arrays = [self._square(row, image_size, fit) for row in rows]
        colours = 1 if channels == 1 and all(array.shape[2] == 1 for array in arrays) else 3
        images = np.empty((len(arrays), image_size, image_size, colours), np.uint8)
        for image, array in zip(images, arrays):
            image[...] = array  # grey becomes three equal channels
        return to_channels(torch.from_numpy(images).permute(0, 3, 1, 2), channels).contiguous()

    def native(self, row: int) -> Tensor:
        """Decode this row at its own size to uint8 (1 or 3, H, W). Raises ConfigError naming the file."""
        return torch.from_numpy(self._array(row).transpose(2, 0, 1))

    def path(self, row: int) -> str:
        """The field and the file, as errors name it."""
        return f"{self.where}/{shown(self.names[row])}"

    def encoded(self, row: int) -> bytes:
        """The file's bytes. Raises ConfigError naming it if it cannot be read, or is larger than any image."""
        if (size := self.stamps[row][0]) > MOST_BYTES:
            raise ConfigError(
                f"{self.path(row)} has {size} bytes, above the limit of {MOST_BYTES}; scale it down or remove the file"
            )
        try:
            return self.read(self.names[row])
        except OSError as error:
            raise ConfigError(f"{self.path(row)} cannot be read ({error}); restore or remove the file") from error

    def _square(self, row: int, size: int, fit: str) -> np.ndarray:
        """(size, size, 1 or 3)."""
        array = self._array(row)
        if array.shape[:2] == (size, size):  # it is spared the way through torch
            return array
        return to_square(torch.from_numpy(array.transpose(2, 0, 1)), size, fit).permute(1, 2, 0).numpy()

    def _array(self, row: int) -> np.ndarray:
        """(H, W, 1 or 3)."""
        return decode_array(self.encoded(row), self.path(row))


def open_folder(field: str, folder: Path) -> FileImages:
    """Images anywhere in a folder. Labels come from its dataset.json, else from its class subfolders."""
    folder = folder.resolve()  # the folder itself may be a link
    where = f"{field}: {folder}"
    found, file = sorted(images_in(field, folder)), folder / "dataset.json"
    try:
        manifest = None
        if file.is_file():
            require_few_label_bytes(where, file.stat().st_size, len(found))
            manifest = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where} cannot be read ({error}); check its permissions") from error
    names, stamps = [name for name, _, _ in found], [(size,) for _, size, _ in found]
    require_images(names, where)
    labels, classes = labels_of(names, manifest, where)
    written = hash_of([time for _, _, time in found])
    return FileImages(where, names, stamps, partial(_read_file, folder), labels, classes, written)


def listed_files(field: str, folder: Path, names: list[str], labels: Tensor | None, classes) -> FileImages:
    """Given files of a folder, in the given order."""
    found = [(folder / name).stat() for name in names]
    stamps, written = [(file.st_size,) for file in found], hash_of([file.st_mtime_ns for file in found])
    return FileImages(f"{field}: {folder}", names, stamps, partial(_read_file, folder), labels, classes, written)


def images_in(field: str, folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (relative name, bytes, time of writing) of the image files anywhere in a folder, in no order. ConfigError if
    it cannot be read, or for links out of it."""
    try:
        yield from (file for file in _scan(field, folder, folder, "") if is_image(file[0]))
    except (OSError, RecursionError) as error:
        raise ConfigError(f"{field}: {folder} cannot be read ({error}); check its permissions") from error


def hash_of(parts: list) -> str:
    """SHA-256 of a list of numbers or strings."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def is_image(name: str) -> bool:
    """By extension; hidden files and the resource forks of macOS archives are none."""
    parts = name.replace("\\", "/").split("/")
    return name.lower().endswith(EXTENSIONS) and not any(part.startswith((".", "__MACOSX")) for part in parts)


def require_images(names: list[str], where: str) -> None:
    """ConfigError unless there are any."""
    if not names:
        looked_for = " ".join(EXTENSIONS)
        raise ConfigError(f"{where} holds no images (looked for {looked_for}); give a folder or an archive of images")


def _scan(field: str, root: Path, folder: str | Path, prefix: str):
    """Yield (relative name, bytes, time of writing in ns) of all that is not hidden."""
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink():
            _require_inside(field, root, entry)
        if entry.is_dir():
            yield from _scan(field, root, entry.path, f"{prefix}{entry.name}/")
        elif stat.S_ISREG((status := entry.stat()).st_mode):
            yield prefix + entry.name, status.st_size, status.st_mtime_ns


def _require_inside(field: str, root: Path, entry: os.DirEntry) -> None:
    """A link to a file of the same folder is fine. One out of it would make the set depend on more than the folder,
    and one to a folder could be a circle."""
    target = Path(os.path.realpath(entry.path))
    if not target.is_file() or root not in target.parents:
        raise ConfigError(
            f"{field}: {entry.path} is a symbolic link to a folder, out of {root} or to nothing; put the images "
            "themselves into the folder"
        )


def _read_file(folder: Path, name: str) -> bytes:
    with open(f"{folder}/{name}", "rb", buffering=0) as file:
        return file.read()
