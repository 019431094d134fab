"""Latent vectors: draws from the prior, with the labels that go with them, and the way from one to another."""

import torch
from torch import Tensor

from vaegan import counter


def prior(n: int, latent_dim: int, seed: int = 0, start: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """The standard normal latents (n, latent_dim) of the images that `VAEGAN.sample(n, seed, start)` decodes."""
    rows = torch.arange(start, start + n, device=device)
    return counter.normal(rows, latent_dim, counter.key(seed, "sample"))


def labels(n: int, classes: int, seed: int = 0, start: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Labels (n,) int64 of those images, each class as likely: what `sample` takes where none are given."""
    rows = torch.arange(start, start + n, device=device)
    drawn = (counter.uniform(rows, 1, counter.key(seed, "label"))[:, 0] * classes).long()
    return drawn.clamp_max(classes - 1)  # float32 rounds the last of many classes up


def checked_labels(given: Tensor | int | None, n: int, classes: int, device: torch.device) -> Tensor | None:
    """Labels of n images, or one for all, as (n,) int64 on a device; None where a model has no classes.

    ValueError for labels out of range or of another shape, for none of a conditional model, for some of another.
    """
    if not classes:
        if given is not None:
            raise ValueError("this model is not conditional: leave the labels out")
        return None
    wanted = f"give labels 0 … {classes - 1}, {n} of them as int64 or one for all"
    if given is None:
        raise ValueError(f"this model is conditional: {wanted}")
    y = torch.as_tensor(given, device=device)
    if y.is_floating_point() or y.shape not in ((), (n,)) or ((y < 0) | (y >= classes)).any():
        raise ValueError(f"these labels do not fit this conditional model: {wanted}")
    return y.long().expand(n)


def proportional(of: Tensor, n: int) -> Tensor:
    """n labels in the proportions of a set's (N,): those of images that lie evenly spread over it, some of them more
    than once where n is above N."""
    return of[torch.arange(n) * len(of) // n]


def interpolate(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Spherical interpolation from a to b, both (..., latent_dim), ends included: (..., steps, latent_dim).

    Along the great arc, the length changing evenly (Shoemake 1985; White 2016): the straight line would pass through
    the middle of a Gaussian, where in many dimensions none of its mass lies. Parallel and opposite vectors, between
    which there is no arc or no single one, take the line. One step gives a.
    """
    a, b = a[..., None, :], b[..., None, :]  # (..., 1, latent_dim)
    t = torch.linspace(0, 1, steps, device=a.device, dtype=a.dtype)[:, None]  # (steps, 1)
    length_a, length_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    tiny = torch.finfo(a.dtype).tiny
    unit_a, unit_b = a / length_a.clamp_min(tiny), b / length_b.clamp_min(tiny)
    # Kahan 2006, "How futile are mindless assessments of roundoff", section 12: between nearly opposite float32
    # vectors the arc cosine is off by a tenth, and the arc's length with it.
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=-1, keepdim=True), (unit_a + unit_b).norm(dim=-1, keepdim=True))
    sine = angle.sin()
    on_line = sine.abs() < 1e-4
    arc = (((1 - t) * angle).sin() * unit_a + (t * angle).sin() * unit_b) / sine.where(~on_line, 1)
    between = torch.where(on_line, torch.lerp(a, b, t), arc * torch.lerp(length_a, length_b, t))
    return torch.where(t == 0, a, torch.where(t == 1, b, between))  # the ends to the bit
