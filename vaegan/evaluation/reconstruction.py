"""How well images are encoded and decoded: the validation figures of training, and those of the finished model.

The figures of an image are summed in the same order whoever asks, so that both give the same numbers. Pixels are in
[-1, 1] and reconstructions are taken as the decoder gives them, not rounded to 8 bits.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vaegan import counter, stop
from vaegan.config import Config, ConfigError
from vaegan.data import ImageSet, spread_rows, to_float
from vaegan.data.labels import aligned
from vaegan.evaluation.report import HIGHER_IS_BETTER
from vaegan.evaluation.shares import ALONE, Shares
from vaegan.evaluation.similarity import Similarity, similarities
from vaegan.model import VAEGAN
from vaegan.objectives import elbo

BATCH = 256
ACTIVE_VARIANCE = 0.01  # of the posterior mean over images, above which a latent is active (Burda et al. 2016, 5.2)


@dataclass(frozen=True)
class Likelihood:
    """Pixel likelihood of the bound: that of a config's objective, else the Gaussian of optimal scale, under which
    models trained with different likelihoods can be compared."""

    kind: str = "gaussian_optimal"
    scale: float = 1.0

    @classmethod
    def of(cls, config: Config | None) -> "Likelihood":
        if config is None or config.objective.pixel_weight == 0:
            return cls()
        return cls(config.objective.pixel_likelihood, config.objective.pixel_scale)


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


def validate(model: VAEGAN, images: ImageSet, config: Config, shares: Shares) -> dict[str, float]:
    """Figures over the validation images, the same for any number of processes: those of `reconstruction_figures`
    but for the similarities, `val/` before their names. Where the objective has no pixel likelihood of its own, the
    bound is that of the Gaussian of optimal scale."""
    chosen, labels = spread_rows(len(images), config.train.val_images or len(images)), None
    if model.classes:
        labels = aligned(images.labels, images.classes, model.classes, model.class_names, "the validation set")
    batches = (
        (rows, images.batch(rows), None if labels is None else labels[rows])
        for rows in chosen.split(BATCH)[shares.rank :: shares.processes]
    )
    return {f"val/{name}": value for name, value in _measure(model, batches, config, shares, {}).items()}


def reconstruction_figures(
    model: VAEGAN,
    batches: Iterable[tuple],
    config: Config | None = None,
    shares: Shares = ALONE,
    *,
    perceptual: bool = True,
) -> tuple[dict[str, float], list[str]]:
    """Means over all processes' images, and a line for each figure that is left out. All processes call this together.

    batches: (rows, images) or (rows, images, labels) of this process: int64 (B,), or the first of B rows in turn, which
    count the noise; uint8 (B, C, H, W) of the model's shape; and of a conditional model int64 (B,). `mse`, `psnr` (dB)
    and the `similarities` (`ssim`, `ms_ssim`, `lpips`, the last unless `perceptual=False`) are means over images, of
    reconstructions from the posterior mean. Of variational models, `kl` and `elbo` are in nats and `bits_per_dim` in
    bits, by one posterior sample an image, and `active_units` counts latents. Likelihood and seed are those of `config`, where the model has one. Raises ConfigError for a model
    without encoder, images of another shape, or no images.
    """
    if model.encoder is None:
        raise ConfigError("the model has no encoder (it was trained as a GAN): give a VAE, a VAE-GAN or an autoencoder")
    extra, notes = similarities(model.image_shape[-1], model.device, shares, perceptual=perceptual)
    return _measure(model, batches, config, shares, extra), notes


def _measure(
    model: VAEGAN,
    batches: Iterable[tuple],
    config: Config | None,
    shares: Shares,
    extra: dict[str, Similarity],
) -> dict[str, float]:
    likelihood, key = Likelihood.of(config), counter.key(config.seed if config else 0, "validation")
    sums: dict[str, Tensor] = {}
    with evaluating(model):
        for rows, images, *labels in batches:
            stop.check()
            if images.shape[1:] != model.image_shape:
                got, wanted = ("x".join(map(str, shape)) for shape in (images.shape[1:], model.image_shape))
                raise ConfigError(f"images are {got}, but the model takes {wanted}: fit them to its form")
            if isinstance(rows, int):
                rows = torch.arange(rows, rows + len(images))
            x, rows = to_float(images.to(model.device)), rows.to(model.device)
            y = labels[0].to(model.device) if labels and labels[0] is not None else None
            for name, value in _sums(model, x, y, rows, likelihood, key, extra).items():
                sums[name] = sums.get(name, 0) + value
    return _figures(_total(sums, model, extra, shares), model, likelihood, extra)


def _sums(
    model: VAEGAN,
    x: Tensor,
    y: Tensor | None,
    rows: Tensor,
    likelihood: Likelihood,
    key: int,
    extra: dict[str, Similarity],
) -> dict[str, Tensor]:
    """Sums over a batch, float64 on the CPU (not every accelerator has float64)."""
    mu, logvar = model.encode(x)
    reconstruction = model.decode(mu, y)
    mse = (reconstruction - x).square().flatten(1).mean(1)
    sums = {"mse": mse.sum(), "psnr": (10 * torch.log10(4 / mse.clamp_min(1e-10))).sum()}
    if logvar is not None:
        eps = counter.normal(rows, model.latent_dim, key)
        raw = model.decoder(mu + (0.5 * logvar).exp() * eps, *(() if y is None else (y,)))
        if y is not None:  # what the image adds to its class
            mu = mu - model.prior_mean(y)
        sums |= {
            "kl": elbo.kl_divergence(mu, logvar).sum(),
            "sampled_mse": (raw.tanh() - x).square().flatten(1).mean(1).sum(),
            "nll": _nll(x, raw, model, likelihood).sum(),
            "mu": mu.sum(0),
            "mu2": mu.square().sum(0),
        }
    sums |= {name: similarity(reconstruction, x).sum() for name, similarity in extra.items()}
    return {name: value.cpu().double() for name, value in sums.items()} | {"n": torch.tensor(float(len(x))).double()}


def _nll(x: Tensor, raw: Tensor, model: VAEGAN, likelihood: Likelihood) -> Tensor:
    """The pixel likelihood, (B,) nats; zeros where it is the optimal Gaussian's, known by its error."""
    if likelihood.kind == "gaussian_optimal":
        return x.new_zeros(len(x))
    if likelihood.kind == "bernoulli":
        return elbo.bernoulli_nll(x, raw)
    if likelihood.kind == "laplace":
        return elbo.laplace_nll(x, raw.tanh(), likelihood.scale)
    learned = likelihood.kind == "gaussian_learned"
    return elbo.gaussian_nll(x, raw.tanh(), (2 * model.log_scale).exp() if learned else likelihood.scale**2)


