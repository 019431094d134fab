"""From the bytes of an image file to a square uint8 tensor, whatever the format, mode or size.

Pillow alone decodes. torchvision's decoders took a quarter to a third less time for JPEG files of 1 KB, but they are
deprecated (0.29), and the one for PNG ends the process with a segmentation fault on some damaged files. Colour
profiles are ignored.
"""

import io
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from vaegan.config import ConfigError

# What Pillow raises on damaged files: its parsers do arithmetic and look-ups with whatever numbers a file holds.
# UnidentifiedImageError is an OSError.
_DECODING_ERRORS = (
    OSError, EOFError, SyntaxError, ValueError, RuntimeError, ArithmeticError, LookupError, TypeError, AttributeError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip


def decode_file(path: str | Path, image_size: int, channels: int, fit: str) -> Tensor:
    """Read one image file as uint8 (channels, image_size, image_size). Raises ConfigError naming the file."""
    try:
        data = Path(path).read_bytes()
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
    return torch.nn.functional.pad(images, (left, size - width - left, top, size - height - top))


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    return resize(images, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)


def _reason(error: Exception) -> str:
    """The error in a few words."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "unknown format"  # the message of Pillow would name a Python object
    return " ".join(str(error).split())[:100] or type(error).__name__


def _decode(data: bytes) -> Tensor:
    """Any format, first frame, upright, to uint8 (1 or 3, H, W)."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and not 0 <= data.rfind(b"IEND") <= len(data) - 8:
        raise ValueError("truncated PNG")  # Pillow accepts a file that ends after the last pixel
    with Image.open(io.BytesIO(data)) as image:
        ImageOps.exif_transpose(image, in_place=True)
        array = _eight_bits(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


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
