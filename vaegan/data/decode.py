"""From the bytes of an image file to a square uint8 tensor, whatever the format, mode or size.

Pillow alone decodes. torchvision's decoder for JPEG took half to two thirds of the time for files of 1 KB, but those
decoders are deprecated (0.29), and the one for PNG ends the process with a segmentation fault on some damaged files.
Colour profiles are ignored.
"""

import io
import stat
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate, pad

from vaegan.config import ConfigError
from vaegan.data import limits
from vaegan.data.tags import block_of_info, blocks_in_jpeg, require_few_tags

# What Pillow raises on damaged files: its parsers do arithmetic and look-ups with whatever numbers a file holds.
# UnidentifiedImageError is an OSError.
_DECODING_ERRORS = (
    OSError, EOFError, SyntaxError, ValueError, RuntimeError, ArithmeticError, LookupError, TypeError, AttributeError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip

_JPEG, _PNG, _PNG_END = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_CRC_OF_IDAT = zlib.crc32(b"IDAT")
_LONGEST_HEADER = 4096
# Keys of Pillow's `info` that mean more than decoding: a rotation, a colour that is transparent, several passes.
_BEYOND_PIXELS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp", "transparency", "interlace"}


def decode_file(path: str | Path, image_size: int, channels: int, fit: str) -> Tensor:
    """Read one image file as uint8 (channels, image_size, image_size). Raises ConfigError naming the file."""
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > limits.MOST_BYTES:  # a pipe would be waited for
            raise OSError(0, f"no file, or one of more than {limits.MOST_BYTES >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check the path") from error
    return to_channels(decode_bytes(data, str(path), image_size, fit), channels).contiguous()


def decode_bytes(data: bytes, where: str, image_size: int, fit: str) -> Tensor:
    """Decode an encoded image to uint8 (1 or 3, image_size, image_size), grey or colour as it comes."""
    return to_square(decode_native(data, where), image_size, fit)


def decode_native(data: bytes, where: str) -> Tensor:
    """Decode an encoded image at its own size to uint8 (1 or 3, H, W), grey or colour as it comes.

    `where` names the image in the ConfigError that is raised if it cannot be decoded.
    """
    return torch.from_numpy(decode_array(data, where).transpose(2, 0, 1))


def decode_array(data: bytes, where: str) -> np.ndarray:
    """The same with the channels last, as Pillow has them: uint8 (H, W, 1 or 3)."""
    try:
        return _decode(data)
    except _DECODING_ERRORS as error:
        raise ConfigError(
            f"{where} cannot be decoded as an image ({_reason(error)}); remove or replace the file"
        ) from error


def to_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 (..., 1 or 3, H, W) as grey (1) or colour (3). Luma is ITU-R BT.601, to the bit as Pillow computes it."""
    if images.shape[-3] == channels:
        return images
    if channels == 3:
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:])
    red, green, blue = images.to(torch.int32).split(1, -3)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16).to(torch.uint8)  # 0.299, 0.587, 0.114 times 2^16


def to_square(images: Tensor, size: int, fit: str) -> Tensor:
    """Fit uint8 (..., C, H, W) into (..., C, size, size); `fit` is that of DataConfig. Antialiased bicubic."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if fit == "stretch":
        return _resize(images, size, size)
    if fit == "crop":
        scale = size / min(height, width)
        images = _resize(images, max(size, round(height * scale)), max(size, round(width * scale)))
        top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
        return images[..., top : top + size, left : left + size]
    scale = min(1.0, size / max(height, width))
    images = _resize(images, max(1, round(height * scale)), max(1, round(width * scale)))
    height, width = images.shape[-2:]
    top, left = (size - height) // 2, (size - width) // 2
    return pad(images, (left, size - width - left, top, size - height - top))


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    batch = images.reshape(-1, *images.shape[-3:])
    resized = interpolate(batch, size=[height, width], mode="bicubic", antialias=True)  # rounds uint8, on a CPU
    return resized.view(*images.shape[:-2], height, width)


def _reason(error: Exception) -> str:
    """The error in a few words."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "unknown format"  # the message of Pillow would name a Python object
    return " ".join(str(error).split())[:100] or type(error).__name__


def _decode(data: bytes) -> np.ndarray:
    try:
        array = _plain(data)
    except _DECODING_ERRORS:  # something else, or damaged: Pillow's own way has the last word
        array = _any(data)
    return array[..., None] if array.ndim == 2 else array


def _any(data: bytes) -> np.ndarray:
    """Any format, first frame, upright, to uint8 (H, W) or (H, W, 3)."""
    if data[:8] == _PNG:
        limits.require_whole_png(data)
    elif data[:2] == _JPEG:
        for block in blocks_in_jpeg(data):
            require_few_tags(block)
    elif data[:2] in (b"II", b"MM"):
        require_few_tags(data)
    with Image.open(io.BytesIO(data), formats=limits.FORMATS) as image:
        limits.require_no_bomb(image, data)
        image.load()  # a PNG may have its EXIF block behind the pixels
        require_few_tags(block_of_info(image.info))
        ImageOps.exif_transpose(image, in_place=True)
        return _eight_bits(image)


def _plain(data: bytes) -> np.ndarray:
    """The same of a JPEG or PNG file that is nothing but pixels. ValueError and others if it is more, or damaged.

    Of a file of a kilobyte, Pillow spends most of its time in Python, on the header. Here the pixels go straight to its
    decoder, and what it makes of a header is remembered, since the files of a set have few different ones.
    """
    header, encoded = _header_and_pixels(data)
    meaning = _meaning(header) if len(header) <= _LONGEST_HEADER else None
    if meaning is None:
        raise ValueError("more than pixels, or a header too long to remember")
    mode, size, codec, arguments, most = meaning
    if most is None:
        limits.require_few_scans(data)
    elif len(encoded) > most:
        raise ValueError("more bytes than its pixels take")
    return np.array(Image.frombytes(mode, size, encoded, codec, arguments))


def _header_and_pixels(data: bytes) -> tuple[bytes, bytes]:
    """What Pillow reads when it opens a file, and what it then gives to the decoder."""
    if data[:2] == _JPEG:
        scan = data.index(b"\xff\xda")
        return data[: scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")], data
    if data[:8] == _PNG and data.endswith(_PNG_END):
        start = data.index(b"IDAT") + 4
        end = len(data) - len(_PNG_END) - 4
        if int.from_bytes(data[start - 8 : start - 4], "big") == end - start:  # all pixels are in this chunk
            pixels = data[start:end]
            if zlib.crc32(pixels, _CRC_OF_IDAT) != int.from_bytes(data[end : end + 4], "big"):
                raise ValueError("the check sum of the pixels does not match")  # Pillow does not look at it
            return data[: start - 8] + bytes(4) + b"IDAT", pixels  # without its length: any file's may differ
    raise ValueError("neither JPEG nor a PNG in its plainest form")


@lru_cache(maxsize=64)
def _meaning(header: bytes) -> tuple[str, tuple[int, int], str, tuple, int | None] | None:
    """Mode, size, decoder, its arguments, and the most bytes that the pixels take (None: several scans, to be counted).
    None unless what the decoder gives is the image: eight bits, no palette, no transparency, upright, in one piece, and
    not large."""
    with Image.open(io.BytesIO(header), formats=("JPEG", "PNG")) as image:
        (codec, box, _, arguments), *more = image.tile
        if (
            image.format not in ("JPEG", "PNG")
            or image.mode not in ("L", "RGB")
            or image.width * image.height > limits.LARGE_PIXELS
            or image.info.keys() & _BEYOND_PIXELS
            or (box, more, getattr(image, "n_frames", 1)) != ((0, 0, *image.size), [], 1)
        ):
            return None
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        if image.format == "PNG":
            return image.mode, image.size, codec, arguments, limits.most_png_bytes(*image.size)
        # The first scan of a JPEG is the only one if it is of all components and not progressive.
        several = "progressive" in image.info or header[header.index(b"\xff\xda") + 4] != image.layers
        return image.mode, image.size, codec, arguments, None if several else limits.MOST_BYTES


def _eight_bits(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode as (H, W) grey or (H, W, 3) colour uint8; transparency is composited on white.

    16-bit grey is divided by 257 and rounded; of 16-bit colour, Pillow keeps the upper byte. Raises ValueError for
    modes without a known range.
    """
    if image.mode.startswith("I"):
        values = np.array(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels have no known range")
        return ((values + 128) // 257).astype(np.uint8)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if image.mode in ("1", "L") else "RGB"
    return np.array(image if image.mode == mode else image.convert(mode))
