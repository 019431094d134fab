"""Resizing as the four common Fréchet distance tools do it. Two of them in one comparison spoil the distance."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate, one_hot


def _tf1(x: Tensor, size: int) -> Tensor:
    height, width = x.shape[-2:]
    rows, columns = _tf1_neighbours(height, size, x.device), _tf1_neighbours(width, size, x.device)
    if max(height, width) <= _LARGEST_PRODUCT:
        return _tf1_weights(height, *rows) @ (x @ _tf1_weights(width, *columns).T)
    (low, high, fraction), (left, right, across) = rows, columns
    x = torch.lerp(x.index_select(-2, low), x.index_select(-2, high), fraction[:, None])  # (B, C, size, W)
    return torch.lerp(x.index_select(-1, left), x.index_select(-1, right), across)


_LARGEST_PRODUCT = 128  # pixels; two matrix products are 4 times faster than gathering at 32 and 4 times slower at 1024


def _tf1_neighbours(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper neighbour and the upper one's weight, (size,) each: TensorFlow 1 aligns corners, not centres."""
    position = torch.arange(size, device=device, dtype=torch.float32) * (length / size)
    low = position.long().clamp_max(length - 1)
    return low, (low + 1).clamp_max(length - 1), position - low


def _tf1_weights(length: int, low: Tensor, high: Tensor, fraction: Tensor) -> Tensor:
    """(size, length): the interpolation as a matrix."""
    return one_hot(low, length) * (1 - fraction[:, None]) + one_hot(high, length) * fraction[:, None]


def _bilinear(x: Tensor, size: int) -> Tensor:
    return interpolate(x, (size, size), mode="bilinear", align_corners=False)


def _antialiased(x: Tensor, size: int) -> Tensor:
    return interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)


def _clean(x: Tensor, size: int) -> Tensor:
    # torch's antialiased bicubic has Pillow's kernel. Pillow computes its weights in float64: so they agree to 2e-5,
    # in float32 to 4e-3. clean-fid cuts the overshoots off in the same way.
    wide = x if x.device.type == "mps" else x.double()
    wide = interpolate(wide, (size, size), mode="bicubic", align_corners=False, antialias=True)
    return wide.clamp(0, 255).to(torch.float32)


_FILTERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "tf1": _tf1,
    "pytorch-fid": _bilinear,
    "torchmetrics": _antialiased,
    "clean": _clean,
}
RESIZERS = tuple(_FILTERS)


def resize(images: Tensor, size: int, resizer: str) -> Tensor:
    """uint8 (B, C, H, W) -> float32 (B, C, size, size) in 0 … 255.

    resizer, one of RESIZERS: "tf1", the bilinear of TensorFlow 1 in the original FID (Heusel et al. 2017) and
    torch-fidelity; "pytorch-fid", bilinear without antialias; "torchmetrics", antialiased bilinear, its default since
    1.8; "clean", Pillow's bicubic in floating point (clean-fid, Parmar et al. 2022).
    """
    x = images.to(torch.float32)
    if images.shape[-2:] == (size, size):
        return x  # each of the four is the identity here
    return _FILTERS[resizer](x, size)
