"""Arithmetic on latent vectors."""

import torch
from torch import Tensor


def interpolate(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Spherical interpolation from a to b, both (latent_dim,), ends included: (steps, latent_dim).

    Along the great arc, the length changing evenly (Shoemake 1985; White 2016): the straight line would pass through
    the middle of a Gaussian, where in many dimensions none of its mass lies. Parallel vectors take the line.
    """
    t = torch.linspace(0, 1, steps, device=a.device)[:, None]
    length_a, length_b = a.norm(), b.norm()
    angle = torch.arccos((a @ b / (length_a * length_b).clamp_min(1e-12)).clamp(-1, 1))
    if angle.sin() < 1e-4:
        return torch.lerp(a[None], b[None], t)
    direction = (((1 - t) * angle).sin() * (a / length_a) + (t * angle).sin() * (b / length_b)) / angle.sin()
    return direction * torch.lerp(length_a, length_b, t)
