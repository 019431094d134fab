"""Random numbers that are counted, not carried: each is a hash of what it is for, so no generator state exists.

A number depends on its key (seed, purpose, step, …), its row (the index of an image or its position in the whole
batch) and its column. It does not depend on batch size, number of processes, workers or what was drawn before.
The mixing function is SplitMix64's finaliser (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
generators", figure 16).
"""

import hashlib
import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def key(*parts: int | str) -> int:
    """64-bit key of a tuple of integers and words."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)  # torch's >> of int64 copies the sign


def _bits(rows: Tensor, columns: int, key: int) -> Tensor:
    """64 random bits for each of (B,) rows and `columns`, fewer than 2^20: (B, columns) int64."""
    assert columns < 1 << 20, "a row's numbers would run into the next row's"
    x = rows[:, None] * (1 << 20) + torch.arange(columns, device=rows.device)  # (B, columns), one count each
    x.mul_(_signed(_GOLDEN)).add_(key)  # in place: of millions of numbers, memory takes most of the time
    x.bitwise_xor_(_shift_right(x, 30)).mul_(_signed(_MIX_1))
    x.bitwise_xor_(_shift_right(x, 27)).mul_(_signed(_MIX_2))
    return x.bitwise_xor_(_shift_right(x, 31))


def uniform(rows: Tensor, columns: int, key: int) -> Tensor:
    """Uniform numbers strictly inside (0, 1).

    rows: (B,) int64, any device; columns: numbers a row. Returns (B, columns) float32 on that device.
    """
    # 23 bits and the half are exact in float32.
    return _shift_right(_bits(rows, columns, key), 41).float().add_(0.5).mul_(2.0**-23)


def normal(rows: Tensor, columns: int, key: int) -> Tensor:
    """Standard normal numbers by Box & Muller (1958), at most 5.77 in magnitude; shapes as in `uniform`."""
    u = uniform(rows, columns + columns % 2, key)
    radius = u[:, 0::2].log().mul_(-2).sqrt_()
    angle = 2 * math.pi * u[:, 1::2]
    return torch.stack([angle.cos().mul_(radius), angle.sin().mul_(radius)], 2).flatten(1)[:, :columns]


def permutation(n: int, key: int) -> Tensor:
    """A permutation of 0 … n-1 as (n,) int64 on the CPU."""
    return _bits(torch.arange(n), 1, key).flatten().argsort(stable=True)
