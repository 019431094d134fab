"""Building blocks shared by encoder, decoder and discriminator."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vaegan.networks.strided import StridedConv2d, StridedConvTranspose2d

Norm = Literal["group", "batch", "none"]
NORMS, NETWORKS = ("group", "batch", "none"), ("light", "conv", "mlp")
BASE_SIZE = 4  # pixels a side where the convolutional pyramids end


def levels(image_size: int) -> int:
    """Number of halvings from `image_size` (4 * 2^k pixels, k at least 1) to 4 pixels."""
    k = round(math.log2(image_size / BASE_SIZE)) if image_size > BASE_SIZE else 0
    if k < 1 or BASE_SIZE * 2**k != image_size:
        raise ValueError(f"image_size must be 4 * 2^k pixels with k >= 1, got {image_size} (choose 32 or 64)")
    return k


def channel_plan(width: int, max_width: int, image_size: int) -> list[int]:
    """Channels at each resolution, from the full one down to 4 pixels: `width` doubled at each halving."""
    return [min(width * 2**i, max_width) for i in range(levels(image_size) + 1)]


def require_known(field: str, value: str, choices: tuple[str, ...]) -> None:
    """ValueError unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{field} must be one of {', '.join(choices)}, got {value!r}")


def norm_layer(kind: Norm, channels: int, classes: int = 0) -> nn.Module:
    """Normalisation over `channels`; `group` has groups of at least 4 channels, at most 32 of them. With `classes` its
    gain and bias are the class's."""
    require_known("norm", kind, NORMS)
    if kind == "none":
        return nn.Identity()
    plain = classes == 0
    if kind == "group":
        groups = math.gcd(32, max(1, channels // 4)) if channels % 4 == 0 else 1
        norm = nn.GroupNorm(groups, channels, affine=plain)
    else:
        norm = nn.BatchNorm2d(channels, affine=plain)
    return norm if plain else ConditionalNorm(norm, channels, classes)


def activation() -> nn.Module:
    return nn.LeakyReLU(0.2, inplace=True)


def he_init(module: nn.Module) -> None:
    """He et al. (2015) normal weights for leaky ReLU 0.2, zero biases; used with `module.apply`.

    Transposed convolutions of stride s hear only (kernel/s)^2 inputs of each channel, so their fan-in is smaller.
    """
    if isinstance(module, nn.ConvTranspose2d):
        fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1] / (module.stride[0] ** 2)
        nn.init.normal_(module.weight, std=math.sqrt(2 / (1 + 0.2**2) / fan_in))
    elif isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, a=0.2)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def zero_embedding(rows: int, columns: int) -> nn.Embedding:
    """An embedding of zeros. It draws no random numbers, so that the other weights are those of a model without it."""
    return nn.Embedding.from_pretrained(torch.zeros(rows, columns), freeze=False)


