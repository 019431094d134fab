"""What a step must know of the whole batch, followed from step to step.

Optimal variances, the gradient balance and free bits need means over the whole batch, all micro-batches and ranks
included. They are taken from the steps before, so that a step needs no communication in its middle, and one
process, many, and any accumulation do the same.
"""

from torch import Tensor


class Statistics:
    """Smoothed means by name: an exponential average of the given decay that starts as the plain average."""

    def __init__(self, decay: float):
        self.decay = decay
        self.values: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def get(self, name: str) -> Tensor | None:
        """The mean followed under that name; None before its first update."""
        return self.values.get(name)

    def update(self, batch: dict[str, Tensor]) -> None:
        """Take in the means of one whole batch, equal on all ranks."""
        for name, value in batch.items():
            n = self.counts.get(name, 0)
            if n == 0:
                self.values[name] = value.detach().clone()
            else:
                self.values[name] = self.values[name].lerp(value, 1 - min(self.decay, n / (n + 1)))
            self.counts[name] = n + 1
