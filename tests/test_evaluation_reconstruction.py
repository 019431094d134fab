"""Reconstruction figures against closed forms and torchmetrics, over batches and processes."""

import contextlib
import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Laplace, Normal
from torchmetrics.functional import image as reference

from vaegan.config import Config, ConfigError, ModelConfig, ObjectiveConfig, TrainConfig
from vaegan.data import to_float
from vaegan.evaluation.reconstruction import evaluating, is_better, reconstruction_figures, validate, validation_metrics
from vaegan.evaluation.shares import ALONE, Shares
from vaegan.model import VAEGAN

CPU = torch.device("cpu")


class Means(nn.Module):
    """An encoder whose latents are the image's mean times some factors, and whose variances are one."""

    def __init__(self, factors: list[float], variational: bool = True):
        super().__init__()
        self.factors, self.variational = nn.Parameter(torch.tensor(factors)), variational

    def forward(self, x):
        mu = x.flatten(1).mean(1, keepdim=True) * self.factors
        return mu, torch.zeros_like(mu) if self.variational else None


class Constant(nn.Module):
    """A decoder that draws the same grey image of whatever it is given."""

    def __init__(self, shape, value: float):
        super().__init__()
        self.shape, self.raw = shape, nn.Parameter(torch.tensor(value).atanh())

    def forward(self, z):
        return self.raw.expand(len(z), *self.shape)


def hand_made(factors=(1.0, 0.0), value=0.2, size=8, variational=True) -> VAEGAN:
    model = VAEGAN(image_size=size, latent_dim=len(factors), width=4, variational=variational, learned_scale=True)
    model.encoder, model.decoder = Means(list(factors), variational), Constant(model.image_shape, value)
    return model


def noise(n: int, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.randint(256, (n, channels, size, size), generator=torch.Generator().manual_seed(n)).to(torch.uint8)


def cut(images: torch.Tensor, size: int, shares: Shares = ALONE) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rows = torch.arange(len(images)).split(size)[shares.rank :: shares.processes]
    return [(part, images[part]) for part in rows]


def config_of(**objective) -> Config:
    return Config(objective=ObjectiveConfig(**objective), train=TrainConfig(steps=1), seed=3)


def over_processes(measure, processes: int) -> list:
    """What `measure(shares)` returns on each of so many processes, whose sums are recorded first and then added."""
    recorded = [[] for _ in range(processes)]
    for rank, sums in enumerate(recorded):
        with contextlib.suppress(ConfigError):  # a process alone may have no images
            measure(Shares(rank, processes, lambda value, sums=sums: sums.append(value) or value))
    totals = [iter([sum(parts) for parts in zip(*recorded)]) for _ in range(processes)]
    return [measure(Shares(rank, processes, lambda _, given=totals[rank]: next(given))) for rank in range(processes)]


# ---------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("kind", ["gaussian", "gaussian_learned", "laplace", "bernoulli", "gaussian_optimal", None])
def test_error_and_bound_are_the_closed_forms(kind):
    """The decoder draws the same image of every latent, so that one posterior sample is as good as all."""
    model, images = hand_made((1.0, -2.0)), noise(7)
    nn.init.constant_(model.log_scale, -0.7)
    config = kind and config_of(pixel_likelihood=kind, pixel_scale=0.3)
    figures, _ = reconstruction_figures(model, cut(images, 3), config, perceptual=False)
    x = to_float(images).double()
    mse = (x - 0.2).square().flatten(1).mean(1)
    assert figures["mse"] == pytest.approx(mse.mean().item(), rel=1e-6)
    assert figures["psnr"] == pytest.approx((10 * (4 / mse).log10()).mean().item(), rel=1e-6)
    kl = 0.5 * (1 + 4) * x.flatten(1).mean(1).square().mean().item()
    assert figures["kl"] == pytest.approx(kl, rel=1e-5)
    scale = {"gaussian": 0.3, "laplace": 0.3, "gaussian_learned": math.exp(-0.7)}.get(kind, mse.mean().sqrt().item())
    pixel = Laplace(0.2, 0.3) if kind == "laplace" else Normal(0.2, scale)
    log_p, step = pixel.log_prob(x), 2 / 255
    if kind == "bernoulli":
        log_p, step = Bernoulli(torch.tensor(0.6).double(), validate_args=False).log_prob((x + 1) / 2), 1
    bound = log_p.sum((1, 2, 3)).mean().item() - kl
    assert figures["elbo"] == pytest.approx(bound, rel=1e-5)
    assert figures["bits_per_dim"] == pytest.approx(-bound / 64 / math.log(2) - math.log2(step), rel=1e-5)


def test_active_units_are_those_whose_mean_varies():
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(3)[:, None, None, None].expand(6, 1, 8, 8)
    model = hand_made((1.0, 0.11, 0.09, 0.0))  # the mean is -1 or 1: variances 1, 0.0121, 0.0081, 0
    assert reconstruction_figures(model, cut(images, 4), perceptual=False)[0]["active_units"] == 2


def test_a_deterministic_autoencoder_has_no_bound():
    figures, _ = reconstruction_figures(hand_made(variational=False), cut(noise(3), 2), perceptual=False)
    assert list(figures) == ["mse", "psnr", "ssim"]


def test_a_perfect_reconstruction_has_a_finite_psnr():
    images = torch.full((2, 1, 8, 8), 153, dtype=torch.uint8)  # 0.2
    figures, _ = reconstruction_figures(hand_made(), cut(images, 2), perceptual=False)
    assert figures["mse"] < 1e-12 and figures["psnr"] == pytest.approx(106.02, abs=0.01)
    assert figures["ssim"] == pytest.approx(1, abs=1e-3) and math.isfinite(figures["elbo"])


# ---------------------------------------------------------------------- against torchmetrics


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16), (3, 256)])
def test_similarities_are_torchmetrics_of_each_image(channels, size):
    torch.manual_seed(0)
    model, images = VAEGAN(image_size=size, channels=channels, latent_dim=4, width=4).eval(), noise(3, channels, size)
    figures, _ = reconstruction_figures(model, cut(images, 2), perceptual=False)  # the last batch is partial
    x = to_float(images)
    with torch.no_grad():
        pairs = [((model.reconstruct(one[None]) + 1) / 2, (one[None] + 1) / 2) for one in x]
    wanted = {
        "psnr": [reference.peak_signal_noise_ratio(*pair, data_range=1.0) for pair in pairs],
        "ssim": [reference.structural_similarity_index_measure(*pair, data_range=1.0) for pair in pairs],
    }
    if size == 256:
        wanted["ms_ssim"] = [
            reference.multiscale_structural_similarity_index_measure(*pair, data_range=1.0) for pair in pairs
        ]
    for name, values in wanted.items():
        assert figures[name] == pytest.approx(torch.stack(values).mean().item(), rel=1e-4), name
    assert ("ms_ssim" in figures) == (size == 256)


