"""The random numbers of a training step."""

from typing import NamedTuple

from torch import Tensor

from vaegan import counter
from vaegan.objectives import augment


class Noise(NamedTuple):
    """All random numbers of a step, for the images of one micro-batch."""

    eps: Tensor  # (B, latent_dim) normal: the posterior's
    z_prior: Tensor  # (B, latent_dim) normal: prior samples
    augment: Tensor  # (2, B, 7) uniform: the discriminator's turn, the autoencoder's
    mix: Tensor  # (B, 1, 1, 1) uniform: interpolations of the gradient penalty


def draw_noise(rows: Tensor, latent_dim: int, seed: int, step: int) -> Noise:
    """The noise of the images at positions `rows` (B,) of the whole batch of a step, whatever process holds them."""
    normal = counter.normal(rows, 2 * latent_dim, counter.key(seed, "latent", step))
    uniform = counter.uniform(rows, 2 * augment.COLUMNS + 1, counter.key(seed, "augment", step))
    mix, pair = uniform[:, :1], uniform[:, 1:].unflatten(1, (2, augment.COLUMNS)).transpose(0, 1)
    return Noise(normal[:, :latent_dim], normal[:, latent_dim:], pair, mix[:, :, None, None])
