"""pythae's models: built, trained by its trainers until the time is up, and opened as our evaluation takes a model."""

import contextlib
import logging
import os
import tempfile
import time

import numpy as np
import pythae.models
import pythae.models.nn.benchmarks.cifar
import pythae.models.nn.benchmarks.mnist
import pythae.trainers
import rivals
import torch
from contestants import Contestant, config_of, counts, finished, parameters
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseDiscriminator, BaseEncoder
from pythae.pipelines import TrainingPipeline
from pythae.samplers import GaussianMixtureSampler, GaussianMixtureSamplerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from quality_records import Job
from torch import Tensor, nn

from vaegan import latents
from vaegan.config import Config, ConfigError
from vaegan.data import load_data, spread_rows
from vaegan.mixture import Mixture
from vaegan.model import VAEGAN, Sampler, build_discriminator, build_model

BENCHMARKS = {"mnist": pythae.models.nn.benchmarks.mnist, "cifar10": pythae.models.nn.benchmarks.cifar}
NO_END = 10**6  # epochs: the clock ends the training
BLACK = -20.0  # before tanh, which makes -1 of it


class TimeIsUp(Exception):
    """Ends a training of pythae's, which has no other way to end within an epoch."""


class Clock(TrainingCallback):
    """Counts steps, images and seconds from where pythae's trainer begins its first epoch, and raises TimeIsUp."""

    def __init__(self, seconds: float):
        self.steps = self.images = 0
        self._seconds, self._left = seconds, 0

    def on_train_begin(self, training_config, **kwargs):
        self.start = time.perf_counter()

    def on_train_step_begin(self, training_config, **kwargs):
        self._left = len(kwargs["train_loader"].dataset)  # pythae calls so the beginning of an epoch

    def on_train_step_end(self, training_config, **kwargs):
        batch = min(training_config.per_device_train_batch_size, self._left)
        self.steps, self.images, self._left = self.steps + 1, self.images + batch, self._left - batch
        if time.perf_counter() - self.start >= self._seconds:
            raise TimeIsUp


def train(contestant: Contestant, job: Job, seconds: float) -> tuple[VAEGAN, dict]:
    """Train for so many seconds of wall-clock time; the model with its last weights (pythae chooses the best ones only
    between epochs), and what was done."""
    images = training_images(contestant, job)
    torch.manual_seed(job.seed)
    theirs, rival = build(contestant, job), rivals.RIVALS[contestant.rival]
    clock, cpu = Clock(seconds), job.budget == "cpu"
    with tempfile.TemporaryDirectory() as folder, _silence():
        config = getattr(pythae.trainers, rival.trainer)(
            output_dir=folder, num_epochs=NO_END, seed=job.seed, no_cuda=cpu, **rival.training
        )
        with contextlib.suppress(TimeIsUp):
            TrainingPipeline(model=theirs, training_config=config)(train_data=images, callbacks=[clock])
    elapsed = finished(clock.start, "cpu" if cpu else "cuda")
    players = {name: getattr(theirs, name, None) for name in ("encoder", "decoder", "discriminator")}
    model = opened(theirs, contestant, job)
    done = counts(elapsed, clock.steps, clock.images)
    return model, done | {"precision": "float32", "parameters": parameters(players)}


def open_model(contestant: Contestant, job: Job) -> VAEGAN:
    """The untrained model, for weights that were kept."""
    return opened(build(contestant, job), contestant, job)


def sampler(contestant: Contestant, job: Job, model: VAEGAN) -> Sampler | None:
    """What pythae documents for models without a prior in their loss: RAE is sampled by its Gaussian mixture, WAE from
    the standard normal. None for the others, which our evaluation samples from that by itself."""
    if contestant.rival == "WAE_MMD":
        return lambda n, seed, start, device: latents.prior(n, model.latent_dim, seed, start, device)
    if contestant.rival != "RAE_L2":
        return None
    theirs = build(contestant, job)
    theirs.encoder, theirs.decoder = model.encoder.theirs, model.decoder.theirs
    np.random.seed(job.seed)
    images = training_images(contestant, job)
    fitted = GaussianMixtureSampler(theirs, GaussianMixtureSamplerConfig(n_components=rivals.COMPONENTS))
    with _silence():
        fitted.fit(images[spread_rows(len(images), rivals.MIXTURE_IMAGES)])
    model.to(_device(job))  # the sampler takes a GPU where there is one
    weights, means, covariances = (
        torch.from_numpy(part).double() for part in (fitted.gmm.weights_, fitted.gmm.means_, fitted.gmm.covariances_)
    )
    return Mixture(weights, means, torch.linalg.cholesky(covariances))


