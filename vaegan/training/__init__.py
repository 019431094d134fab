"""Training: the only library code that knows Accelerate."""

from vaegan.training.trainer import NonFiniteLoss, Trainer

__all__ = ["NonFiniteLoss", "Trainer"]
