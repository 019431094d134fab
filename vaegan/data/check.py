"""Looking at every image of a set: what each one is, which are damaged, which are there twice."""

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vaegan.config import ConfigError
from vaegan.data.decode import decode_array
from vaegan.data.files import FileImages
from vaegan.data.limits import FORMATS, shown
from vaegan.data.named import ArrayImages

_CHUNK = 64  # images that a worker looks at in one go
_NAMED = 10  # files that a report names
_MODES = {"1": "black and white", "L": "grey", "P": "palette", "CMYK": "CMYK"}
_EXTENSIONS = {"JPEG": (".jpg", ".jpeg"), "TIFF": (".tif", ".tiff")}


@dataclass(frozen=True)
class Finding:
    """What one image is. Of a damaged one, all that could be found out."""

    name: str
    bytes: int
    """Of the encoded file; of an array, of its pixels."""
    sha256: str | None = None
    """Of those bytes. None if they cannot be read."""
    format: str | None = None
    """By its content, whatever its name ends in; None of an array and of a damaged file."""
    mode: str | None = None
    """grey, colour, palette, CMYK or black and white, with `16-bit ` before or ` with transparency` behind."""
    width: int | None = None
    height: int | None = None
    """Pixels, upright."""
    label: str | None = None
    """The class's name, or its number where it has none."""
    damage: str | None = None
    """What is wrong."""


def look_at(images: FileImages | ArrayImages, workers: int) -> Iterator[Finding]:
    """Decode all images of a set and yield what each one is, in the set's order. 0 workers: in this process."""
    rows = range(len(images))
    chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    several = workers if isinstance(images, FileImages) else 0
    loader = DataLoader(
        _Inspector(images), batch_size=None, sampler=chunks, num_workers=several, generator=torch.Generator()
    )
    for findings in loader:
        yield from findings


class _Inspector(Dataset):
    """What a worker runs."""

    def __init__(self, images: FileImages | ArrayImages):
        self._images = images
        self._look = _look_at_file if isinstance(images, FileImages) else _look_at_array

    def __getitem__(self, rows: range) -> list[Finding]:
        return [self._look(self._images, row) for row in rows]


def _look_at_file(images: FileImages, row: int) -> Finding:
    known = {"name": images.names[row], "bytes": images.stamps[row][0], "label": _label(images, row)}
    try:
        data = images.encoded(row)
        known |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        height, width, _ = decode_array(data, images.path(row)).shape
    except ConfigError as error:  # "field: folder/name cannot be decoded (why); remedy"
        return Finding(**known, damage=str(error).removeprefix(f"{images.path(row)} ").rpartition("; ")[0])
    kind, mode = _kind(data)
    return Finding(**known, format=kind, mode=mode, width=width, height=height)


def _look_at_array(images: ArrayImages, row: int) -> Finding:
    pixels = images.native(row).contiguous().numpy()
    channels, height, width = pixels.shape
    sha, mode = hashlib.sha256(pixels).hexdigest(), "grey" if channels == 1 else "colour"
    label = _label(images, row)
    return Finding(f"{row:06d}", pixels.nbytes, sha, None, mode, width, height, label)


def _kind(data: bytes) -> tuple[str, str]:
    """Format and mode of an image that can be decoded."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        kind, deep = image.format, image.mode.startswith("I")
        if kind == "PNG":
            deep = data[24] == 16  # of 16-bit colour, Pillow opens the upper bytes
        base = "L" if deep and image.mode.startswith("I") else image.mode.replace("A", "").replace("a", "")
        mode = ("16-bit " if deep else "") + _MODES.get(base, "colour")
        return "JPEG" if kind == "MPO" else kind, mode + (" with transparency" if image.has_transparency_data else "")


def _label(images: FileImages | ArrayImages, row: int) -> str | None:
    if images.labels is None:
        return None
    label = int(images.labels[row])
    return str(label) if images.classes is None else images.classes[label]


def report(findings: list[Finding], image_size: int | None = None) -> list[str]:
    """Lines for the screen: counts by format, mode and class, sizes, duplicates, and the first damaged files."""
    sound = [found for found in findings if found.damage is None]
    lines = [f"images      {len(findings)}, {sum(found.bytes for found in findings) / 1e6:.1f} MB"]
    for title, values in (
        ("formats", [found.format for found in sound]),
        ("modes", [found.mode for found in sound]),
        ("classes", [found.label for found in findings]),
    ):
        counts = Counter(shown(value) for value in values if value is not None)
        if counts:
            lines.append(f"{title:<12}{_counted(counts)}")
    misnamed = [found for found in sound if not _well_named(found)]
    if misnamed:
        lines.append(f"misnamed    {len(misnamed)}, as {shown(misnamed[0].name)}, which is {misnamed[0].format}")
    if sound:
        lines.append(f"sizes       {_sizes(sound, image_size)}")
    return lines + _duplicates(findings) + _damaged(findings)


def _counted(counts: Counter) -> str:
    shares = ", ".join(f"{name} {count}" for name, count in counts.most_common(_NAMED))
    return shares + (f" and {len(counts) - _NAMED} more" if len(counts) > _NAMED else "")


def _well_named(found: Finding) -> bool:
    if found.format is None:
        return True
    endings = _EXTENSIONS.get(found.format, (f".{found.format.lower()}",))
    return PurePath(found.name).suffix.lower() in endings


def _sizes(sound: list[Finding], image_size: int | None) -> str:
    by_area = sorted(((found.width, found.height) for found in sound), key=lambda size: (size[0] * size[1], size))
    smallest, median, largest = (f"{w} x {h}" for w, h in (by_area[0], by_area[len(by_area) // 2], by_area[-1]))
    text = f"{smallest} to {largest}, median {median}"
    if image_size is None:
        return text
    small = sum(min(size) < image_size for size in by_area)
    return f"{text}; {small} with a side below {image_size}, which would be enlarged or padded"


def _duplicates(findings: list[Finding]) -> list[str]:
    groups = defaultdict(list)
    for found in findings:
        if found.sha256 is not None:
            groups[found.sha256].append(shown(found.name))
    same = [names for names in groups.values() if len(names) > 1]
    if not same:
        return ["duplicates  none"]
    extra = sum(len(names) - 1 for names in same)
    examples = [f"            {' = '.join(names[:3])}{' = …' if len(names) > 3 else ''}" for names in same[:3]]
    return [f"duplicates  {extra} images too many, in {len(same)} groups of the same bytes", *examples]


def _damaged(findings: list[Finding]) -> list[str]:
    bad = [found for found in findings if found.damage is not None]
    if not bad:
        return ["damaged     none"]
    named = [f"            {shown(found.name)} {found.damage}" for found in bad[:_NAMED]]
    more = [f"            and {len(bad) - _NAMED} more"] if len(bad) > _NAMED else []
    return [f"damaged     {len(bad)}", *named, *more]
