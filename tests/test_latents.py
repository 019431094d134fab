"""Prior latents are those of `sample`; interpolation keeps its ends, its length and its pace."""

import math

import pytest
import torch

from vaegan import latents
from vaegan.model import VAEGAN


def two(dim=16, seed=0):
    return torch.randn(2, dim, generator=torch.Generator().manual_seed(seed))


def test_prior_latents_are_those_that_sample_decodes():
    model = VAEGAN(image_size=16, latent_dim=5, width=4).eval()
    z = latents.prior(6, 5, seed=3, start=2)
    with torch.no_grad():
        assert torch.equal(model.decode(z), model.sample(6, seed=3, start=2))


def test_prior_latent_depends_on_seed_and_index_alone():
    z = latents.prior(6, 5, seed=3)
    assert torch.equal(z[4], latents.prior(1, 5, seed=3, start=4)[0])
    assert not torch.equal(z, latents.prior(6, 5, seed=4))


def test_ends_are_exact():
    for seed in range(20):
        a, b = two(seed=seed)
        z = latents.interpolate(a, b, 7)
        assert z.shape == (7, 16) and torch.equal(z[0], a) and torch.equal(z[-1], b)


def test_equal_norms_stay():
    a, b = torch.nn.functional.normalize(two(), dim=1) * 3
    torch.testing.assert_close(latents.interpolate(a, b, 9).norm(dim=1), torch.full((9,), 3.0))


def test_length_changes_evenly():
    a, b = torch.nn.functional.normalize(two(), dim=1) * torch.tensor([[1.0], [5.0]])
    torch.testing.assert_close(latents.interpolate(a, b, 5).norm(dim=1), torch.arange(1.0, 6.0))


def test_the_angle_grows_evenly_in_the_plane_of_the_ends():
    a, b = two()
    z = torch.nn.functional.normalize(latents.interpolate(a, b, 11).double(), dim=1)
    steps = (z[1:] * z[:-1]).sum(1).arccos()
    whole = (z[0] @ z[-1]).arccos()
    torch.testing.assert_close(steps, (whole / 10).expand(10), rtol=1e-4, atol=0)
    assert torch.linalg.matrix_rank(z, atol=1e-5) == 2


def test_quarter_circle():
    z = latents.interpolate(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 3)
    torch.testing.assert_close(z[1], torch.tensor([math.sqrt(0.5), math.sqrt(0.5)]))


@pytest.mark.parametrize("factor", [1.0, 2.0, 1 + 1e-6, -1.0, 0.0])
def test_parallel_opposite_and_zero_vectors_take_the_line(factor):
    a, _ = two()
    z = latents.interpolate(a, a * factor, 5)
    if factor:  # to nothing there is no direction: half the arc of a right angle
        torch.testing.assert_close(z, torch.lerp(a[None], a[None] * factor, torch.linspace(0, 1, 5)[:, None]))
    assert z.isfinite().all() and torch.equal(z[0], a) and torch.equal(z[-1], a * factor)


@pytest.mark.parametrize("angle", [1e-3, math.pi - 1e-3])
def test_nearly_parallel_and_nearly_opposite_vectors_keep_their_pace(angle):
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)])
    z = latents.interpolate(a, b, 5).double()
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5).double(), rtol=1e-3, atol=0)
    pace = torch.linspace(0, angle, 5).double()
    torch.testing.assert_close(torch.atan2(z[:, 1], z[:, 0]), pace, rtol=1e-3, atol=1e-9)


def test_many_pairs_at_once_are_the_single_ones():
    a, b = two(seed=1), two(seed=2)
    together = latents.interpolate(a, b, 4)
    assert together.shape == (2, 4, 16)
    for i in range(2):
        torch.testing.assert_close(together[i], latents.interpolate(a[i], b[i], 4))


def test_one_step_is_the_first_end():
    a, b = two()
    assert torch.equal(latents.interpolate(a, b, 1), a[None])
