"""The decoder, which is also the generator: latent vector to image."""

import torch
from torch import Tensor, nn

from vaegan.networks.layers import (
    BASE_SIZE,
    NETWORKS,
    LabelledSequential,
    Norm,
    ResidualBlock,
    activation,
    channel_plan,
    dense,
    initialise,
    light_up,
    norm_layer,
    require_known,
)
from vaegan.networks.strided import StridedConvTranspose2d


class Decoder(nn.Module):
    """(B, latent_dim) to the image *before* its tanh, (B, channels, image_size, image_size) float32.

    tanh of it is the image in [-1, 1]; twice it are the logits of a Bernoulli pixel, since
    (tanh(h) + 1) / 2 = sigmoid(2h). `image_size` must be 4 * 2^k for `light` and `conv` (ValueError otherwise).

    With `classes` above 0 it takes labels (B,) int64 too, 0 … classes - 1, which choose gain and bias of every
    normalisation (so that `norm` must not be none: ValueError).
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        latent_dim: int,
        network: str = "light",
        width: int = 32,
        max_width: int = 512,
        depth: int = 1,
        hidden: tuple[int, ...] = (512, 256),
        norm: Norm = "group",
        classes: int = 0,
    ):
        super().__init__()
        require_known("network", network, NETWORKS)
        if classes and norm == "none":
            raise ValueError(
                "a conditional decoder needs a norm, through which the class enters: choose group or batch"
            )
        if network == "mlp":
            sizes = [latent_dim, *reversed(hidden)]
            blocks = [dense(a, b, norm, classes) for a, b in zip(sizes, sizes[1:])]
            last = nn.Linear(sizes[-1], channels * image_size**2)
            self.blocks = LabelledSequential(*blocks, last, nn.Unflatten(1, (channels, image_size, image_size)))
        else:
            plan = channel_plan(width, max_width, image_size)[::-1]  # from 4 pixels up
            head = [nn.Linear(latent_dim, plan[0] * BASE_SIZE**2), nn.Unflatten(1, (plan[0], BASE_SIZE, BASE_SIZE))]
            if network == "light":
                head += [norm_layer(norm, plan[0], classes), activation()]
                ups = [light_up(a, b, norm, classes) for a, b in zip(plan[:-1], plan[1:-1])]
                last = StridedConvTranspose2d(plan[-2], channels)
            else:
                ups = []
                for a, b in zip(plan, plan[1:]):
                    ups.append(ResidualBlock(a, b, norm, "up", classes))
                    ups += [ResidualBlock(b, b, norm, classes=classes) for _ in range(depth - 1)]
                ups += [norm_layer(norm, plan[-1], classes), activation()]
                last = nn.Conv2d(plan[-1], channels, 3, padding=1)
            self.blocks = LabelledSequential(*head, *ups, last)
        initialise(self)
        with torch.no_grad():
            last.weight.mul_(0.2)  # start near grey, where tanh is steep

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.blocks(z, y).float()
