"""The 4x4 convolutions of stride 2, with the two routes that are faster on a CPU than oneDNN's own. Same numbers.

Between a grey image and feature maps oneDNN finds little to do at a time: the gradient of a grey image takes as long as
a convolution of sixty times its arithmetic. As a 1x1 convolution between the 16 pixels of each patch and the channels
on the other side it takes a third. (With three channels, copying the patches takes what the product saves.)

In bfloat16 the gradient of the weights takes two to three times as long as a convolution of the same arithmetic, and
that is what it is computed as. Benchmarks are in benchmarks/README.md.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_KERNEL, _STRIDE, _PADDING = 4, 2, 1


class StridedConv2d(nn.Conv2d):
    """nn.Conv2d(in_channels, out_channels, 4, 2, 1): (B, in_channels, 2H, 2W) to (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, _KERNEL, _STRIDE, _PADDING, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled():
            if self.in_channels == 1 and x.requires_grad:
                return F.conv2d(_ToPatches.apply(x), _as_1x1(self.weight), self.bias)
            if self.in_channels > 1 and _in_bfloat16(x):
                return _Down.apply(x.bfloat16(), self.weight.bfloat16(), self.bias)
        return super().forward(x)


class StridedConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1): (B, in_channels, H, W) to (B, out_channels, 2H, 2W).

    Under autocast a grey image is float32, in which its overlapping patches are added up.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, _KERNEL, _STRIDE, _PADDING, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            if self.out_channels == 1:
                patches = F.conv2d(x, _as_1x1(self.weight).transpose(0, 1).contiguous())  # (B, 16, H, W)
                images = _FromPatches.apply(patches.float() if _in_bfloat16(x) else patches)
                return images if self.bias is None else images + self.bias
            if torch.is_grad_enabled() and _in_bfloat16(x):
                return _Up.apply(x.bfloat16(), self.weight.bfloat16(), self.bias)
        return super().forward(x)


def _in_bfloat16(x: Tensor) -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _as_1x1(weight: Tensor) -> Tensor:
    """(N, 1, 4, 4) as (N, 16, 1, 1)."""
    return weight.flatten(1)[:, :, None, None]


# ---------------------------------------------------------------------- gradients of bfloat16 weights


class _Down(torch.autograd.Function):
    """A convolution. The gradient of `x` is differentiated again by a gradient penalty, so it is one of these too."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, None if bias is None else bias.to(x.dtype), _STRIDE, _PADDING)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = _wanted(ctx)
        return (
            _Up.apply(gradient, weight, None) if needs_x else None,
            _weight_gradient(x, gradient) if needs_weight else None,
            gradient.float().sum((0, 2, 3)) if needs_bias else None,
        )


class _Up(torch.autograd.Function):
    """A transposed convolution, likewise."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv_transpose2d(x, weight, None if bias is None else bias.to(x.dtype), _STRIDE, _PADDING)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = _wanted(ctx)
        return (
            _Down.apply(gradient, weight, None) if needs_x else None,
            _weight_gradient(gradient, x) if needs_weight else None,
            gradient.float().sum((0, 2, 3)) if needs_bias else None,
        )


def _wanted(ctx) -> tuple[bool, bool, bool]:
    """Which gradients are to be computed. A gradient penalty's first backward pass passes by the weights, of which
    `ctx.needs_input_grad` knows nothing; torch can tell it of all but leaves."""
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad
    node = ctx.next_functions[1][0]  # of the weight, which the cast to bfloat16 keeps from being a leaf
    leaf = node is None or node.name() == "torch::autograd::AccumulateGrad"
    return needs_x, needs_weight and (leaf or torch._C._will_engine_execute_node(node)), needs_bias


def _weight_gradient(large: Tensor, small: Tensor) -> Tensor:
    """(n, m, 4, 4) from (B, m, 2H, 2W) and (B, n, H, W): the convolution over the batch of one with the other, in which
    the stride becomes a dilation."""
    large, small = large.transpose(0, 1).contiguous(), small.transpose(0, 1).contiguous()
    return F.conv2d(large, small, None, 1, _PADDING, dilation=_STRIDE).transpose(0, 1)


# ---------------------------------------------------------------------- patches of grey images


class _ToPatches(torch.autograd.Function):
    """(B, 1, 2H, 2W) to (B, 16, H, W): the pixels of the 4x4 patches of stride 2, the image being padded by a zero."""

    @staticmethod
    def forward(ctx, images: Tensor) -> Tensor:
        b, _, h, w = images.shape
        cells = F.pixel_unshuffle(F.pad(images, (1, 1, 1, 1)), 2).unflatten(1, (2, 2))  # (B, 2, 2, H + 1, W + 1)
        patches = images.new_empty(b, 2, 2, 2, 2, h // 2, w // 2)
        for patch, cell in _overlaps(patches, cells):
            patch.copy_(cell)
        return patches.flatten(1, 4)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _FromPatches.apply(gradient)


class _FromPatches(torch.autograd.Function):
    """The transpose of `_ToPatches`: adds up what patches have in common. (B, 16, H, W) to (B, 1, 2H, 2W)."""

    @staticmethod
    def forward(ctx, patches: Tensor) -> Tensor:
        b, _, h, w = patches.shape
        patches = patches.contiguous().view(b, 2, 2, 2, 2, h, w)
        cells = patches.new_zeros(b, 2, 2, h + 1, w + 1)
        for patch, cell in _overlaps(patches, cells):
            cell.add_(patch)
        return F.pixel_shuffle(cells.flatten(1, 2), 2)[:, :, 1:-1, 1:-1].contiguous()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _ToPatches.apply(gradient)


def _overlaps(patches: Tensor, cells: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The four quarters of all patches, each with the 2x2 cells of the image that they cover: pairs (B, 2, 2, H, W).

    Row 2i + p of the patch at y is row p of the cell at y + i, and columns likewise: patches (B, i, p, j, q, H, W).
    """
    h, w = patches.shape[-2:]
    for i in (0, 1):
        for j in (0, 1):
            yield patches[:, i, :, j], cells[..., i : i + h, j : j + w]
