"""Known failures, recognised by their figures: which one, from which number, and what to turn.

Functions of figures that return {name of the failure: one line}; empty when all is well.
"""

import torch
from torch import Tensor

from vaegan.config import Config

GRACE_STEPS = 200  # in which any discriminator tells the first, random images
SATURATED = 0.98  # accuracy on real and on fake images above which the decoder learns little from the discriminator
COLLAPSED_UNITS = 0.1  # share of active latents
COLLAPSED_SPREAD = 0.3  # distance among samples over that among real images


def training(figures: dict[str, float], step: int, config: Config) -> dict[str, str]:
    """Looks at the scalars of a logging interval."""
    real, fake = figures.get("accuracy_real", 0.0), figures.get("accuracy_fake", 0.0)
    if min(real, fake) <= SATURATED or step <= config.objective.adversarial_start + GRACE_STEPS:
        return {}
    return {
        "saturated discriminator": f"saturated discriminator: it tells {real:.0%} of real and {fake:.0%} of fake images; "
        "raise objective.r1_weight, lower optimizer.discriminator_lr, or set objective.augment"
    }


def validation(figures: dict[str, float], config: Config) -> dict[str, str]:
    """Looks at the validation figures."""
    active = figures.get("val/active_units")
    if active is None or active > COLLAPSED_UNITS * config.model.latent_dim:
        return {}
    return {
        "posterior collapse": f"posterior collapse: {active:.0f} of {config.model.latent_dim} latents are active "
        f"(KL {figures['val/kl']:.2f} nats); lower objective.kl_weight, or set objective.kl_schedule linear with "
        "kl_warmup_steps, or objective.free_bits"
    }


def samples(spread: tuple[float, float] | None) -> dict[str, str]:
    """Looks at the mean distance between two samples and between two real images (`mean_distance` of each)."""
    if spread is None or spread[0] >= COLLAPSED_SPREAD * spread[1]:
        return {}
    return {
        "collapsed samples": f"collapsed samples: two of them differ by {spread[0]:.2f}, two real images by "
        f"{spread[1]:.2f}; raise objective.r1_weight, choose objective.adversarial_loss relativistic, or lower "
        "objective.adversarial_weight"
    }


def mean_distance(images: Tensor) -> float:
    """Root mean squared difference a pixel between two images of a batch (B, C, H, W), B at least 2."""
    x = images.float().flatten(1)
    squared = 2 * (x - x.mean(0)).square().sum() / (len(x) - 1)  # mean over pairs of |a - b|^2
    return torch.sqrt(squared / x.shape[1]).item()