def _total(sums: dict[str, Tensor], model: VAEGAN, extra: Iterable[str], shares: Shares) -> dict[str, Tensor]:
    """Add up the processes' sums in one message; a process without images takes part with zeros."""
    bound = {"kl": 1, "sampled_mse": 1, "nll": 1, "mu": model.latent_dim, "mu2": model.latent_dim}
    sizes = {"mse": 1, "psnr": 1, **(bound if model.variational else {}), **dict.fromkeys(extra, 1), "n": 1}
    zeros = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
    flat = shares.total(torch.cat([sums.get(name, zeros[name]).reshape(-1) for name in sizes]))
    return dict(zip(sizes, flat.split(list(sizes.values()))))


def _figures(sums: dict[str, Tensor], model: VAEGAN, likelihood: Likelihood, extra: Iterable[str]) -> dict[str, float]:
    n = round(sums["n"].item())
    if n == 0:
        raise ConfigError("there are no images to reconstruct: give a source that holds some")
    figures = {name: sums[name].item() / n for name in ("mse", "psnr", *extra)}
    if model.variational:
        dims = math.prod(model.image_shape)
        kl, nll = sums["kl"].item() / n, sums["nll"].item() / n
        if likelihood.kind == "gaussian_optimal":
            variance = elbo.optimal_variance(sums["sampled_mse"] / n).item()
            nll = 0.5 * dims * (elbo.LOG_2PI + math.log(variance) + sums["sampled_mse"].item() / n / variance)
        variance_of_mean = sums["mu2"] / n - (sums["mu"] / n).square()
        figures |= {
            "kl": kl,
            "elbo": -nll - kl,
            "bits_per_dim": elbo.bits_per_dim(nll + kl, dims, likelihood.kind == "bernoulli"),
            "active_units": float((variance_of_mean > ACTIVE_VARIANCE).sum()),
        }
    return figures
