"""Validation figures: how well images that were not trained on are encoded and decoded."""

import contextlib
import math
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from vaegan import counter
from vaegan.config import Config
from vaegan.data import ImageSet, to_float
from vaegan.model import VAEGAN
from vaegan.objectives import elbo

BATCH = 256
ACTIVE_VARIANCE = 0.01  # of the posterior mean over images, above which a latent is active (Burda et al. 2016, 5.2)
HIGHER_IS_BETTER = ("psnr", "elbo", "active_units")


def validation_metrics(config: Config) -> list[str]:
    """Names of the figures that `validate` gives for this config."""
    if not config.objective.uses_reconstruction:
        return []
    bound = ["val/kl", "val/elbo", "val/bits_per_dim", "val/active_units"] if config.model.variational else []
    return ["val/mse", "val/psnr", *bound]


def is_better(metric: str, value: float, best: float) -> bool:
    return value > best if metric.rsplit("/", 1)[-1] in HIGHER_IS_BETTER else value < best


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients, then the mode that was."""
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(mode)


def spread_rows(total: int, n: int) -> Tensor:
    """min(n, total) row numbers spread evenly over a set, whose images may lie sorted by class."""
    n = min(n, total)
    return torch.arange(n) * total // n


def validate(model: VAEGAN, images: ImageSet, config: Config, accelerator: Accelerator) -> dict[str, float]:
    """Figures over the validation images, the same for any number of processes.

    `val/mse` and `val/psnr` (dB, the mean over images) are of reconstructions from the posterior mean; `val/kl` and
    `val/elbo` are in nats an image, by one posterior sample; where the objective has no pixel likelihood of its own,
    the bound is that of the Gaussian of optimal scale. `val/active_units` counts latents.
    """
    chosen = spread_rows(len(images), config.train.val_images or len(images))
    sums: dict[str, Tensor] = {}
    with evaluating(model):
        for start in range(accelerator.process_index * BATCH, len(chosen), accelerator.num_processes * BATCH):
            rows = chosen[start : start + BATCH]
            x = to_float(images.batch(rows).to(accelerator.device))
            for name, value in _sums(model, x, rows.to(accelerator.device), config).items():
                sums[name] = sums.get(name, 0) + value
    return _figures(_reduce(sums, model, accelerator), model, len(chosen), config)


def _sums(model: VAEGAN, x: Tensor, rows: Tensor, config: Config) -> dict[str, Tensor]:
    """Sums over a batch, float64 on the CPU (not every accelerator has float64)."""
    mu, logvar = model.encode(x)
    mse = (model.decode(mu) - x).square().flatten(1).mean(1)
    sums = {"mse": mse.sum(), "psnr": (10 * torch.log10(4 / mse.clamp_min(1e-10))).sum()}
    if logvar is not None:
        eps = counter.normal(rows, model.latent_dim, counter.key(config.seed, "validation"))
        raw = model.decoder(mu + (0.5 * logvar).exp() * eps)
        sums |= {
            "kl": elbo.kl_divergence(mu, logvar).sum(),
            "sampled_mse": (raw.tanh() - x).square().flatten(1).mean(1).sum(),
            "nll": _nll(x, raw, model, config).sum(),
            "mu": mu.sum(0),
            "mu2": mu.square().sum(0),
        }
    return {name: value.cpu().double() for name, value in sums.items()}


def _nll(x: Tensor, raw: Tensor, model: VAEGAN, config: Config) -> Tensor:
    """The configured pixel likelihood, (B,) nats; zeros where it is the optimal Gaussian's, known by its error."""
    o = config.objective
    if _is_optimal(config):
        return x.new_zeros(len(x))
    if o.pixel_likelihood == "bernoulli":
        return elbo.bernoulli_nll(x, raw)
    if o.pixel_likelihood == "laplace":
        return elbo.laplace_nll(x, raw.tanh(), o.pixel_scale)
    learned = o.pixel_likelihood == "gaussian_learned"
    return elbo.gaussian_nll(x, raw.tanh(), (2 * model.log_scale).exp() if learned else o.pixel_scale**2)


def _is_optimal(config: Config) -> bool:
    return config.objective.pixel_weight == 0 or config.objective.pixel_likelihood == "gaussian_optimal"


def _reduce(sums: dict[str, Tensor], model: VAEGAN, accelerator: Accelerator) -> dict[str, Tensor]:
    """Add up the ranks' sums in one message; a rank without images takes part with zeros."""
    scalars = ["mse", "psnr", *(["kl", "sampled_mse", "nll"] if model.variational else [])]
    sizes = {name: 1 for name in scalars} | ({"mu": model.latent_dim, "mu2": model.latent_dim} if model.variational else {})
    zeros = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
    flat = torch.cat([sums.get(name, zeros[name]).reshape(-1) for name in sizes])
    if accelerator.num_processes > 1:
        flat = accelerator.reduce(flat.to(accelerator.device), "sum").cpu()
    return dict(zip(sizes, flat.split(list(sizes.values()))))


def _figures(sums: dict[str, Tensor], model: VAEGAN, n: int, config: Config) -> dict[str, float]:
    figures = {"val/mse": sums["mse"].item() / n, "val/psnr": sums["psnr"].item() / n}
    if model.variational:
        dims = math.prod(model.image_shape)
        kl, nll = sums["kl"].item() / n, sums["nll"].item() / n
        if _is_optimal(config):
            variance = elbo.optimal_variance(sums["sampled_mse"] / n).item()
            nll = 0.5 * dims * (elbo.LOG_2PI + math.log(variance) + sums["sampled_mse"].item() / n / variance)
        discrete = config.objective.pixel_weight > 0 and config.objective.pixel_likelihood == "bernoulli"
        variance_of_mean = sums["mu2"] / n - (sums["mu"] / n).square()
        figures |= {
            "val/kl": kl,
            "val/elbo": -nll - kl,
            "val/bits_per_dim": elbo.bits_per_dim(nll + kl, dims, discrete),
            "val/active_units": float((variance_of_mean > ACTIVE_VARIANCE).sum()),
        }
    return figures
