"""This process's share of an evaluation, and how the processes add up what they measured."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _alone(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Shares:
    """One process of `processes`; `total` sums a float tensor over them, and every process calls it together."""

    rank: int = 0
    processes: int = 1
    total: Callable[[Tensor], Tensor] = _alone

    @classmethod
    def of(cls, accelerator) -> "Shares":
        """The share of an `accelerate.Accelerator`, or of anything with its process_index, num_processes, reduce and
        device. A sum keeps its precision and comes back to where its tensor was."""
        if accelerator.num_processes == 1:  # also of every device without float64
            return cls()

        def total(value: Tensor) -> Tensor:
            return accelerator.reduce(value.to(accelerator.device), "sum").to(value.device)

        return cls(accelerator.process_index, accelerator.num_processes, total)


ALONE = Shares()  # the one process of a run without others
