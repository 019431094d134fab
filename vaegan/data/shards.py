"""Sets in archives: one tar, or a folder of zip and tar archives (shards) as webdataset writes them.

Nothing is ever extracted to disk: an image is read from its place in its archive.
"""

import io
import os
import struct
import tarfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vaegan.config import ConfigError
from vaegan.data.files import FileImages, hash_of, images_in, is_image, open_folder, require_images
from vaegan.data.labels import labels_of
from vaegan.data.limits import require_few_label_bytes, require_plain_name, shown
from vaegan.data.zips import open_zip

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_ARCHIVES = (".zip", ".tar", *_COMPRESSED)
_PADDING = 1 << 20  # the most zeros that end a tar archive: the largest record that tar writes
_LONGEST_HEADER = 2 << 20  # names take some thousand bytes, but a header may claim any number, which tarfile reads

# What tarfile raises on damaged headers beside its own errors, as they hold any numbers and text.
_TAR_ERRORS = (
    tarfile.TarError, OSError, EOFError, ValueError, ArithmeticError, LookupError, TypeError, RecursionError,
    MemoryError, struct.error,
)  # fmt: skip


def open_files(field: str, path: Path) -> FileImages:
    """The images of a folder, of one archive, or of the archives in a folder that has no image files of its own.

    Errors are ConfigErrors that begin with `field`.
    """
    if not path.is_dir():
        return _open_archive(field, path)
    if _archives(field, path) and next(images_in(field, path.resolve()), None) is None:
        return open_shards(field, path)
    return open_folder(field, path)


def open_shards(field: str, folder: Path) -> FileImages:
    """All images of the zip and tar archives in a folder, named `archive/entry`, in order of archive, then entry.

    Labels are the archives' own (see `open_tar`, `open_zip`) where all have some and agree on the classes' names, else
    the class subfolders of all archives together. Raises ConfigError naming an archive that is damaged, compressed or
    without images.
    """
    folder = folder.resolve()
    where = f"{field}: {folder}"
    shards = {path.name: _open_archive(field, path) for path in _archives(field, folder)}
    names = [f"{archive}/{name}" for archive, shard in shards.items() for name in shard.names]
    require_images(names, where)
    stamps = [stamp for shard in shards.values() for stamp in shard.stamps]
    read = partial(_read_shard, {archive: shard.read for archive, shard in shards.items()})
    written = hash_of([shard.written for shard in shards.values()])
    return FileImages(where, names, stamps, read, *_labels_of_shards(list(shards.values()), where), written)


def open_tar(field: str, path: Path) -> FileImages:
    """Images anywhere in an uncompressed tar archive; other files are passed over.

    Labels are the numbers in `NAME.cls` beside each `NAME.jpg` (webdataset) if every image has one, else those of
    dataset.json, else its class subfolders. Raises ConfigError if the archive is damaged, has no images, or holds one
    as a link.
    """
    where = f"{field}: {path}"
    try:
        places, texts = _index(path)
    except _TAR_ERRORS as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ConfigError(
            f"{where} is truncated, damaged or no tar archive ({reason}); pack or download it again"
        ) from error
    for name in places:
        require_plain_name(where, name)
    names = sorted(name for name in places if is_image(name))
    require_images(names, where)
    images = {name: place for name in names if (place := places[name])}
    if len(images) < len(names):
        name = next(name for name in names if name not in images)
        raise ConfigError(
            f"{where}/{shown(name)} is a link or no regular file; pack the images themselves (tar --dereference "
            "--hard-dereference)"
        )
    labels, classes = _class_numbers(names, texts, where), None
    if labels is None:
        labels, classes = labels_of(names, _manifest(path, places.get("dataset.json"), len(names), where), where)
    stamps = [(size,) for _, size in images.values()]
    written = hash_of([path.stat().st_mtime_ns])
    return FileImages(where, names, stamps, partial(_read_member, path, images), labels, classes, written)


def _open_archive(field: str, path: Path) -> FileImages:
    name = path.name.lower()
    if name.endswith(_COMPRESSED):
        raise ConfigError(
            f"{field}: {path} is a compressed tar archive, of which no image can be read by itself; unpack it, or pack "
            "the images as .tar or .zip"
        )
    return open_tar(field, path) if name.endswith(".tar") else open_zip(field, path)


def _archives(field: str, folder: Path) -> list[Path]:
    """The archives that lie in a folder itself, sorted by name."""
    try:
        found = [
            entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(_ARCHIVES) and entry.is_file()
        ]
    except OSError as error:
        raise ConfigError(f"{field}: {folder} cannot be read ({error}); check its permissions") from error
    return [folder / name for name in sorted(found) if not name.startswith(".")]


def _index(path: Path) -> tuple[dict[str, tuple[int, int] | None], dict[str, bytes]]:
    """Of a tar archive, the place (offset and bytes) of each regular file and None of each link or device; and the
    contents of `.cls` files."""
    places: dict[str, tuple[int, int] | None] = {}
    texts, start = {}, -1
    with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # it would keep a kilobyte of each
            if archive.offset <= start:  # a negative size, which tarfile follows back in a circle
                raise tarfile.ReadError(f"a damaged header before byte {member.offset_data}")
            start = archive.offset
            if member.isdir():
                continue
            name = member.name.removeprefix("./")
            regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)  # a sparse file does not lie in one piece
            places[name] = (member.offset_data, member.size) if regular else None
            if regular and name.endswith(".cls"):
                file.seek(member.offset_data)
                texts[name] = file.read(min(member.size, 64))
        # tarfile takes a damaged header, and a file that ends between two members, for the end of the archive.
        file.seek(archive.offset)
        end = file.read(_PADDING + 1)
        if not tarfile.BLOCKSIZE <= len(end) <= _PADDING or end.strip(b"\0"):
            raise tarfile.ReadError(f"no end of the archive at byte {archive.offset}")
    return places, texts


class _Headers(io.BufferedReader):
    """A tar archive for tarfile, which reads nothing else than headers and what they claim to take."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _manifest(path: Path, place: tuple[int, int] | None, images: int, where: str) -> bytes | None:
    """What dataset.json holds, None if there is none."""
    if place is None:
        return None
    require_few_label_bytes(where, place[1], images)
    return _read_member(path, {"dataset.json": place}, "dataset.json")


def _class_numbers(names: list[str], texts: dict[str, bytes], where: str) -> Tensor | None:
    """(N,) int64 from the `.cls` files, None unless each image has one."""
    files = [name.rpartition(".")[0] + ".cls" for name in names]
    if not all(file in texts for file in files):
        return None
    for file in files:
        if not texts[file].strip().isdigit() or len(texts[file]) > 18:
            raise ConfigError(f"{where}/{file} must hold a class's number, got {texts[file][:20]!r}; mend or remove it")
    return torch.tensor([int(texts[file]) for file in files])


def _labels_of_shards(shards: list[FileImages], where: str) -> tuple[Tensor | None, list[str] | None]:
    classes = shards[0].classes
    if all(shard.labels is not None and shard.classes == classes for shard in shards):
        return torch.cat([shard.labels for shard in shards]), classes
    return labels_of([name for shard in shards for name in shard.names], None, where)


def _read_shard(reads: dict, name: str) -> bytes:
    archive, _, entry = name.partition("/")
    return reads[archive](entry)


def _read_member(path: Path, places: dict[str, tuple[int, int]], name: str) -> bytes:
    """A member's bytes. The archive is opened anew each time, as a zip is."""
    offset, size = places[name]
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise OSError("the archive is truncated")
    return data
