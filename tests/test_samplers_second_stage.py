"""The second VAE on latents: what it draws, what it knows of densities, and that both are counted."""

import pytest
import torch

from vaegan import counter
from vaegan.config import ConfigError
from vaegan.second_stage import SecondStage, fit_second_stage


def crescent(n: int, seed: int = 0) -> torch.Tensor:
    """Correlated, bent and of unlike scales: (n, 3)."""
    e = counter.normal(torch.arange(n), 3, counter.key(seed, "crescent"))
    x = 2 * e[:, 0]
    return torch.stack([x + 3, 0.5 * x.square() + 0.3 * e[:, 1], 100 * (x + e[:, 2])], 1)


@pytest.fixture(scope="module")
def fitted() -> SecondStage:
    return fit_second_stage(crescent(4000), steps=1000, width=64, depth=2)


def test_it_draws_what_no_gaussian_does(fitted):
    real, drawn = crescent(20_000, seed=1), fitted(20_000, seed=1)
    scale = real.std(0)
    assert ((drawn.mean(0) - real.mean(0)) / scale).abs().max() < 0.15
    unlike = (drawn / scale).T.cov() - (real / scale).T.cov()
    assert unlike.abs().max() < 0.45
    assert ((counter.normal(torch.arange(20_000), 3, 0) / scale).T.cov() - (real / scale).T.cov()).abs().max() > 0.9
    # The second coordinate bends with the first, which no Gaussian of the same moments can show.
    torch.manual_seed(0)
    gaussian = torch.distributions.MultivariateNormal(real.mean(0), real.T.cov()).sample((20_000,))
    off, off_gaussian = ((z[:, 1] - 0.5 * (z[:, 0] - 3).square()).std() for z in (drawn, gaussian))
    assert off < 0.5 * off_gaussian


def test_its_density_is_above_that_of_the_fitted_gaussian(fitted):
    z = crescent(2000, seed=2)
    gaussian = torch.distributions.MultivariateNormal(z.mean(0), z.T.cov())
    assert fitted.log_density(z).mean() > gaussian.log_prob(z).mean() + 0.5


def test_the_density_of_a_linear_second_stage_is_known():
    model = SecondStage(2, width=1, depth=1).requires_grad_(False)
    weight, gamma = torch.tensor([[0.8, 0.0], [0.3, 0.5]]), 0.4
    for parameter in model.parameters():
        parameter.zero_()
    model.decoder.last.weight[:, 1:] = weight  # after the one hidden unit, the input itself
    model.log_gamma.fill_(torch.tensor(gamma).log())
    model.mean.copy_(torch.tensor([1.0, -2.0]))
    model.factor.copy_(torch.tensor([[2.0, 0], [1, 3]]))
    # q(u|x) is the true posterior's mean with a variance a bit wide; importance sampling mends the rest.
    inverse = torch.linalg.inv(weight.T @ weight + gamma**2 * torch.eye(2))
    model.encoder.last.weight[:2, 1:] = inverse @ weight.T
    model.encoder.last.bias[2:] = (1.5 * gamma**2 * inverse.diagonal()).log()
    covariance = model.factor @ (weight @ weight.T + gamma**2 * torch.eye(2)) @ model.factor.T
    truth = torch.distributions.MultivariateNormal(model.mean, covariance)
    z = truth.sample((200,))
    assert torch.allclose(model.log_density(z, draws=2000), truth.log_prob(z), atol=0.1)
    drawn = model(50_000)
    assert torch.allclose(drawn.T.cov(), covariance, atol=0.15) and torch.allclose(drawn.mean(0), model.mean, atol=0.06)


def test_a_row_depends_on_seed_and_place_alone(fitted):
    whole = fitted(300, seed=5)
    assert whole.dtype == torch.float32 and whole.shape == (300, 3) and not whole.requires_grad
    assert torch.equal(torch.cat([fitted(7, 5, start) for start in range(0, 294, 7)]), whole[:294])
    assert torch.equal(fitted(1, 5, 299), whole[299:]) and fitted(0, 5).shape == (0, 3)
    assert not (fitted(300, seed=6) == whole).any()


def test_a_fit_is_counted_by_its_seed_alone():
    z = crescent(300)
    torch.manual_seed(1)
    first = fit_second_stage(z, steps=20, width=8).manifest
    torch.manual_seed(2)
    assert first == fit_second_stage(z, steps=20, width=8).manifest
    assert first != fit_second_stage(z, seed=1, steps=20, width=8).manifest


def test_few_flat_and_infinite_latents():
    z = crescent(5)
    z[:, 1] = 4.0
    drawn = fit_second_stage(z, steps=5)(50)
    assert drawn.isfinite().all() and (drawn[:, 1] - 4).abs().max() < 0.1
    for bad in (z[:1], z * torch.inf):
        with pytest.raises(ConfigError, match="2 latents or more, all of them finite"):
            fit_second_stage(bad)
