"""Gradient penalties of the discriminator."""

import torch
from torch import Tensor


def input_gradients(logits: Tensor, x: Tensor) -> Tensor:
    """d logits_i / d x_i, shaped like x (B, C, H, W), itself differentiable. Right only where an image's logit
    depends on that image alone, which the discriminator guarantees."""
    (gradients,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradients


def zero_centred(gradients: Tensor) -> Tensor:
    """||g||^2 / 2 an image, (B,): R1 at real images, R2 at generated ones (Mescheder et al. 2018, equations 9, 10)."""
    return 0.5 * gradients.square().flatten(1).sum(1)


def one_centred(gradients: Tensor) -> Tensor:
    """(||g|| - 1)^2 an image, (B,), at interpolations (WGAN-GP, Gulrajani et al. 2017, equation 3)."""
    return (gradients.square().flatten(1).sum(1).add(1e-12).sqrt() - 1).square()
