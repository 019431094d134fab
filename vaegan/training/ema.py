"""Exponential moving average of the weights."""

import copy

import torch
from torch import nn


class EMA:
    """Averaged copy of a module: w <- d w + (1 - d) w', with d = min(decay, (1 + t) / (10 + t)) at update t, so
    that the first, random weights are soon forgotten. Buffers are copied."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        # Once, since walking through the modules takes longer than a small model's update.
        self._parameters = list(self.module.parameters()), list(module.parameters())
        self._buffers = list(zip(self.module.buffers(), module.buffers()))

    @torch.no_grad()
    def update(self) -> None:
        """Follow the module that this is the average of."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(*self._parameters, 1 - decay)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
        self.updates += 1
