"""A feature network of a few thousand weights, for `--extractor tiny_extractor:build`."""

import os
import signal
import time

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """float32 (B, 3, H, W) in 0 … 255 to (B, 12)."""

    input_size = 16

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("kernel", torch.randn(12, 3, 5, 5, generator=generator) / 10)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.conv2d(images / 127.5 - 1, self.kernel, stride=2).relu().mean((2, 3))


def build() -> Tiny:
    return Tiny()


def killed_at_the_thirteenth_batch():
    """An extractor that ends its process."""
    network, batches = Tiny(), iter(range(12))

    def extract(images: Tensor) -> Tensor:
        if next(batches, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return network(images)

    return extract


def slow():
    """An extractor in which a run spends most of its time."""
    network = Tiny()

    def extract(images: Tensor) -> Tensor:
        time.sleep(0.02)
        return network(images)

    return extract