# ---------------------------------------------------------------------- processes, batches, training


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("processes", [2, 5])  # of five processes, two have no images
def test_processes_agree_with_one(processes, variational):
    torch.manual_seed(1)
    model, images = VAEGAN(image_size=8, latent_dim=3, width=4, variational=variational), noise(20)

    def measure(shares):
        return reconstruction_figures(model, cut(images, 8, shares), None, shares, perceptual=False)[0]

    alone = measure(ALONE)
    for figures in over_processes(measure, processes):
        assert figures == pytest.approx(alone, rel=1e-12)


def test_neither_batch_size_nor_the_global_generator_matters():
    torch.manual_seed(1)
    model, images = VAEGAN(image_size=8, latent_dim=3, width=4), noise(11)
    whole, _ = reconstruction_figures(model, cut(images, 11), perceptual=False)
    state = torch.get_rng_state()
    parts, _ = reconstruction_figures(model, ((i, images[i : i + 4]) for i in range(0, 11, 4)), perceptual=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert parts == pytest.approx(whole, rel=1e-5) and model.training


def test_training_sees_the_same_figures():
    torch.manual_seed(1)
    model, images = VAEGAN(image_size=8, latent_dim=3, width=4), noise(30)
    image_set = type("Images", (), {"__len__": lambda self: 30, "batch": lambda self, rows: images[rows]})()
    config = config_of(pixel_likelihood="laplace", pixel_scale=0.2)
    seen = validate(model, image_set, config, ALONE)
    figures, _ = reconstruction_figures(model, cut(images, 256), config, perceptual=False)
    assert seen == {f"val/{name}": value for name, value in figures.items() if name != "ssim"}
    assert sorted(seen) == sorted(validation_metrics(config))
    some = validate(model, image_set, dataclasses.replace(config, train=TrainConfig(steps=1, val_images=10)), ALONE)
    rows = torch.arange(0, 30, 3)
    figures, _ = reconstruction_figures(model, [(rows, images[rows])], config, perceptual=False)
    assert some["val/elbo"] == figures["elbo"]
    other, _ = reconstruction_figures(model, cut(images, 256), dataclasses.replace(config, seed=4), perceptual=False)
    assert other["elbo"] != seen["val/elbo"] and other["mse"] == seen["val/mse"]


def test_names_and_directions():
    autoencoder = Config(
        model=ModelConfig(variational=False), objective=ObjectiveConfig(kl_weight=0), train=TrainConfig(steps=1)
    )
    assert validation_metrics(autoencoder) == ["val/mse", "val/psnr"]
    gan = ObjectiveConfig(kl_weight=0, pixel_weight=0, adversarial_weight=1)
    assert validation_metrics(Config(objective=gan, train=TrainConfig(steps=1))) == []
    assert is_better("val/psnr", 2, 1) and is_better("val/elbo", -1, -2) and is_better("coverage", 2, 1)
    assert is_better("val/mse", 1, 2) and is_better("FID", 1, 2) and not is_better("val/psnr", math.nan, 1)


def test_evaluating_restores_the_mode_after_an_error():
    model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="stop"), evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
        raise RuntimeError("stop")
    assert model.training and torch.is_grad_enabled()


def test_shares_of_an_accelerator():
    assert Shares.of(SimpleNamespace(num_processes=1)) == ALONE

    def reduce(value, how):
        assert how == "sum"
        return value * 3

    shares = Shares.of(SimpleNamespace(process_index=1, num_processes=3, device=CPU, reduce=reduce))
    total = shares.total(torch.tensor([1 / 3], dtype=torch.float64))
    assert (shares.rank, shares.processes) == (1, 3) and total.dtype == torch.float64 and total.item() == 1


def test_errors():
    with pytest.raises(ConfigError, match="no encoder"):
        reconstruction_figures(VAEGAN(image_size=8, latent_dim=3, width=4, encoder=False), [])
    with pytest.raises(ConfigError, match="images are 3x16x16, but the model takes 1x8x8"):
        reconstruction_figures(hand_made(), cut(noise(2, 3, 16), 2), perceptual=False)
    with pytest.raises(ConfigError, match="no images"):
        reconstruction_figures(hand_made(), [], perceptual=False)
