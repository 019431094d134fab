"""Micro-batches decoded by worker processes, which write them into memory that they share with this one."""

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vaegan.config import ConfigError
from vaegan.data.images import ImageSet

_AHEAD = 4  # micro-batches that each worker may be ahead


def decoded(
    images: ImageSet, workers: int, plan: Iterator[tuple[int, Tensor]], batch_size: int, transform: Callable | None
) -> Iterator[Tensor]:
    """uint8 (batch_size, C, H, W) of each (epoch, rows) of a plan, transformed. The next one is written over it.

    Workers live as long as this iterator; 0 of them decode in this process. Raises ConfigError if a file is damaged, or
    so many that no others may stand in for them.
    """
    slots = _slots(workers, (batch_size, *images.shape))
    free = deque(range(len(slots)))
    loader = DataLoader(
        _Decoder(images, slots, transform),
        batch_size=None,  # an item is a whole micro-batch
        sampler=((free.popleft(), epoch, rows.tolist()) for epoch, rows in plan),
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        generator=torch.Generator(),  # its own, or it would draw from torch's global one
    )
    for slot, problem, found in loader:
        if found:
            images.substitutes.report(found)
        if problem:
            raise ConfigError(problem)
        yield slots[slot]
        free.append(slot)


def _slots(workers: int, shape: tuple[int, ...]) -> Tensor:
    """Room for as many micro-batches as there can be at once, one of them in use. Workers share it: to send them, each
    in memory of its own, took eight times as long as to copy them."""
    slots = torch.empty(_AHEAD * workers + 1, *shape, dtype=torch.uint8)
    try:
        return slots.share_memory_() if workers else slots
    except RuntimeError as error:
        raise ConfigError(
            f"data.workers {workers} need {slots.nbytes / 2**20:.0f} MiB of shared memory, which cannot be had "
            f"({' '.join(str(error).split())[:100]}); enlarge /dev/shm, or set data.workers to 0"
        ) from error


def to_float_alone(images: Tensor) -> Tensor:
    """`to_float` on a CPU whose other cores are busy decoding: torch's threads would wait for each other."""
    x = images.numpy().astype(np.float32)
    x /= np.float32(127.5)
    x -= np.float32(1)
    return torch.from_numpy(x)


class _Decoder(Dataset):
    """What a worker runs."""

    def __init__(self, images: ImageSet, slots: Tensor, transform: Callable | None):
        self._images, self._slots, self._transform = images, slots, transform

    def __getitem__(self, task: tuple[int, int, list[int]]) -> tuple[int, str, dict[int, str]]:
        """Fill a slot; its number, what is wrong with a file (an exception would arrive wrapped in a trace), and which
        damaged rows this worker has newly found, others standing in for them."""
        slot, epoch, rows = task
        known = len(self._found())
        try:
            pixels = self._images.decode(rows)
        except ConfigError as error:
            return slot, str(error), {}
        if self._transform is not None:
            pixels = self._transform(pixels, torch.tensor(rows), epoch=epoch)
        self._slots[slot].copy_(pixels)
        return slot, "", dict(list(self._found().items())[known:]) if len(self._found()) > known else {}

    def _found(self) -> dict[int, str]:
        return self._images.substitutes.found if self._images.substitutes else {}
