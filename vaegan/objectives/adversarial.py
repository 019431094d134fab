"""Adversarial losses: functions of logits, a value an image, for the discriminator and for the generator."""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class AdversarialLoss(NamedTuple):
    """Both take logits (real, fake), each (B,), and return (B,)."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]


LOSSES: dict[str, AdversarialLoss] = {
    # Goodfellow et al. 2014, equation 1 and the non-saturating generator of section 3: -log D = softplus(-logit).
    "nonsaturating": AdversarialLoss(
        lambda real, fake: F.softplus(-real) + F.softplus(fake),
        lambda real, fake: F.softplus(-fake),
    ),
    # Lim & Ye 2017; Miyato et al. 2018, equations 16 and 17.
    "hinge": AdversarialLoss(
        lambda real, fake: F.relu(1 - real) + F.relu(1 + fake),
        lambda real, fake: -fake,
    ),
    # Mao et al. 2017, equation 9 (a = 0, b = c = 1).
    "least_squares": AdversarialLoss(
        lambda real, fake: 0.5 * ((real - 1).square() + fake.square()),
        lambda real, fake: 0.5 * (fake - 1).square(),
    ),
    # Arjovsky et al. 2017, equations 2 and 3.
    "wasserstein": AdversarialLoss(
        lambda real, fake: fake - real,
        lambda real, fake: -fake,
    ),
    # Relativistic pairing (Jolicoeur-Martineau 2019; Huang et al. 2024, equation 2 with f(t) = -log(1 + exp(-t))).
    "relativistic": AdversarialLoss(
        lambda real, fake: F.softplus(fake - real),
        lambda real, fake: F.softplus(real - fake),
    ),
}

# Logit between "fake" and "real". A loss that knows only differences has none: there it is the batch's midpoint.
THRESHOLDS: dict[str, float | None] = {
    "nonsaturating": 0.0,
    "hinge": 0.0,
    "least_squares": 0.5,
    "wasserstein": None,
    "relativistic": None,
}


def accuracy(kind: str, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Share of real and of fake images that the discriminator calls by their name, two numbers in [0, 1]."""
    threshold = THRESHOLDS[kind]
    if threshold is None:
        threshold = (real.mean() + fake.mean()) / 2
    return (real > threshold).float().mean(), (fake < threshold).float().mean()


def ramp(step: int, start: int, length: int) -> float:
    """Factor of the decoder's adversarial weight: 0 for `start` steps, then linearly to 1 over `length`."""
    if step < start:
        return 0.0
    return 1.0 if length == 0 else min(1.0, (step - start + 1) / length)
