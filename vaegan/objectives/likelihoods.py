"""The reconstruction terms: -log p of pixels and of discriminator features, by the config's choice of likelihood."""

from torch import Tensor, ones_like

from vaegan.config import ObjectiveConfig
from vaegan.objectives import elbo
from vaegan.objectives.statistics import Statistics


def pixel_nll(
    c: ObjectiveConfig, x: Tensor, raw: Tensor, log_scale: Tensor | None, statistics: Statistics, batch: dict
) -> Tensor:
    """-log p(x|z), (B,) nats. x: (B, C, H, W) in [-1, 1]; raw: the decoder's output before tanh; log_scale: () of the
    learned Gaussian. What the next step is to know of this one goes into `batch`."""
    if c.pixel_likelihood == "bernoulli":
        return elbo.bernoulli_nll(x, raw)
    image = raw.tanh()
    if c.pixel_likelihood == "laplace":
        return elbo.laplace_nll(x, image, c.pixel_scale)
    if c.pixel_likelihood == "gaussian_learned":
        return elbo.gaussian_nll(x, image, (2 * log_scale).exp())
    if c.pixel_likelihood == "gaussian_optimal":
        return elbo.gaussian_nll(x, image, _followed_variance("pixel_mse", x, image, statistics, batch))
    return elbo.gaussian_nll(x, image, c.pixel_scale**2)


def feature_nll(c: ObjectiveConfig, real: Tensor, fake: Tensor, statistics: Statistics, batch: dict) -> Tensor:
    """-log p(Dis_l(x)|z), (B,) nats: a Gaussian around Dis_l(x~), of unit or of optimal variance (Larsen et al. 2016,
    equations 7 and 8). real, fake: (B, ...) features of images and of their reconstructions."""
    real, fake = real.float(), fake.float()
    if c.feature_likelihood == "gaussian_optimal":
        return elbo.gaussian_nll(real, fake, _followed_variance("feature_mse", real, fake, statistics, batch))
    return elbo.gaussian_nll(real, fake, 1.0)


def _followed_variance(name: str, x: Tensor, mean: Tensor, statistics: Statistics, batch: dict) -> Tensor:
    """Optimal variance from the mean squared error of the steps before (in the first step, of unit size), which it
    also takes down for the next. By the envelope theorem the gradient is that of the paper's."""
    batch[name] = (x - mean).detach().square().mean()
    followed = statistics.get(name)
    return elbo.optimal_variance(ones_like(batch[name]) if followed is None else followed)
