"""The 4x4 convolutions of stride 2, with the routes that are faster on a CPU than oneDNN's own. Same numbers.

Between a grey image and feature maps oneDNN finds little to do at a time: the gradient of a grey image takes as long as
a convolution of sixty times its arithmetic. As a product between the 16 pixels of each patch and the channels on the
other side it takes a sixth. (With three channels, copying the patches takes what the product saves.)

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
        if x.device.type == "cpu":
            if self.in_channels == 1:
                dtype = torch.bfloat16 if _in_bfloat16(x) else x.dtype
                patches, weight = _ToPatches.apply(x, dtype), _as_matrix(self.weight).to(dtype)
                return _Product.apply(patches, weight, self.bias, _is_channels_last(self.weight))
            if torch.is_grad_enabled() and _in_bfloat16(x):
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
                dtype = torch.bfloat16 if _in_bfloat16(x) else x.dtype
                patches = _TransposedProduct.apply(x.to(dtype), _as_matrix(self.weight).to(dtype))
                images = _FromPatches.apply(patches)
                return images if self.bias is None else images + self.bias
            if torch.is_grad_enabled() and _in_bfloat16(x):
                return _Up.apply(x.bfloat16(), self.weight.bfloat16(), self.bias)
        return super().forward(x)


def _in_bfloat16(x: Tensor) -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _exact(x: Tensor) -> torch.dtype:
    """That in which sums are taken."""
    return torch.promote_types(x.dtype, torch.float32)


def _is_channels_last(x: Tensor) -> bool:
    """Whether channels are next to each other in memory, for one channel too, where torch calls any layout so."""
    return x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last)


def _as_matrix(weight: Tensor) -> Tensor:
    """(n, 1, 4, 4) as (n, 16), in such a way that its gradient comes back in its layout."""
    return (weight.permute(0, 2, 3, 1) if _is_channels_last(weight) else weight).flatten(1)


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
            gradient.sum((0, 2, 3), dtype=_exact(gradient)) if needs_bias else None,
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
            gradient.sum((0, 2, 3), dtype=_exact(gradient)) if needs_bias else None,
        )


def _wanted(ctx) -> tuple[bool, ...]:
    """Which gradients, of input, weight and bias, are to be computed. A gradient penalty's first backward pass passes by
    the weights, of which `ctx.needs_input_grad` knows nothing; torch can tell it of all but leaves."""
    needs_x, needs_weight, *needs_bias = ctx.needs_input_grad[:3]
    node = ctx.next_functions[1][0]  # of the weight, which a cast or a reshape keeps from being a leaf
    leaf = node is None or node.name() == "torch::autograd::AccumulateGrad"
    return needs_x, needs_weight and (leaf or torch._C._will_engine_execute_node(node)), *needs_bias


def _weight_gradient(large: Tensor, small: Tensor) -> Tensor:
    """(n, m, 4, 4) from (B, m, 2H, 2W) and (B, n, H, W): the convolution over the batch of one with the other, in which
    the stride becomes a dilation."""
    # Copying to the contiguous layout first is faster than the one copy between layouts.
    large, small = (x.contiguous().transpose(0, 1).contiguous() for x in (large, small))
    return F.conv2d(large, small, None, 1, _PADDING, dilation=_STRIDE).transpose(0, 1)


# ---------------------------------------------------------------------- patches of grey images


class _ToPatches(torch.autograd.Function):
    """(B, 1, 2H, 2W) to (B, 16, H, W) of `dtype`: the pixels of the 4x4 patches of stride 2, the image being padded by a
    zero."""

    @staticmethod
    def forward(ctx, images: Tensor, dtype: torch.dtype) -> Tensor:
        b, _, h, w = images.shape
        padded = F.pad(images.to(dtype), (_PADDING,) * 4)
        image, _, row, column = padded.stride()
        patches = padded.as_strided((b, 4, 4, h // 2, w // 2), (image, row, column, 2 * row, 2 * column))
        return patches.reshape(b, 16, h // 2, w // 2)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _FromPatches.apply(gradient), None


class _FromPatches(torch.autograd.Function):
    """The transpose of `_ToPatches`: adds up what patches have in common. (B, 16, H, W) to (B, 1, 2H, 2W), of bfloat16 in
    float32."""

    @staticmethod
    def forward(ctx, patches: Tensor) -> Tensor:
        b, _, h, w = patches.shape
        ctx.dtype = patches.dtype
        patches = patches.contiguous().view(b, 2, 2, 2, 2, h, w)
        cells = patches.new_zeros(b, 2, 2, h + 1, w + 1, dtype=_exact(patches))
        for patch, cell in _overlaps(patches, cells):
            cell.add_(patch)
        padded = cells.permute(0, 3, 1, 4, 2).reshape(b, 1, 2 * h + 2, 2 * w + 2)
        return padded[:, :, 1:-1, 1:-1].contiguous()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _ToPatches.apply(gradient, ctx.dtype)


def _overlaps(patches: Tensor, cells: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The four quarters of all patches, each with the 2x2 cells of the image that they cover: pairs (B, 2, 2, H, W).

    Row 2i + p of the patch at y is row p of the cell at y + i, and columns likewise: patches (B, i, p, j, q, H, W).
    """
    h, w = patches.shape[-2:]
    for i in (0, 1):
        for j in (0, 1):
            yield patches[:, i, :, j], cells[..., i : i + h, j : j + w]


