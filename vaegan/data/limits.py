"""What is refused before it is decoded: images and archives that would take more memory or time than any real one."""

import re
import zlib

from PIL import Image

from vaegan.config import ConfigError

# The formats that are asked of Pillow. It knows forty more, of which EPS would start another program (Ghostscript).
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
# Where Pillow itself begins to warn: a quarter of a gigabyte at three bytes a pixel. It only refuses twice as much.
MOST_PIXELS = 89_478_485
# Of more than eight megapixels, photographs have some pixels a byte and drawings some dozens. A byte of deflate can
# stand for a thousand bytes, one of WebP for a million pixels.
LARGE_PIXELS, PIXELS_A_BYTE = 1 << 23, 256
# Of one encoded image: 45 megapixels without any compression. Files are read whole, so this is memory.
MOST_BYTES = 1 << 27
# Of more than 16 MiB, no image deflates to a hundredth, unless it is made for that.
LARGE_BYTES, BYTES_A_BYTE = 1 << 24, 100
# Progressive JPEG files have about ten scans. Each one passes over the whole image, however few bytes it has.
MOST_SCANS = 100
# Of a PNG: 128 MiB in chunks of 8 KiB, as encoders write them, are 16 thousand. Pillow takes microseconds for each.
MOST_CHUNKS = 50_000
# A dataset.json has a name and a number an image. JSON takes up to thirty times its size as Python objects.
LABEL_BYTES, LABEL_BYTES_AN_IMAGE = 1 << 20, 1 << 10

_PNG_END = b"IEND"
_SCAN = b"\xff\xda"
_ODD_NAME = re.compile(r"[\x00-\x1f\x7f\\]|^/|^[A-Za-z]:|(?:^|/)\.\.(?:/|$)")


def require_no_bomb(image: Image.Image, data: bytes) -> None:
    """ValueError if an image that Pillow has opened, but not yet decoded, would grow beyond all measure."""
    width, height = image.size
    require_pixels(width, height, len(data))
    if image.format == "TIFF":  # a tile is decoded whole, however little of it lies in the image
        tile = [image.tag_v2.get(tag, 0) for tag in (322, 323)]
        if not all(isinstance(side, int) for side in tile):
            raise ValueError(f"tiles of {str(tile)[:40]}")
        require_pixels(*tile, len(data))
    if data[:2] == b"\xff\xd8":
        require_few_scans(data)


def require_pixels(width: int, height: int, size: int) -> None:
    """ValueError for more pixels than are taken, or than `size` bytes of a real image would stand for."""
    pixels = width * height
    if pixels > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than {MOST_PIXELS}")
    if pixels > LARGE_PIXELS and pixels > PIXELS_A_BYTE * size:
        raise ValueError(f"{width} x {height} pixels in {size} bytes, a decompression bomb")


def require_few_scans(data: bytes) -> None:
    """ValueError for a JPEG file of more scans than any encoder writes."""
    if data.count(_SCAN) > MOST_SCANS:
        raise ValueError(f"more than {MOST_SCANS} scans, a decompression bomb")


def most_png_bytes(width: int, height: int) -> int:
    """What the compressed pixels of a PNG take at most: those of 16-bit RGBA, stored, with the rows' filter bytes."""
    return 9 * (width + 8) * (height + 8) + 1024


def require_whole_png(data: bytes) -> None:
    """ValueError unless all chunks of a PNG are there, up to its end, and agree with their check sums.

    Pillow checks those before the pixels, not those of the pixels themselves, and accepts a file that ends after them.
    """
    view, place, pixels, chunks = memoryview(data), 8, 0, 0
    while (kind := data[place + 4 : place + 8]) != _PNG_END:
        chunks += 1
        if chunks > MOST_CHUNKS:
            raise ValueError(f"more than {MOST_CHUNKS} chunks")
        end = _after_chunk(view, place)
        pixels += end - place if kind == b"IDAT" else 0
        place = end
    _after_chunk(view, place)
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    if pixels > most_png_bytes(width, height):
        raise ValueError(f"{pixels} bytes for {width} x {height} pixels, a decompression bomb")


def _after_chunk(view: memoryview, place: int) -> int:
    end = place + 8 + int.from_bytes(view[place : place + 4], "big")
    if end + 4 > len(view):
        raise ValueError("truncated PNG")
    if zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
        raise ValueError(f"the check sum of PNG chunk {bytes(view[place + 4 : place + 8])} does not match")
    return end + 4


def require_plain_name(where: str, name: str) -> None:
    """ConfigError for an archive's entry whose name leads out of it, or would not be the same on every system."""
    if _ODD_NAME.search(name):
        raise ConfigError(
            f"{where} has an entry named {ascii(name[:100])}, with .., an absolute path, a drive, a backslash or a "
            "control character; pack it again with plain relative names"
        )


def require_few_label_bytes(where: str, size: int, images: int) -> None:
    """ConfigError for a dataset.json of more bytes than the labels of so many images take."""
    most = LABEL_BYTES + LABEL_BYTES_AN_IMAGE * images
    if size > most:
        raise ConfigError(
            f"{where}/dataset.json has {size} bytes, more than the labels of {images} images take ({most}); mend or "
            "remove it"
        )


def shown(name: str) -> str:
    """A file's name as it may stand in a line."""
    return name if name.isprintable() else ascii(name)[1:-1]
