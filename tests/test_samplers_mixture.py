"""Gaussian mixtures over latents: their density, what EM does and finds, and what is drawn from them."""

import itertools

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from vaegan.config import ConfigError
from vaegan.mixture import Mixture, _first, expectation_maximisation, fit_mixture

F64 = torch.float64
TRUE = Mixture(
    torch.tensor([0.5, 0.3, 0.2], dtype=F64),
    torch.tensor([[-4.0, 0, 1], [4, 1, 0], [0, 5, -3]], dtype=F64),
    torch.tensor(
        [
            [[1, 0, 0], [0.5, 0.8, 0], [0, 0.3, 1.2]],
            [[0.4, 0, 0], [0, 1, 0], [-0.7, 0.2, 0.5]],
            [[1.5, 0, 0], [1, 0.6, 0], [0, 0, 0.3]],
        ],
        dtype=F64,
    ),
)


def reference(mixture: Mixture) -> MixtureSameFamily:
    return MixtureSameFamily(
        Categorical(mixture.weights), MultivariateNormal(mixture.means, scale_tril=mixture.factors)
    )


def drawn(n: int) -> torch.Tensor:
    torch.manual_seed(0)
    return reference(TRUE).sample((n,))


def test_density_is_that_of_torch_distributions():
    z = drawn(700)
    assert torch.allclose(TRUE.log_density(z), reference(TRUE).log_prob(z), rtol=1e-12, atol=1e-12)
    assert TRUE.log_density(z.float()).dtype == torch.float64


def test_the_likelihood_rises_in_every_iteration():
    z = drawn(2000)
    first = _first(z, 5, seed=1)
    steps = list(itertools.islice(expectation_maximisation(z, first), 40))
    likelihoods = [likelihood for _, likelihood in steps]
    assert likelihoods[0] == pytest.approx(reference(first).log_prob(z).mean().item(), rel=1e-10)
    assert likelihoods[7] == pytest.approx(reference(steps[6][0]).log_prob(z).mean().item(), rel=1e-10)
    assert all(b >= a - 1e-7 for a, b in zip(likelihoods, likelihoods[1:]))  # but for the ridge of 1e-6
    assert likelihoods[-1] > likelihoods[0] + 0.01


def test_one_step_is_that_of_the_formulas():
    z, first = drawn(50), _first(drawn(50), 2, seed=0)
    share = first.weights.log() + reference(first).component_distribution.log_prob(z[:, None])
    share = share.softmax(1)  # (N, K)
    after, _ = next(expectation_maximisation(z, first))
    for k in range(2):
        n = share[:, k].sum()
        mean = (share[:, k, None] * z).sum(0) / n
        covariance = sum(s * torch.outer(x - mean, x - mean) for s, x in zip(share[:, k], z)) / n
        assert torch.allclose(after.weights[k], n / 50) and torch.allclose(after.means[k], mean)
        assert torch.allclose(after.factors[k] @ after.factors[k].T, covariance, atol=2e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_a_known_mixture_is_found_whatever_its_scale(scale):
    found = fit_mixture(scale * drawn(20_000), 3)
    order = found.weights.argsort(descending=True)
    assert torch.allclose(found.weights[order], TRUE.weights, atol=0.02)
    assert torch.allclose(found.means[order] / scale, TRUE.means, atol=0.06)
    covariances = found.factors[order] @ found.factors[order].mT / scale**2
    assert torch.allclose(covariances, TRUE.factors @ TRUE.factors.mT, atol=0.12)


def test_the_number_of_components_is_the_likeliest_for_what_was_held_out():
    z = drawn(1200)
    assert len(fit_mixture(z, (1, 3)).weights) == 3
    torch.manual_seed(1)
    assert len(fit_mixture(torch.randn(200, 6), (1, 20)).weights) == 1
    assert len(fit_mixture(z[:8]).weights) == 1  # too few for the others
    held_out = torch.randn(50, 3).double() * 0.1 + TRUE.means[0]
    assert fit_mixture(z, (1, 3), held_out=held_out).log_density(held_out).mean() > -6


def test_one_component_is_the_sample_mean_and_covariance():
    z = drawn(500)
    one = fit_mixture(z, 1)
    assert torch.allclose(one.means[0], z.mean(0)) and one.weights.tolist() == [1.0]
    assert torch.allclose(one.factors[0] @ one.factors[0].T, z.T.cov(correction=0), rtol=1e-5)


def test_latents_without_variance_and_twice_the_same_are_fitted():
    z = drawn(40)
    z[:, 1] = 3.0
    z[20:] = z[0]
    mixture = fit_mixture(z, 6)
    assert mixture(100).isfinite().all() and (mixture(100)[:, 1] - 3).abs().max() < 1e-3
    with pytest.raises(ConfigError, match="components must be from 1 to the number of latents, 40, got 41"):
        fit_mixture(z, 41)
    z[3, 0] = torch.inf
    with pytest.raises(ConfigError, match="all of them finite"):
        fit_mixture(z, 2)


def test_samples_have_the_moments_of_the_mixture():
    z = TRUE(100_000, seed=2).double()
    mean = (TRUE.weights[:, None] * TRUE.means).sum(0)
    second = TRUE.factors @ TRUE.factors.mT + TRUE.means[:, :, None] * TRUE.means[:, None]
    covariance = (TRUE.weights[:, None, None] * second).sum(0) - torch.outer(mean, mean)
    assert torch.allclose(z.mean(0), mean, atol=0.05) and torch.allclose(z.T.cov(), covariance, atol=0.15)
    below = torch.distributions.Normal(TRUE.means[:, 0], TRUE.factors[:, 0, 0]).cdf(torch.tensor(-2.0))
    share = (TRUE.weights * below).sum().item()  # of z_0 < -2: the marginal of one coordinate is known
    assert (z[:, 0] < -2).double().mean().item() == pytest.approx(share, abs=0.006)


def test_a_row_depends_on_seed_and_place_alone():
    whole = TRUE(300, seed=5)
    assert whole.dtype == torch.float32 and whole.shape == (300, 3)
    assert torch.equal(torch.cat([TRUE(7, 5, start) for start in range(0, 294, 7)]), whole[:294])
    assert torch.equal(TRUE(1, 5, 299), whole[299:]) and TRUE(0, 5).shape == (0, 3)
    assert not (TRUE(300, seed=6) == whole).any()


def test_a_fit_is_the_same_each_time():
    z = drawn(500)
    assert fit_mixture(z, 4).manifest == fit_mixture(z, 4).manifest != fit_mixture(z, 4, seed=1).manifest
