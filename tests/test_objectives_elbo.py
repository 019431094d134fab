"""The evidence lower bound: KL, likelihoods, optimal variance, free bits, schedules, bits a dimension."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Laplace, Normal, kl_divergence

from vaegan.objectives import elbo


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def images(*shape):
    return (torch.rand(*shape, dtype=torch.float64) * 2 - 1).requires_grad_()


def test_kl_is_that_of_the_distributions():
    mu, logvar = torch.randn(6, 5, dtype=torch.float64) * 3, torch.randn(6, 5, dtype=torch.float64) * 2
    expected = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu)))
    torch.testing.assert_close(elbo.kl_divergence(mu, logvar), expected)
    assert (elbo.kl_divergence(mu, logvar) > 0).all()
    assert torch.equal(elbo.kl_divergence(mu * 0, mu * 0), mu * 0)


def test_kl_is_the_mean_of_log_ratios_of_samples():
    mu, logvar = torch.tensor([[0.7, -1.0]]), torch.tensor([[-1.0, 0.5]])
    q, p = Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)
    z = q.sample((200_000,))
    estimate = (q.log_prob(z) - p.log_prob(z)).mean(0)
    torch.testing.assert_close(elbo.kl_divergence(mu, logvar), estimate, atol=0.015, rtol=0)


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (2, 3, 5, 5), (4, 7)])
def test_gaussian_and_laplace_are_those_of_the_distributions(shape):
    x, mean = images(*shape).detach(), images(*shape).detach()
    for scale in (0.05, 1.0, 3.0):
        gaussian = -Normal(mean, scale).log_prob(x).flatten(1).sum(1)
        torch.testing.assert_close(elbo.gaussian_nll(x, mean, scale**2), gaussian)
        torch.testing.assert_close(elbo.gaussian_nll(x, mean, torch.tensor(scale**2)), gaussian, rtol=1e-6, atol=1e-6)
        laplace = -Laplace(mean, scale).log_prob(x).flatten(1).sum(1)
        torch.testing.assert_close(elbo.laplace_nll(x, mean, scale), laplace)
        assert gaussian.shape == shape[:1]


def test_bernoulli_is_that_of_the_distribution():
    raw = torch.randn(3, 1, 4, 4, dtype=torch.float64) * 2
    white = (torch.rand_like(raw) > 0.5).double()
    probability = (raw.tanh() + 1) / 2  # the image, scaled to [0, 1], is the probability
    expected = -Bernoulli(probs=probability).log_prob(white).flatten(1).sum(1)
    torch.testing.assert_close(elbo.bernoulli_nll(2 * white - 1, raw), expected)
    grey = torch.rand_like(raw)
    cross_entropy = -(grey * probability.log() + (1 - grey) * (1 - probability).log()).flatten(1).sum(1)
    torch.testing.assert_close(elbo.bernoulli_nll(2 * grey - 1, raw), cross_entropy)


def test_bernoulli_is_finite_for_confident_decoders():
    raw = torch.tensor([[[[200.0, -200.0]]]], requires_grad=True)
    right, wrong = torch.tensor([[[[1.0, -1.0]]]]), torch.tensor([[[[-1.0, 1.0]]]])
    assert elbo.bernoulli_nll(right, raw).item() == 0 and elbo.bernoulli_nll(wrong, raw).item() == 800
    elbo.bernoulli_nll(wrong, raw).sum().backward()
    assert raw.grad.tolist() == [[[[2.0, -2.0]]]]


def test_the_optimal_variance_is_the_most_likely_one():
    x, mean = images(8, 3, 4, 4).detach(), images(8, 3, 4, 4).detach()
    best = elbo.optimal_variance((x - mean).square().mean())
    least = elbo.gaussian_nll(x, mean, best).mean()
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        assert elbo.gaussian_nll(x, mean, best * factor).mean() > least
    log_variance = best.log().requires_grad_()
    elbo.gaussian_nll(x, mean, log_variance.exp()).mean().backward()
    assert log_variance.grad.abs() < 1e-10
    paper = x[0].numel() / 2 * (math.log(2 * math.pi) + best.log() + 1)
    torch.testing.assert_close(least, paper)


def test_the_optimal_variance_has_the_gradient_of_the_log_of_the_error():
    """The envelope theorem: a constant variance gives the gradient of D/2 log MSE (Rybkin et al. 2021)."""
    x, mean = images(8, 3, 4, 4).detach(), images(8, 3, 4, 4)
    error = (x - mean).square().mean()
    (paper,) = torch.autograd.grad(x[0].numel() / 2 * error.log(), mean)
    variance = elbo.optimal_variance(error.detach())
    (constant,) = torch.autograd.grad(elbo.gaussian_nll(x, mean, variance).mean(), mean)
    torch.testing.assert_close(constant, paper)


def test_the_optimal_variance_has_a_floor():
    assert elbo.optimal_variance(torch.tensor(0.0)).item() == pytest.approx(1e-6)
    x = torch.zeros(2, 1, 4, 4)
    assert elbo.gaussian_nll(x, x, elbo.optimal_variance(torch.tensor(0.0))).isfinite().all()


def test_free_bits_replace_dimensions_below_by_the_constant():
    kl = torch.tensor([[0.1, 2.0, 0.6], [0.5, 0.2, 0.6]], requires_grad=True)
    freed = elbo.apply_free_bits(kl, kl.detach().mean(0), 0.5)  # means 0.3, 1.1, 0.6
    assert freed.tolist() == [[0.5, 2.0, pytest.approx(0.6)], [0.5, pytest.approx(0.2), pytest.approx(0.6)]]
    freed.sum().backward()
    assert kl.grad.tolist() == [[0, 1, 1], [0, 1, 1]]
    expected = kl.detach().mean(0).clamp_min(0.5).sum()  # Kingma et al.: the sum of max(lambda, mean KL_j)
    torch.testing.assert_close(freed.detach().mean(0).sum(), expected)


def test_free_bits_free_nothing_before_a_mean_is_known_or_at_zero():
    kl = torch.rand(4, 3)
    assert torch.equal(elbo.apply_free_bits(kl, None, 0.5), kl)
    assert torch.equal(elbo.apply_free_bits(kl, kl.mean(0), 0.0), kl)


@pytest.mark.parametrize(
    ("kind", "steps", "expected"),
    [
        ("constant", [0, 1, 10**6], [1, 1, 1]),
        ("linear", [0, 1, 4, 7, 8, 9, 10**6], [0, 1 / 8, 1 / 2, 7 / 8, 1, 1, 1]),
        ("cyclical", [0, 1, 2, 4, 5, 7, 8, 9, 12, 15, 16, 800], [0, 1 / 4, 1 / 2, 1, 1, 1, 0, 1 / 4, 1, 1, 0, 0]),
    ],
)
def test_kl_schedules_at_chosen_steps(kind, steps, expected):
    assert [elbo.kl_schedule(step, kind, 8) for step in steps] == expected


@pytest.mark.parametrize("cycle", [1, 3, 7])
def test_an_odd_cycle_still_rises_from_zero_to_one(cycle):
    values = [elbo.kl_schedule(step, "cyclical", cycle) for step in range(3 * cycle)]
    assert values[:cycle] == values[cycle : 2 * cycle] == values[2 * cycle :]
    assert values[0] == 0 and values[:cycle] == sorted(values[:cycle]) and max(values) == (cycle > 1)


def test_bits_of_a_uniform_density_are_those_of_255_levels():
    dims = 3 * 8 * 8
    bits = elbo.bits_per_dim(dims * math.log(2), dims, discrete=False)  # density 1/2 over [-1, 1]
    assert bits == pytest.approx(math.log2(255)) == pytest.approx(1 + math.log2(127.5))


def test_bits_of_a_density_are_those_of_its_8_bit_steps():
    """Against the probabilities of the 8-bit values themselves, for a Gaussian much wider than a step."""
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    density = Normal(torch.tensor(0.1, dtype=torch.float64), 0.2)
    mass = density.cdf(levels + 1 / 255) - density.cdf(levels - 1 / 255)
    entropy = -(mass * mass.log2()).sum()
    x = density.sample((50_000, 1))
    mean = torch.full_like(x, 0.1)
    bits = elbo.bits_per_dim(elbo.gaussian_nll(x, mean, 0.04).mean(), 1, discrete=False)
    assert bits.item() == pytest.approx(entropy.item(), abs=0.02)


def test_a_fair_coin_costs_one_bit():
    x = (torch.rand(4, 1, 8, 8) > 0.5).float() * 2 - 1
    nll = elbo.bernoulli_nll(x, torch.zeros_like(x)).mean()
    assert elbo.bits_per_dim(nll, 64, discrete=True).item() == pytest.approx(1, abs=1e-6)
