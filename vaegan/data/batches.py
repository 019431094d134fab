"""Training batches: any step's batch is a function of seed, step and place, whatever came before it.

So a run goes on exactly from any step, and neither storage, workers, processes nor micro-batches change what is seen.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from vaegan import counter
from vaegan.config import ConfigError, DataConfig
from vaegan.data.augment import augment
from vaegan.data.images import ImageSet
from vaegan.data.workers import decoded, to_float_alone


def training_batches(
    images: ImageSet,
    config: DataConfig,
    *,
    start_step: int,
    stop_step: int,
    batch_size: int,
    accumulate: int,
    rank: int,
    world_size: int,
    seed: int,
    device: torch.device,
) -> Iterator[list[Tensor]]:
    """One list of `accumulate` micro-batches a step, for the steps from start_step up to but without stop_step.

    A micro-batch is float32 (batch_size / world_size / accumulate, C, H, W) in [-1, 1] on `device`, augmented. The
    whole batch has `batch_size` images; an epoch's last partial batch is dropped. Raises ConfigError at once if
    batch_size does not fit, and while iterating a streaming set if a file is damaged.
    """
    parts = world_size * accumulate
    if batch_size % parts:
        above = -(-batch_size // parts) * parts
        raise ConfigError(
            f"train.batch_size must be a multiple of processes times train.accumulate ({world_size} x {accumulate}), "
            f"got {batch_size} (choose {max(parts, above - parts)} or {above if above > parts else 2 * parts})"
        )
    if batch_size > len(images):
        raise ConfigError(
            f"train.batch_size must be at most the {len(images)} training images, got {batch_size} (lower it, or give "
            "more images)"
        )

    device = torch.device(device)

    def plan() -> Iterator[tuple[int, Tensor, Tensor]]:
        return _micro_batches(
            len(images), start_step, stop_step, batch_size, accumulate, rank, world_size, seed, device
        )

    transform = partial(
        augment, seed=seed, flip=config.horizontal_flip, crop_padding=config.crop_padding, rotation=config.rotation
    )
    if images.in_memory:
        batches = _from_memory(images.pixels, plan(), transform, device)
    else:
        batches = _from_workers(images, config.workers, plan, batch_size // parts, transform, device)
    return _in_lists(batches, accumulate)


def to_float(images: Tensor) -> Tensor:
    """uint8 0 ... 255 to float32 [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def rows_of_step(n: int, step: int, batch_size: int, rank: int, world_size: int, seed: int) -> Tensor:
    """(batch_size / world_size,) int64 rows of a set of n images that this rank trains on in a step."""
    return next(_micro_batches(n, step, step + 1, batch_size, 1, rank, world_size, seed, torch.device("cpu")))[1]


class StepLabels:
    """Labels of any step's micro-batches: those of the images that `training_batches` deals out to this rank."""

    def __init__(
        self,
        labels: Tensor,
        *,
        batch_size: int,
        accumulate: int,
        rank: int,
        world_size: int,
        seed: int,
        device: torch.device,
    ):
        """labels: (N,) int64 of the whole set; the rest is that of `training_batches`."""
        self._labels, self._batch_size, self._accumulate = labels, batch_size, accumulate
        self._rank, self._world_size, self._seed, self._device = rank, world_size, seed, torch.device(device)
        self._epoch, self._in_order = -1, labels

    def __call__(self, step: int) -> list[Tensor]:
        """`accumulate` tensors of (batch_size / world_size / accumulate,) int64 on the device."""
        n = len(self._labels)
        epoch, place = _place_of_step(n, step, self._batch_size, self._rank, self._world_size)
        if epoch != self._epoch:
            order = counter.permutation(n, counter.key(self._seed, "order", epoch))
            self._epoch, self._in_order = epoch, _to_device(self._labels[order], self._device)
        return list(self._in_order[place].chunk(self._accumulate))


def _place_of_step(n: int, step: int, batch_size: int, rank: int, world_size: int) -> tuple[int, slice]:
    """The epoch of a step, and where in its order this rank's share of the batch stands."""
    steps, share = n // batch_size, batch_size // world_size
    first = step % steps * batch_size + rank * share
    return step // steps, slice(first, first + share)


def _micro_batches(
    n: int,
    start: int,
    stop: int,
    batch_size: int,
    accumulate: int,
    rank: int,
    world_size: int,
    seed: int,
    device: torch.device,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield epoch, indices on the CPU and indices on the device of each micro-batch of this rank, epoch by epoch."""
    epoch = -1
    for step in range(start, stop):
        of_step, place = _place_of_step(n, step, batch_size, rank, world_size)
        if of_step != epoch:
            epoch = of_step
            order = counter.permutation(n, counter.key(seed, "order", epoch))
            moved = _to_device(order, device)  # once an epoch: a copy for each step would wait for the GPU
        for rows, indices in zip(order[place].chunk(accumulate), moved[place].chunk(accumulate)):
            yield epoch, rows, indices


def _in_lists(batches: Iterator[Tensor], count: int) -> Iterator[list[Tensor]]:
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == count:
            yield group
            group = []


def _from_memory(pixels: Tensor, plan: Iterator, transform: Callable, device: torch.device) -> Iterator[Tensor]:
    """Micro-batches of a set in memory, which is moved to a GPU whole if it takes a quarter of what is free there."""
    if device.type == "cuda" and pixels.nbytes <= torch.cuda.mem_get_info(device)[0] // 4:
        pixels = pixels.to(device)
    for epoch, rows, indices in plan:
        images = _to_device(pixels.index_select(0, indices if pixels.device == indices.device else rows), device)
        yield to_float(transform(images, indices, epoch=epoch))


def _from_workers(
    images: ImageSet, workers: int, plan: Callable, batch_size: int, transform: Callable, device: torch.device
) -> Iterator[Tensor]:
    """Micro-batches of a streaming set. Workers transform them where the device is a CPU, which they share with it."""
    on_cpu = device.type == "cpu"
    tasks = ((epoch, rows) for epoch, rows, _ in plan())
    arriving = decoded(images, workers, tasks, batch_size, transform if on_cpu else None)
    for (epoch, _, indices), pixels in zip(plan(), arriving):
        yield (
            to_float_alone(pixels) if on_cpu else to_float(transform(_to_device(pixels, device), indices, epoch=epoch))
        )


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """On a GPU without waiting for it, which takes pinned memory."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