def build(contestant: Contestant, job: Job):
    """pythae's model, untrained, on its benchmark networks for the data or on ours."""
    ours, rival = ours_of(contestant, job), rivals.RIVALS[contestant.rival]
    shape, values = rivals.shape(job.data, ours), rivals.values(contestant.rival, ours)
    config = getattr(pythae.models, rival.config)(input_dim=shape, **values)
    if ours is not None:
        model = build_model(ours)
        parts = [OurEncoder(model.encoder), OurDecoder(model.decoder), OurDiscriminator(build_discriminator(ours))]
    else:
        nets, name = BENCHMARKS[job.data], {"mnist": "MNIST", "cifar10": "CIFAR"}[job.data]
        kinds = [f"Encoder_Conv_{'VAE' if rival.variational else 'AE'}_{name}", f"Decoder_Conv_AE_{name}"]
        parts = [getattr(nets, kind)(config) for kind in kinds]
        parts += [getattr(nets, f"Discriminator_Conv_{name}")(config)] if rival.discriminator else []
    return getattr(pythae.models, contestant.rival)(config, *parts)


def ours_of(contestant: Contestant, job: Job) -> Config | None:
    return config_of(contestant, job) if contestant.our_networks else None


def training_images(contestant: Contestant, job: Job) -> Tensor:
    """float32 (N, C, H, W) in [0, 1], as pythae takes them: MNIST without the black border that our form has.

    ConfigError if that border is not black, so that to cut it off would lose something.
    """
    images = load_data(config_of(contestant, job).data)[0]
    pixels = images.batch(torch.arange(len(images)))
    border = (pixels.shape[-1] - rivals.shape(job.data, ours_of(contestant, job))[-1]) // 2
    inner = _cropped(pixels, border)
    if border and int(inner.count_nonzero()) != int(pixels.count_nonzero()):
        raise ConfigError(f"--images: pythae's networks take {inner.shape[-1]} pixels, and there is more in the border")
    return inner.float() / 255


# ---------------------------------------------------------------------- ours as pythae's


class OurEncoder(BaseEncoder):
    def __init__(self, ours: nn.Module):
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> ModelOutput:
        mu, logvar = self.ours(2 * x - 1)
        return ModelOutput(embedding=mu, log_covariance=logvar)


class OurDecoder(BaseDecoder):
    """Images in [0, 1]: (tanh(h) + 1) / 2 = sigmoid(2h)."""

    def __init__(self, ours: nn.Module):
        super().__init__()
        self.ours = ours

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=(2 * self.ours(z)).sigmoid())


class OurDiscriminator(BaseDiscriminator):
    """Our blocks are its layers 1, 2, …; the last layer is the probability, as pythae's loss takes it."""

    def __init__(self, ours: nn.Module):
        super().__init__()
        head = nn.Sequential(nn.Flatten(), ours.logit, nn.Sigmoid())
        self.layers = nn.ModuleList([*ours.blocks, head])
        self.depth = len(self.layers)

    def forward(self, x: Tensor, output_layer_levels: list[int] | None = None) -> ModelOutput:
        output, x = ModelOutput(), 2 * x - 1
        levels = output_layer_levels or [self.depth]
        for level, layer in enumerate(self.layers[: max(levels)], start=1):
            x = layer(x)
            if output_layer_levels and level in levels:
                output[f"embedding_layer_{level}"] = x
            if level == self.depth:
                output["embedding"] = x
        return output


# ---------------------------------------------------------------------- pythae's as ours


def opened(theirs, contestant: Contestant, job: Job) -> VAEGAN:
    """pythae's model as one of ours: images in [-1, 1], in our form. What its networks do not show is black."""
    config, rival = config_of(contestant, job), rivals.RIVALS[contestant.rival]
    size, channels = config.data.image_size, config.data.channels
    border = (size - rivals.shape(job.data, ours_of(contestant, job))[-1]) // 2
    model = VAEGAN(
        size, channels, theirs.latent_dim, network="mlp", hidden=(1,), norm="none", variational=rival.variational
    )
    model.encoder, model.decoder = TheirEncoder(theirs.encoder, border), TheirDecoder(theirs.decoder, border)
    return model.to(_device(job)).eval()


class TheirEncoder(nn.Module):
    def __init__(self, theirs: nn.Module, border: int):
        super().__init__()
        self.theirs, self._border = theirs, border

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        out = self.theirs((_cropped(x, self._border) + 1) / 2)
        return out.embedding, out.get("log_covariance")


class TheirDecoder(nn.Module):
    """What tanh makes the image in [-1, 1] of, as of our decoders: 2p - 1 = tanh(logit(p) / 2)."""

    def __init__(self, theirs: nn.Module, border: int):
        super().__init__()
        self.theirs, self._border = theirs, border

    def forward(self, z: Tensor) -> Tensor:
        raw = self.theirs(z).reconstruction.logit(eps=1e-7) / 2
        return nn.functional.pad(raw, [self._border] * 4, value=BLACK)


def _cropped(images: Tensor, border: int) -> Tensor:
    inside = slice(border, images.shape[-1] - border)
    return images[..., inside, inside]


def _device(job: Job) -> str:
    return "cpu" if job.budget == "cpu" else "cuda"


@contextlib.contextmanager
def _silence():
    """Without pythae's bars and lines; its errors come all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.disable(before)
