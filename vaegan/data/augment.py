"""Augmentation of whole batches on their device. An image's transformation is a function of seed, epoch and index."""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from vaegan import counter


def augment(
    images: Tensor, indices: Tensor, *, seed: int, epoch: int, flip: bool, crop_padding: int, rotation: float
) -> Tensor:
    """Rotate, crop and mirror uint8 (B, C, H, H) at random; the result has the same shape and type.

    indices: (B,) int64, the images' places in the data set. Each transformation has columns of its own, so that
    switching one on leaves the others as they are.
    """
    if not (flip or crop_padding or rotation):
        return images
    u = counter.uniform(indices.to(images.device), 4, counter.key(seed, "augment", epoch))  # (B, 4)
    if rotation:
        images = _rotate(images, (2 * u[:, 3] - 1) * math.radians(rotation))
    if not (flip or crop_padding):
        return images
    offset = (u[:, 1:3] * (2 * crop_padding + 1)).long() - crop_padding  # (B, 2), each in -padding ... padding
    return _crop_and_flip(images, offset, flip & (u[:, 0] < 0.5))


def _crop_and_flip(images: Tensor, offset: Tensor, flipped: Tensor) -> Tensor:
    """Move the window by (B, 2) whole pixels over the reflected image, then mirror where (B,) says so; no rounding."""
    (batch, channels, size, _), device = images.shape, images.device
    place = torch.arange(size, device=device)
    columns = torch.where(flipped[:, None], size - 1 - place, place)  # (B, W)
    y = _reflect(place + offset[:, :1], size)  # (B, H)
    x = _reflect(columns + offset[:, 1:], size)  # (B, W)
    # Whole rows, of all images and channels: a third of the time that gathering their pixels one by one takes.
    rows = torch.arange(batch * channels, device=device).view(batch, channels, 1) * size + y[:, None]
    images = images.reshape(-1, size).index_select(0, rows.flatten()).view_as(images)
    return images.gather(3, x[:, None, None, :].expand_as(images))


def _reflect(place: Tensor, size: int) -> Tensor:
    """Fold places in -(size-1) ... 2(size-1) back into the image; the edge pixel is not repeated."""
    return (size - 1) - ((size - 1) - place.abs()).abs()


def _rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate by (B,) radians about the centre, bilinear, reflecting at the borders; rounded to uint8."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    grid = affine_grid(matrix, list(images.shape), align_corners=False)
    turned = grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return turned.round().clamp(0, 255).to(torch.uint8)
