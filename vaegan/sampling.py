"""Image grids, and images to and from files. Images are (B, C, H, W) in [-1, 1]."""

import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to 0 … 255, rounded and clamped, on the CPU."""
    return ((images.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def grid(images: Tensor, columns: int, margin: int = 2) -> Tensor:
    """Tile uint8 images (B, C, H, W) into one (C, H', W'), row by row; small ones are enlarged to 64 pixels a side
    or more, by whole factors, so that single pixels can be seen."""
    zoom = max(1, 64 // images.shape[-1])
    images = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    b, c, h, w = images.shape
    rows = -(-b // columns)
    canvas = torch.full((c, rows * (h + margin) + margin, columns * (w + margin) + margin), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = margin + i // columns * (h + margin), margin + i % columns * (w + margin)
        canvas[:, top : top + h, left : left + w] = image
    return canvas


def beside(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Interleave two batches, so that each reconstruction stands right of its original: (2B, C, H, W)."""
    return torch.stack([originals, reconstructions], 1).flatten(0, 1)


def as_pil(image: Tensor) -> Image.Image:
    """uint8 (1 or 3, H, W) as a PIL image."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def save_png(image: Tensor, path: Path) -> None:
    """Write a uint8 image (C, H, W) as PNG; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    as_pil(image).save(partial, format="png")
    os.replace(partial, path)