class ConditionalNorm(nn.Module):
    """(B, C, …) and labels (B,) to (1 + gain_y) * norm(x) + bias_y, where the class enters a decoder (Dumoulin et al.
    2017, section 2.2, there instance normalisation; de Vries et al. 2017). It starts as the plain normalisation."""

    def __init__(self, norm: nn.Module, channels: int, classes: int):
        super().__init__()
        self.norm = norm  # without gain and bias of its own
        self.gain, self.bias = zero_embedding(classes, channels), zero_embedding(classes, channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.norm(x)
        shape = (len(x), -1, *[1] * (x.ndim - 2))
        # Under autocast in float32, as gain and bias of the plain layers are.
        return torch.addcmul(self.bias(y).view(shape), x, 1 + self.gain(y).view(shape)).to(x.dtype)


class LabelledSequential(nn.Sequential):
    """nn.Sequential that hands labels (B,) on to those of its layers that take them."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, y) if isinstance(layer, (ConditionalNorm, ResidualBlock, LabelledSequential)) else layer(x)
        return x


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016), optionally halving or doubling the resolution.

    (B, in_channels, H, W) to (B, out_channels, H', W'), H' = H/2, H or 2H for resample "down", "none", "up".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: Norm,
        resample: Literal["down", "none", "up"] = "none",
        classes: int = 0,
    ):
        super().__init__()
        pool = {
            "down": lambda: nn.AvgPool2d(2),
            "none": nn.Identity,
            "up": lambda: nn.Upsample(scale_factor=2, mode="nearest"),
        }[resample]
        up = resample == "up"
        self.residual = LabelledSequential(
            norm_layer(norm, in_channels, classes),
            nn.LeakyReLU(0.2),  # not in place: the shortcut reads the same tensor
            pool() if up else nn.Identity(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            norm_layer(norm, out_channels, classes),
            activation(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.Identity() if up else pool(),
        )
        same = in_channels == out_channels
        # The 1x1 convolution runs at the smaller of the two resolutions.
        project = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.shortcut = nn.Sequential(project, pool()) if up else nn.Sequential(pool(), project)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.shortcut(x) + self.residual(x, y)

    def start_as_shortcut(self) -> None:
        """Zero the last convolution, so that a deep stack starts as its shortcuts (Zhang et al. 2019, Fixup)."""
        nn.init.zeros_(self.residual[6].weight)
        for project in self.shortcut:
            if isinstance(project, nn.Conv2d):
                nn.init.kaiming_normal_(project.weight, nonlinearity="linear")  # no activation follows it


def light_down(in_channels: int, out_channels: int, norm: Norm) -> nn.Sequential:
    """(B, in, H, W) to (B, out, H/2, W/2) by one strided convolution."""
    conv = StridedConv2d(in_channels, out_channels, bias=norm == "none")
    return nn.Sequential(conv, norm_layer(norm, out_channels), activation())


def light_up(in_channels: int, out_channels: int, norm: Norm, classes: int = 0) -> LabelledSequential:
    """(B, in, H, W) to (B, out, 2H, 2W) by one transposed convolution."""
    conv = StridedConvTranspose2d(in_channels, out_channels, bias=norm == "none")
    return LabelledSequential(conv, norm_layer(norm, out_channels, classes), activation())


def dense(in_features: int, out_features: int, norm: Norm, classes: int = 0) -> LabelledSequential:
    """(B, in) to (B, out)."""
    require_known("norm", norm, NORMS)
    normalise: nn.Module = nn.Identity()
    if norm != "none":
        plain = classes == 0
        normalise = (
            nn.LayerNorm(out_features, 1e-5, plain) if norm == "group" else nn.BatchNorm1d(out_features, affine=plain)
        )
        normalise = normalise if plain else ConditionalNorm(normalise, out_features, classes)
    return LabelledSequential(nn.Linear(in_features, out_features, bias=norm == "none"), normalise, activation())


def downward_blocks(
    network: Literal["light", "conv", "mlp"],
    image_size: int,
    channels: int,
    width: int,
    max_width: int,
    depth: int,
    hidden: tuple[int, ...],
    norm: Norm,
) -> tuple[nn.ModuleList, int]:
    """Blocks from an image (B, channels, image_size, image_size) down to features, and their flat size.

    The encoder and the discriminator are both made of them. The first block of `mlp` flattens.
    """
    require_known("network", network, NETWORKS)
    if network == "mlp":
        sizes = [channels * image_size**2, *hidden]
        blocks = [dense(a, b, norm) for a, b in zip(sizes, sizes[1:])]
        blocks[0].insert(0, nn.Flatten())
        return nn.ModuleList(blocks), sizes[-1]
    plan = channel_plan(width, max_width, image_size)
    if network == "light":
        # `width` belongs to the full resolution, at which the light variant has no convolution.
        blocks = [light_down(a, b, norm) for a, b in zip([channels, *plan[1:]], plan[1:])]
    else:
        blocks = []
        for i, (a, b) in enumerate(zip(plan, plan[1:])):
            block = [nn.Conv2d(channels, a, 3, padding=1)] if i == 0 else []
            block += [ResidualBlock(a, a, norm) for _ in range(depth - 1)]
            blocks.append(nn.Sequential(*block, ResidualBlock(a, b, norm, "down")))
        blocks[-1].extend([norm_layer(norm, plan[-1]), activation()])
    return nn.ModuleList(blocks), plan[-1] * BASE_SIZE**2


def initialise(module: nn.Module) -> None:
    """He initialisation throughout, residual blocks starting as their shortcuts."""
    module.apply(he_init)
    for block in module.modules():
        if isinstance(block, ResidualBlock):
            block.start_as_shortcut()


def flat_as(rows: Tensor, x: Tensor) -> Tensor:
    """Rows (N, C·H·W) or (N, C, H, W) as (N, C·H·W), in the order in which the features of x (B, C, H, W) lie in memory:
    of x itself a view, through which gradients come back in its layout."""
    if x.ndim == 4 and not x.is_contiguous():
        rows = rows.view(-1, *x.shape[1:]).permute(0, 2, 3, 1)
    return rows.flatten(1)


def constrain_spectral_norm(module: nn.Module) -> None:
    """Divide the weight of each linear, convolutional and embedding layer by its largest singular value (Miyato et al.
    2018; the class embedding too, as in the authors' code of Miyato & Koyama 2018)."""
    for layer in list(module.modules()):
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.Embedding)):
            spectral_norm(layer)
