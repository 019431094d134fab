"""Sets in a zip archive, in the convention of StyleGAN and EDM. Nothing is ever extracted to disk."""

import os
import stat
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path

from vaegan.config import ConfigError
from vaegan.data import limits
from vaegan.data.files import FileImages, is_image, require_images
from vaegan.data.labels import labels_of

_LOCAL, _LISTED = 30, 46  # bytes that an entry takes beside name and data: before its data, and in the directory
_END, _END64, _LOCATOR64 = 22, 56, 20  # bytes of the records that end an archive
_LONGEST_COMMENT = 0xFFFF

# What zipfile raises on damaged directories beside its own errors, as they hold any numbers and text.
_ZIP_ERRORS = (
    zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, RuntimeError, ValueError, ArithmeticError, LookupError,
    TypeError, MemoryError, zlib.error, struct.error,
)  # fmt: skip


def open_zip(field: str, path: Path) -> FileImages:
    """Images anywhere in a zip archive, stored or deflated; other files are passed over.

    Labels come from its dataset.json, {"labels": [[name, int], ...] or null}, optionally with "classes", else from its
    class subfolders. Raises ConfigError if the archive is damaged or contradicts itself, or holds names that lead out
    of it.
    """
    where = f"{field}: {path}"
    try:
        claimed = _entries_claimed(path)
        with zipfile.ZipFile(path) as archive:
            listed, directory = archive.infolist(), archive.start_dir
        if len(listed) != claimed:
            raise zipfile.BadZipFile(f"it claims {claimed} entries and lists {len(listed)}")
        _require_apart(listed, directory)
    except _ZIP_ERRORS as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ConfigError(f"{where} is damaged or no zip archive ({reason}); give a folder or zip of images") from error
    for entry in listed:
        limits.require_plain_name(where, entry.orig_filename)  # zipfile cuts the other name at a NUL
    entries = {entry.filename: entry for entry in listed if is_image(entry.filename)}
    names = sorted(entries)
    require_images(names, where)
    texts = {entry.filename: entry for entry in listed if entry.filename == "dataset.json"}
    for name, entry in [*entries.items(), *texts.items()]:
        _require_ordinary(f"{where}/{limits.shown(name)}", entry)
    labels, classes = labels_of(names, _labels(where, path, texts, len(names)), where)
    stamps = [(entries[name].file_size, entries[name].CRC) for name in names]
    return FileImages(where, names, stamps, partial(_read_entry, path, entries), labels, classes)


def _entries_claimed(path: Path) -> int:
    """What the end of an archive says of how many entries there are. BadZipFile if so many do not fit into it.

    zipfile itself does not look at the number, and would read a directory of millions before it noticed anything.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END - _LONGEST_COMMENT - _LOCATOR64 - _END64))
        tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if not 0 <= end <= len(tail) - _END:
        raise zipfile.BadZipFile("File is not a zip file")
    (count,) = struct.unpack_from("<H", tail, end + 10)
    large = end - _LOCATOR64 - _END64  # of an archive of more than 65535 entries or 4 GiB
    if large >= 0 and tail[end - _LOCATOR64 :][:4] == b"PK\6\7" and tail[large:][:4] == b"PK\6\6":
        (count,) = struct.unpack_from("<Q", tail, large + 32)
    if count * (_LOCAL + _LISTED) > size:
        raise zipfile.BadZipFile(f"it claims {count} entries in {size} bytes")
    return count


def _require_apart(listed: list[zipfile.ZipInfo], directory: int) -> None:
    """BadZipFile if entries overlap each other or the directory: a few bytes could stand for any number of images."""
    end = 0
    for entry in sorted(listed, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise zipfile.BadZipFile(f"entry {entry.filename[:60]!r} overlaps another one")
        end = entry.header_offset + _LOCAL + entry.compress_size
    if end > directory:
        raise zipfile.BadZipFile("an entry reaches beyond the archive's end")


def _require_ordinary(where: str, entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ConfigError(f"{where} is encrypted or packed unusually; store or deflate the images")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise ConfigError(f"{where} is a link; pack the images themselves")


def _labels(where: str, path: Path, texts: dict[str, zipfile.ZipInfo], images: int) -> bytes | None:
    """What dataset.json holds, None if there is none."""
    if not texts:
        return None
    limits.require_few_label_bytes(where, texts["dataset.json"].file_size, images)
    try:
        return _read_entry(path, texts, "dataset.json")
    except OSError as error:
        raise ConfigError(f"{where}/dataset.json cannot be read ({error}); mend or remove it") from error


def _read_entry(path: Path, entries: dict[str, zipfile.ZipInfo], name: str) -> bytes:
    """An entry's bytes, checked against its CRC. The archive is opened anew each time, which costs microseconds and
    leaves no handle to share between threads or to lose at a fork."""
    info = entries[name]
    usual = max(limits.LARGE_BYTES, limits.BYTES_A_BYTE * info.compress_size)
    if info.compress_size > limits.MOST_BYTES or info.file_size > usual:
        raise OSError(f"{info.file_size} bytes out of {info.compress_size}: a zip bomb")
    with open(path, "rb", buffering=0) as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL)
        if len(header) < _LOCAL:
            raise OSError("the archive is truncated")
        file.seek(sum(struct.unpack_from("<HH", header, 26)), os.SEEK_CUR)  # the local name and extra field
        data = file.read(info.compress_size)
    if info.compress_type == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, info.file_size + 1)  # 0 would be no limit
        except zlib.error as error:
            raise OSError(f"damaged: {error}") from error
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise OSError("damaged: its CRC does not match")
    return data
