"""Training batches: any step's batch is a function of seed, step and place, whatever came before it.

So a run goes on exactly from any step, and neither storage, workers, processes nor micro-batches change what is seen.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vaegan import counter
from vaegan.config import ConfigError, DataConfig
from vaegan.data.augment import augment
from vaegan.data.images import ImageSet


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

    def plan() -> Iterator[tuple[int, Tensor]]:
        return _micro_batches(len(images), start_step, stop_step, batch_size, accumulate, rank, world_size, seed)

    return _augmented(images, config, plan, accumulate, seed, torch.device(device))


def to_float(images: Tensor) -> Tensor:
    """uint8 0 ... 255 to float32 [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def _micro_batches(
    n: int, start: int, stop: int, batch_size: int, accumulate: int, rank: int, world_size: int, seed: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield (epoch, indices) of each micro-batch of this rank, all epochs in one chain."""
    steps, share = n // batch_size, batch_size // world_size
    epoch, order = -1, None
    for step in range(start, stop):
        if step // steps != epoch:
            epoch = step // steps
            order = counter.permutation(n, counter.key(seed, "order", epoch))
        first = step % steps * batch_size + rank * share
        for indices in order[first : first + share].chunk(accumulate):
            yield epoch, indices


def _augmented(images, config, plan, accumulate, seed, device) -> Iterator[list[Tensor]]:
    fetch = _from_memory if images.in_memory else _from_workers
    batch = []
    for (epoch, indices), pixels in zip(plan(), fetch(images, config, plan(), device)):
        pixels = augment(
            pixels,
            indices,
            seed=seed,
            epoch=epoch,
            flip=config.horizontal_flip,
            crop_padding=config.crop_padding,
            rotation=config.rotation,
        )
        batch.append(to_float(pixels))
        if len(batch) == accumulate:
            yield batch
            batch = []


def _from_memory(images, config, plan, device) -> Iterator[Tensor]:
    """Micro-batches of uint8 on the device. The whole set is moved there if it takes a quarter of what is free."""
    pixels = images.pixels
    if device.type == "cuda" and pixels.nbytes <= torch.cuda.mem_get_info(device)[0] // 4:
        pixels = pixels.to(device)
    for _, indices in plan:
        yield pixels.index_select(0, indices.to(pixels.device)).to(device)


def _from_workers(images, config, plan, device) -> Iterator[Tensor]:
    """Micro-batches of uint8 on the device, decoded by worker processes that live as long as this iterator."""
    loader = DataLoader(
        _Decoder(images),
        batch_size=None,  # an item is a whole micro-batch
        sampler=(indices.tolist() for _, indices in plan),
        num_workers=config.workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if config.workers else None,
        generator=torch.Generator(),  # its own, or it would draw from torch's global one
    )
    for pixels in loader:
        if isinstance(pixels, str):
            raise ConfigError(pixels)
        yield pixels.to(device, non_blocking=True)


class _Decoder(torch.utils.data.Dataset):
    """What the loader's workers run: a list of indices to pixels."""

    def __init__(self, images: ImageSet):
        self.images = images

    def __getitem__(self, rows: list[int]) -> Tensor | str:
        """uint8 (B, C, H, W), or what is wrong with a file: an exception would arrive wrapped in a worker's trace."""
        try:
            return self.images.decode(rows)
        except ConfigError as error:
            return str(error)
