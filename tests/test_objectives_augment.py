"""Differentiable augmentation: neutral numbers, explicit shifts, areas, ranges and gradients."""

import pytest
import torch

from vaegan import counter
from vaegan.objectives.augment import COLUMNS, differentiable_augment

POLICIES = ("color", "translation", "cutout")


def batch(n=6, channels=3, size=16, dtype=torch.float32):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1


def numbers(n=6, seed=0):
    return counter.uniform(torch.arange(n), COLUMNS, counter.key(seed))


def with_column(n, **columns):
    """Neutral numbers, some of them replaced: b, s, c of colour; y, x of translation; v, u of cutout."""
    u = torch.full((n, COLUMNS), 0.5)
    for name, values in columns.items():
        u[:, "bscyxvu".index(name)] = torch.as_tensor(values)
    return u


def test_the_same_numbers_give_the_same_augmentation():
    x = batch()
    once = differentiable_augment(x, numbers(), POLICIES)
    assert torch.equal(differentiable_augment(x, numbers(), POLICIES), once)
    assert once.shape == x.shape and once.dtype == x.dtype
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(differentiable_augment(x[order], numbers()[order], POLICIES), once[order])
    other = differentiable_augment(x, numbers(seed=1), POLICIES)
    assert (other != once).flatten(1).any(1).all()
    torch.testing.assert_close(batch(), x, rtol=0, atol=0)  # the input is left alone


@pytest.mark.parametrize("channels", [1, 3])
def test_neutral_numbers_change_nothing(channels):
    x = batch(channels=channels)
    assert torch.equal(differentiable_augment(x, numbers(), ()), x)
    assert torch.equal(differentiable_augment(x, with_column(6), ("translation",)), x)
    torch.testing.assert_close(differentiable_augment(x, with_column(6), ("color",)), x)


def test_brightness_shifts_by_up_to_half():
    x = batch(3)
    out = differentiable_augment(x, with_column(3, b=[0.0, 0.25, 1.0]), ("color",))
    torch.testing.assert_close(out - x, torch.tensor([-0.5, -0.25, 0.5])[:, None, None, None].expand_as(x))


def test_saturation_scales_the_distance_from_grey():
    x = batch(3)
    out = differentiable_augment(x, with_column(3, s=[0.0, 0.25, 1.0]), ("color",))
    grey = x.mean(1, keepdim=True)
    torch.testing.assert_close(out - grey, (x - grey) * torch.tensor([0.0, 0.5, 2.0])[:, None, None, None])
    assert torch.equal(differentiable_augment(x[:, :1], with_column(3, s=[0.0, 0.25, 1.0]), ("color",)),
                       differentiable_augment(x[:, :1], with_column(3), ("color",)))  # fmt: skip


def test_contrast_scales_the_distance_from_the_images_mean():
    x = batch(3)
    out = differentiable_augment(x, with_column(3, c=[0.0, 0.25, 1.0]), ("color",))
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(out - mean, (x - mean) * torch.tensor([0.5, 0.75, 1.5])[:, None, None, None])


@pytest.mark.parametrize("size", [4, 8, 16, 28])
def test_translation_shifts_by_every_offset_and_moves_zeros_in(size):
    reach = max(1, round(size / 8))
    offsets = 2 * reach + 1
    x = batch(1, 2, size).expand(offsets**2, -1, -1, -1) + 3  # no zero of its own
    steps = (torch.arange(offsets) + 0.5) / offsets
    u = with_column(offsets**2, y=steps.repeat_interleave(offsets), x=steps.repeat(offsets))
    out = differentiable_augment(x, u, ("translation",))
    seen = set()
    for image in out:
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                expected = torch.zeros_like(image)
                to_y, to_x = slice(max(0, dy), size + min(0, dy)), slice(max(0, dx), size + min(0, dx))
                from_y, from_x = slice(max(0, -dy), size + min(0, -dy)), slice(max(0, -dx), size + min(0, -dx))
                expected[:, to_y, to_x] = x[0][:, from_y, from_x]
                if torch.equal(image, expected):
                    seen.add((dy, dx))
    assert len(seen) == offsets**2


@pytest.mark.parametrize("extreme", [2.0**-24, 1 - 2.0**-24])
@pytest.mark.parametrize("size", [4, 8, 28, 64, 128, 256])
def test_extreme_numbers_stay_inside(size, extreme):
    out = differentiable_augment(batch(2, 1, size), torch.full((2, COLUMNS), extreme), POLICIES)
    assert out.isfinite().all() and out.shape == (2, 1, size, size)


@pytest.mark.parametrize("size", [8, 16, 28, 32])
def test_cutout_removes_a_square_of_half_the_side(size):
    x = batch(1, 2, size) + 3
    removed = differentiable_augment(x, with_column(1), ("cutout",)) == 0
    assert removed.sum() == 2 * (size // 2) ** 2
    rows, columns = (removed[0, 0].any(dim) for dim in (1, 0))
    assert rows.sum() == columns.sum() == size // 2
    middle = torch.arange(size)[rows].double().mean()
    assert abs(middle - (size - 1) / 2) <= 0.5
    corner = differentiable_augment(x, with_column(1, v=[0.0], u=[0.0]), ("cutout",)) == 0
    assert corner.sum() == 2 * (size // 2 - size // 4) ** 2  # cut off by the border
    assert torch.equal(corner[0, 0].any(1), torch.arange(size) < size // 2 - size // 4)


def test_cutout_keeps_all_other_pixels():
    x = batch(40)
    out = differentiable_augment(x, numbers(40), ("cutout",))
    assert torch.equal(out[out != 0], x[out != 0])
    assert len({tuple(mask.flatten().tolist()) for mask in (out[:, 0] == 0)}) > 30  # everywhere


@pytest.mark.parametrize("policies", [("color",), ("translation",), ("cutout",), POLICIES])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_is_differentiable_twice(policies, channels):
    x = batch(2, channels, 4, torch.float64).requires_grad_()
    u = numbers(2).double()
    assert torch.autograd.gradcheck(lambda x: differentiable_augment(x, u, policies), x)
    assert torch.autograd.gradgradcheck(lambda x: differentiable_augment(x, u, policies).pow(2), x)


@pytest.mark.parametrize("policy", ["color", "translation"])
def test_policies_are_applied_in_their_order(policy):
    x, u = batch(), numbers()
    first = differentiable_augment(differentiable_augment(x, u, (policy,)), u, ("cutout",))
    assert torch.equal(differentiable_augment(x, u, (policy, "cutout")), first)
