"""Training: the only library code that knows Accelerate."""

from vaegan.training.finite import NonFiniteLoss
from vaegan.training.trainer import Trainer

__all__ = ["NonFiniteLoss", "Trainer"]
