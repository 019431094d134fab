"""The evidence lower bound: KL terms, likelihoods, and the schedules of the KL weight.

Every term is summed over pixels or latent dimensions and left a value an image, in nats.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
MIN_VARIANCE = 1e-6  # floor of an optimal variance: 0.001 of a pixel's range of 2, far below its 8-bit step


def kl_divergence(mu: Tensor, logvar: Tensor, prior_mean: Tensor | None = None) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(m, 1)) a dimension, (B, L) nats (Kingma & Welling 2014, appendix B, where m = 0).

    `logvar` is the log-variance: sigma = exp(logvar / 2). `prior_mean` m: (B, L), None for 0. Both distributions moved
    by -m, the divergence is the same.
    """
    distance = mu if prior_mean is None else mu - prior_mean
    return 0.5 * (distance.square() + logvar.exp() - 1 - logvar)


def apply_free_bits(kl: Tensor, batch_mean: Tensor | None, free_bits: float) -> Tensor:
    """max(free_bits, KL_j) in each dimension j (Kingma et al. 2016, equation 15), (B, L) to (B, L).

    Which dimensions lie below is told by `batch_mean` (L,), the mean KL over the whole batch; theirs become
    constants without gradient. None, where no mean is known yet, frees no dimension.
    """
    if free_bits == 0 or batch_mean is None:
        return kl
    return torch.where(batch_mean > free_bits, kl, torch.full_like(kl, free_bits))


def kl_schedule(step: int, kind: Literal["constant", "linear", "cyclical"], warmup_steps: int) -> float:
    """Factor of the KL weight at a step, in [0, 1]: linear warm-up (Sonderby et al. 2016), or cycles of
    `warmup_steps`, each half ramp and half plateau (Fu et al. 2019, equation 6 with R = 0.5)."""
    if kind == "constant":
        return 1.0
    if kind == "linear":
        return min(1.0, step / warmup_steps)
    return min(1.0, 2 * (step % warmup_steps) / warmup_steps)


def bernoulli_nll(x: Tensor, raw: Tensor) -> Tensor:
    """-log p of pixels taken as probabilities, (B,) nats. x: (B, C, H, W) in [-1, 1]; raw: the decoder's output
    before tanh, half the logits. For grey values it is the usual cross-entropy, not a normalised density."""
    return F.binary_cross_entropy_with_logits(2 * raw, (x + 1) / 2, reduction="none").flatten(1).sum(1)


def gaussian_nll(x: Tensor, mean: Tensor, variance: Tensor | float) -> Tensor:
    """-log N(x; mean, variance I), (B,) nats, the normaliser included. x, mean: (B, ...); variance: one number."""
    variance = torch.as_tensor(variance, dtype=x.dtype, device=x.device)
    per_image = x[0].numel() * (LOG_2PI + variance.log())
    return 0.5 * ((x - mean).square().flatten(1).sum(1) / variance + per_image)


def laplace_nll(x: Tensor, mean: Tensor, scale: float) -> Tensor:
    """-log Laplace(x; mean, scale), (B,) nats, the normaliser included."""
    return (x - mean).abs().flatten(1).sum(1) / scale + x[0].numel() * math.log(2 * scale)


def optimal_variance(mean_squared_error: Tensor) -> Tensor:
    """The variance of greatest likelihood of a Gaussian decoder, its mean squared error (sigma-VAE, Rybkin et al.
    2021, equation 5), floored at MIN_VARIANCE."""
    return mean_squared_error.clamp_min(MIN_VARIANCE)


def bits_per_dim(negative_elbo: Tensor | float, dims: int, discrete: bool):
    """Bits a pixel value of a bound in nats an image. A density over [-1, 1] (`discrete=False`) is charged for the
    width 2/255 of an 8-bit step; a Bernoulli likelihood is discrete already."""
    return negative_elbo / (dims * math.log(2)) + (0.0 if discrete else math.log2(255 / 2))
