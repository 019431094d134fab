"""Differentiable augmentation of what the discriminator sees (DiffAugment, Zhao et al. 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor

COLUMNS = 7  # random numbers an image: three for colour, two for translation, two for cutout


def differentiable_augment(x: Tensor, u: Tensor, policies: tuple[str, ...]) -> Tensor:
    """Augment images (B, C, H, W) by the numbers u (B, 7) in (0, 1); the same u gives the same augmentation."""
    for policy in policies:
        x = _POLICIES[policy](x, u)
    return x


def _color(x: Tensor, u: Tensor) -> Tensor:
    """Brightness by up to 0.5 either way, saturation by a factor up to 2, contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = u[:, :3, None, None, None].unbind(1)
    x = x + (brightness - 0.5)
    if x.shape[1] > 1:
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def _translation(x: Tensor, u: Tensor) -> Tensor:
    """Shift by up to an eighth of the side, zeros moving in."""
    b, c, h, w = x.shape
    reach = max(1, round(h / 8))
    dy, dx = ((u[:, 3:5] * (2 * reach + 1)).floor().long()).unbind(1)  # 0 … 2 reach
    padded = F.pad(x, (reach,) * 4)
    rows = dy[:, None] + torch.arange(h, device=x.device)  # (B, H)
    columns = dx[:, None] + torch.arange(w, device=x.device)  # (B, W)
    padded = padded.gather(2, rows[:, None, :, None].expand(b, c, h, w + 2 * reach))
    return padded.gather(3, columns[:, None, None, :].expand(b, c, h, w))


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    """Set a square of half the side to zero, its centre anywhere in the image."""
    h, w = x.shape[2:]
    centre_y, centre_x = (u[:, 5, None] * h).floor(), (u[:, 6, None] * w).floor()
    y, xs = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    inside_y = (y >= centre_y - h // 4) & (y < centre_y - h // 4 + h // 2)  # (B, H)
    inside_x = (xs >= centre_x - w // 4) & (xs < centre_x - w // 4 + w // 2)  # (B, W)
    return x * ~(inside_y[:, None, :, None] & inside_x[:, None, None, :])


_POLICIES = {"color": _color, "translation": _translation, "cutout": _cutout}
