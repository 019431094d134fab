"""Learning rates as functions of the step: nothing to carry, nothing to restore."""

import math
from typing import Literal


def learning_rate_factor(
    step: int, total_steps: int, kind: Literal["constant", "linear", "cosine"], warmup_steps: int
) -> float:
    """Factor in [0, 1] of the learning rate at a step: a linear warm-up, then `kind` down to 0 at `total_steps`
    (cosine: Loshchilov & Hutter 2017, equation 5 without restarts)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[kind]