class _Product(torch.autograd.Function):
    """Patches (B, 16, H, W) by a matrix (n, 16) to maps (B, n, H, W) in the layout that is asked for."""

    @staticmethod
    def forward(ctx, patches: Tensor, weight: Tensor, bias: Tensor | None, channels_last: bool) -> Tensor:
        ctx.save_for_backward(patches, weight)
        b, _, h, w = patches.shape
        layout = torch.channels_last if channels_last else torch.contiguous_format
        maps = torch.empty((b, len(weight), h, w), dtype=patches.dtype, memory_format=layout)
        left, right, out = _each(weight, b), patches.flatten(2), maps.flatten(2)
        if channels_last:
            left, right, out = right.mT, left.mT, out.mT
        if bias is None:
            torch.bmm(left, right, out=out)
        else:
            bias = bias.to(maps.dtype)
            torch.baddbmm(bias if channels_last else bias[:, None], left, right, out=out)
        return maps

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        patches, weight = ctx.saved_tensors
        needs_patches, needs_weight, needs_bias = _wanted(ctx)
        return (
            _TransposedProduct.apply(gradient, weight) if needs_patches else None,
            _product_weight_gradient(gradient, patches) if needs_weight else None,
            gradient.sum((0, 2, 3), dtype=_exact(gradient)) if needs_bias else None,
            None,
        )


class _TransposedProduct(torch.autograd.Function):
    """Maps (B, n, H, W) by the transpose of a matrix (n, 16) to patches (B, 16, H, W)."""

    @staticmethod
    def forward(ctx, maps: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(maps, weight)
        return torch.bmm(_each(weight, len(maps)).mT, maps.flatten(2)).unflatten(2, maps.shape[2:])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        maps, weight = ctx.saved_tensors
        needs_maps, needs_weight = _wanted(ctx)
        return (
            _Product.apply(gradient, weight, None, _is_channels_last(maps)) if needs_maps else None,
            _product_weight_gradient(maps, gradient) if needs_weight else None,
        )


def _each(weight: Tensor, count: int) -> Tensor:
    return weight.expand(count, *weight.shape)


def _product_weight_gradient(maps: Tensor, patches: Tensor) -> Tensor:
    """(n, 16) from (B, n, H, W) and (B, 16, H, W)."""
    return torch.bmm(maps.flatten(2), patches.flatten(2).mT).sum(0, dtype=_exact(maps)).to(maps.dtype)
