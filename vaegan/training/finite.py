"""A run that has become NaN or infinite stops, and keeps what was sound."""

import torch
from torch import nn


class NonFiniteLoss(FloatingPointError):
    """A loss became NaN or infinite; the message names the term and the step."""


def require_finite_losses(bad: list[str], step: int) -> None:
    """NonFiniteLoss if there are `bad` terms."""
    if bad:
        raise NonFiniteLoss(
            f"{', '.join(bad)} not finite at step {step}; the last checkpoint is kept. Lower optimizer.lr and "
            "optimizer.discriminator_lr, or set optimizer.grad_clip, and go on with --resume auto"
        )


def require_finite_weights(modules: dict[str, nn.Module | None], step: int) -> None:
    """NonFiniteLoss if a weight is not finite. A gradient may overflow where no loss did; what is saved must be sound."""
    for name, module in modules.items():
        if module is not None and not all(torch.stack([p.isfinite().all() for p in module.parameters()]).tolist()):
            raise NonFiniteLoss(f"weights of the {name} not finite at step {step}; the last checkpoint is kept")
