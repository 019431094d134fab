"""The decoder, which is also the generator: latent vector to image."""

import torch
from torch import Tensor, nn

from vaegan.networks.layers import (
    BASE_SIZE,
    NETWORKS,
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
    ):
        super().__init__()
        require_known("network", network, NETWORKS)
        if network == "mlp":
            sizes = [latent_dim, *reversed(hidden)]
            blocks = [dense(a, b, norm) for a, b in zip(sizes, sizes[1:])]
            last = nn.Linear(sizes[-1], channels * image_size**2)
            self.blocks = nn.Sequential(*blocks, last, nn.Unflatten(1, (channels, image_size, image_size)))
        else:
            plan = channel_plan(width, max_width, image_size)[::-1]  # from 4 pixels up
            head = [nn.Linear(latent_dim, plan[0] * BASE_SIZE**2), nn.Unflatten(1, (plan[0], BASE_SIZE, BASE_SIZE))]
            if network == "light":
                head += [norm_layer(norm, plan[0]), activation()]
                ups = [light_up(a, b, norm) for a, b in zip(plan[:-1], plan[1:-1])]
                last = StridedConvTranspose2d(plan[-2], channels)
            else:
                ups = []
                for a, b in zip(plan, plan[1:]):
                    ups += [ResidualBlock(a, b, norm, "up"), *(ResidualBlock(b, b, norm) for _ in range(depth - 1))]
                ups += [norm_layer(norm, plan[-1]), activation()]
                last = nn.Conv2d(plan[-1], channels, 3, padding=1)
            self.blocks = nn.Sequential(*head, *ups, last)
        initialise(self)
        with torch.no_grad():
            last.weight.mul_(0.2)  # start near grey, where tanh is steep

    def forward(self, z: Tensor) -> Tensor:
        return self.blocks(z).float()
