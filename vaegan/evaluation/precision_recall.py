"""Precision, recall, density and coverage: how many images lie among the nearest neighbours of the other set's.

Distances are never held whole: blocks of at most `block` x `block` are made, used and dropped.
"""

import torch
from torch import Tensor

from vaegan.config import ConfigError

K = 3  # neighbours for precision and recall, as Kynkäänniemi et al. 2019
K_DENSITY = 5  # neighbours for density and coverage, as Naeem et al. 2020

# Squared distances from float32 products were off by up to 5.4e-7 of |x|² + |y|² (d = 16 to 2048). Here two of them are
# compared.
_ROUNDING = 2e-6


def precision_recall(
    real: Tensor, fake: Tensor, *, k: int = K, k_density: int = K_DENSITY, block: int = 2048
) -> dict[str, float]:
    """`precision`, `recall` and their harmonic mean `f1` (Kynkäänniemi et al. 2019, eq. 2) with k neighbours,
    `density` and `coverage` (Naeem et al. 2020, section 3.2) with k_density, of features (n, d) and (m, d).

    An image is no neighbour of itself, but its duplicates are. An image as far away as the k-th neighbour (`<=`) lies
    inside, also where float32 cannot tell: then images without any difference are all inside. torch-fidelity has `<=`
    too, prdc `<`; without ties all three agree. Raises ConfigError for sets of k images or fewer, features of different
    kinds, or features that are not finite.
    """
    _check(real, fake, max(k, k_density))
    centre = (real.sum(0) + fake.sum(0)) / (len(real) + len(fake))  # cancels less where the features are far from 0
    if not centre.isfinite().all():
        raise ConfigError("features are not finite (remove such images, or compute the features in float32)")
    real_radii = _radii(real, centre, max(k, k_density), block)
    fake_radius = _radii(fake, centre, k, block)[:, k - 1]
    figures = _compare(real, fake, centre, (real_radii[:, k - 1], real_radii[:, k_density - 1], fake_radius), block)
    precision, recall, density, coverage = (figure.double().mean().item() for figure in figures)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "density": density / k_density, "coverage": coverage}


def _check(real: Tensor, fake: Tensor, k: int) -> None:
    for kind, features in (("real", real), ("generated", fake)):
        if len(features) <= k:
            raise ConfigError(
                f"precision and recall with {k} neighbours need at least {k + 1} {kind} images, got {len(features)}"
            )
    if real.shape[1] != fake.shape[1]:
        widths = f"{real.shape[1]} and {fake.shape[1]}"
        raise ConfigError(f"features of {widths} dimensions cannot be compared; use one extractor")


def _squared(x: Tensor, y: Tensor, centre: Tensor, slack: float = 0.0) -> Tensor:
    """Squared distances (b, c) of rows x (b, d) and y (c, d), less `slack` times |x|² + |y|²."""
    x, y = (x - centre).float(), (y - centre).float()
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    return lengths.mul_(1 - slack).addmm_(x, y.T, alpha=-2)


def _radii(x: Tensor, centre: Tensor, k: int, block: int) -> Tensor:
    """Squared distances of x (n, d) to their 1st … k-th neighbours, (n, k)."""
    nearest = torch.full((len(x), k), torch.inf, device=x.device)
    for i in range(0, len(x), block):
        for j in range(i, len(x), block):  # each pair of blocks once: the distances of one serve the other
            squared = _squared(x[i : i + block], x[j : j + block], centre)
            if i == j:
                squared.fill_diagonal_(torch.inf)
            else:
                _keep_nearest(nearest[j : j + block], squared.T)
            _keep_nearest(nearest[i : i + block], squared)
    return nearest


def _keep_nearest(nearest: Tensor, squared: Tensor) -> None:
    nearest.copy_(torch.cat([nearest, squared], 1).topk(nearest.shape[1], largest=False).values)


def _compare(
    real: Tensor, fake: Tensor, centre: Tensor, radii: tuple[Tensor, Tensor, Tensor], block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which fake images lie in a real ball (m,), which real ones in a fake ball (n,), in how many wider real balls each
    fake one lies (m,), and which of these balls hold one (n,)."""
    radius, wide_radius, fake_radius = radii
    in_real, covered = (torch.zeros(len(fake), device=real.device, dtype=t) for t in (torch.bool, torch.int64))
    in_fake, holds = (torch.zeros(len(real), device=real.device, dtype=torch.bool) for _ in range(2))
    for i in range(0, len(real), block):
        for j in range(0, len(fake), block):
            rows, columns = slice(i, i + block), slice(j, j + block)
            squared = _squared(real[rows], fake[columns], centre, _ROUNDING)
            in_real[columns] |= (squared <= radius[rows, None]).any(0)
            in_fake[rows] |= (squared <= fake_radius[columns]).any(1)
            wide = squared <= wide_radius[rows, None]
            covered[columns] += wide.sum(0)
            holds[rows] |= wide.any(1)
    return in_real, in_fake, covered, holds
