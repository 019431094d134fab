"""The model that is trained, exported and used: an encoder and a decoder around a standard normal latent."""

import contextlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vaegan import exported, latents
from vaegan.config import Config, ConfigError
from vaegan.networks import Decoder, Discriminator, Encoder
from vaegan.networks.layers import zero_embedding

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"


# (n, seed, start, device) -> latents (n, latent_dim); the one of image i depends on seed and start + i alone.
Sampler = Callable[[int, int, int, torch.device], Tensor]


class TrainingPass(NamedTuple):
    """What one pass of encoder and decoder hands to the objective."""

    mu: Tensor | None  # (B, latent_dim)
    logvar: Tensor | None  # (B, latent_dim)
    z: Tensor | None  # (B, latent_dim)
    z_decoded: Tensor | None  # the same numbers, on the decoder's side: its gradient is what the decoder sends back
    raw: Tensor  # (B to 2B, C, H, W) before tanh: reconstructions, then prior samples
    log_scale: Tensor | None  # () learned log-scale of the pixel likelihood
    prior_mean: Tensor | None = None  # (B, latent_dim) learned mean of p(z|y)


def of_rows(values: Tensor, rows: int) -> Tensor:
    """Values (B, …) of a batch's images for so many rows (rows, …) that show them: for the part of the images that is
    reconstructed, every second, third, … one, if that is all or in front; then for all of them, once or more."""
    times, part = divmod(rows, len(values))
    front = [values[:: len(values) // part]] if part else []
    return torch.cat([*front, *[values] * times])


class VAEGAN(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="vaegan",
    tags=["vae-gan", "image-generation"],
):
    """Encoder and decoder of a VAE, VAE-GAN, autoencoder or GAN (`encoder=False`).

    Images are (B, channels, image_size, image_size) float32 in [-1, 1]; latents are (B, latent_dim). The arguments
    are those of `vaegan.networks.Encoder` and `Decoder`. `learned_scale` adds the pixel likelihood's learned scale.

    With `classes` above 0 the decoder takes labels (B,) int64, and the prior is p(z|y) = N(m_y, I) with learned means
    (N(0, I) without encoder, where nothing would learn them); the encoder sees images alone. `class_names` may name them.
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 1,
        latent_dim: int = 16,
        network: str = "light",
        width: int = 32,
        max_width: int = 512,
        depth: int = 1,
        hidden: tuple[int, ...] = (512, 256),
        norm: str = "group",
        variational: bool = True,
        encoder: bool = True,
        learned_scale: bool = False,
        classes: int = 0,
        class_names: tuple[str, ...] = (),
    ):
        super().__init__()
        if classes < 0 or len(class_names) not in (0, classes) or not all(isinstance(c, str) for c in class_names):
            raise ValueError(f"class_names must be none or {classes} texts, got {len(class_names)}")
        self.image_shape = (channels, image_size, image_size)
        self.latent_dim, self.variational = latent_dim, variational
        self.classes, self.class_names = classes, list(class_names)
        shape = (image_size, channels, latent_dim, network, width, max_width, depth, tuple(hidden), norm)
        self.encoder = Encoder(*shape, variational=variational) if encoder else None
        self.decoder = Decoder(*shape, classes=classes)
        self.log_scale = nn.Parameter(torch.zeros(())) if learned_scale else None
        self.prior_means = zero_embedding(classes, latent_dim) if classes and encoder and variational else None

    def forward(
        self, x: Tensor | None, eps: Tensor | None, z_prior: Tensor | None, y: Tensor | None = None
    ) -> TrainingPass:
        """The training pass: one through the encoder, and one through the decoder for reconstructions and prior
        samples together. Pass x=None to decode only `z_prior` (B, latent_dim), or z_prior=None only to reconstruct.

        y: (B,) labels of the batch's images, which the prior samples beside them share: both players then see each class
        as often among fakes as among real images; x may hold every second, third, … image. The KL alone moves the
        prior's means.
        """
        mu = logvar = z = z_decoded = prior_mean = None
        if self.prior_means is not None:
            prior_mean = self.prior_means(y)
            z_prior = None if z_prior is None else prior_mean.detach() + z_prior
            prior_mean = prior_mean if x is None else of_rows(prior_mean, len(x))
        if x is not None:
            mu, logvar = self.encoder(x)
            z = mu if logvar is None else mu + (0.5 * logvar).exp() * eps  # Kingma & Welling 2014, equation 10
            z_decoded = z.view_as(z)
        latent = torch.cat([part for part in (z_decoded, z_prior) if part is not None])
        raw = self.decoder(latent) if y is None else self.decoder(latent, of_rows(y, len(latent)))
        return TrainingPass(mu, logvar, z, z_decoded, raw, self.log_scale, prior_mean)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance of q(z|x), each (B, latent_dim); the latter None if the model is not variational."""
        if self.encoder is None:
            raise ValueError("this model has no encoder: it was trained as a GAN")
        return self.encoder(x)

    def decode(self, z: Tensor, labels: Tensor | int | None = None) -> Tensor:
        """Images in [-1, 1] of latents (B, latent_dim). labels: (B,) int64, or one for all, of a conditional model;
        ValueError if it gets none, or another model gets some."""
        y = self._labels(labels, len(z))
        return (self.decoder(z) if y is None else self.decoder(z, y)).tanh()

    def reconstruct(self, x: Tensor, labels: Tensor | int | None = None) -> Tensor:
        """Images in [-1, 1] decoded from the posterior mean; `labels` as in `decode`."""
        return self.decode(self.encode(x)[0], labels)

    def prior_mean(self, y: Tensor) -> Tensor:
        """Means (B, latent_dim) of p(z|y) for labels (B,): zeros where the prior is N(0, I)."""
        if self.prior_means is None:
            return torch.zeros(len(y), self.latent_dim, device=self.device)
        return self.prior_means(y)

    def _labels(self, labels: Tensor | int | None, n: int) -> Tensor | None:
        return latents.checked_labels(labels, n, self.classes, self.device)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        seed: int = 0,
        start: int = 0,
        sampler: Sampler | None = None,
        labels: Tensor | int | None = None,
    ) -> Tensor:
        """n images in [-1, 1] from the prior. Latent i depends on seed and start + i alone, so that in evaluation
        mode any batch size or number of processes gives the same images, up to the rounding of float32.

        `sampler` draws latents in place of the standard normal; to those of a conditional model the prior's mean is
        added. labels: (n,) int64, or one for all; None draws each class with the same chance, by seed and start + i.
        """
        if sampler is None and self.encoder is not None and not self.variational:
            raise ValueError("a deterministic autoencoder has no prior to sample from")
        if sampler is None:
            z = latents.prior(n, self.latent_dim, seed, start, self.device)
        else:
            z = sampler(n, seed, start, self.device)
        if labels is None and self.classes:
            labels = latents.labels(n, self.classes, seed, start, self.device)
        y = self._labels(labels, n)
        return self.decode(z if y is None else z + self.prior_mean(y), y)

    def _save_pretrained(self, save_directory: Path) -> None:
        target = Path(save_directory) / WEIGHTS_FILE
        partial = target.with_name(f".{WEIGHTS_FILE}.{os.getpid()}")
        try:
            partial.write_bytes(save({name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}))
            os.replace(partial, target)  # a reader sees the old file or the new one
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> "VAEGAN":
        """Open a run folder, an exported folder or a Hub id; in evaluation mode, on the CPU unless `map_location`.

        Raises ConfigError (a ValueError) in one line if files are missing, unreadable or of another architecture.
        """
        source = str(pretrained_model_name_or_path)
        folder = Path(pretrained_model_name_or_path).expanduser()
        if folder.is_dir():
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                if not (folder / name).is_file():
                    raise ConfigError(f"{folder} holds no {name}: give a run folder whose training exported a model")
            exported.check_config(folder / CONFIG_FILE, set(inspect.signature(cls.__init__).parameters) - {"self"})
        elif source.count("/") != 1 or source.startswith(("/", ".", "~")) or folder.parent.is_dir():
            raise ConfigError(f"{source} is no folder: give a run folder, an exported folder or a Hub id (user/model)")
        try:
            return super().from_pretrained(source, **kwargs)
        except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError) as error:
            reason = " ".join(str(error).split())[:150]
            raise ConfigError(f"{source} is no folder here, and no model that the Hub gives ({reason})") from None
        except ConfigError:
            raise
        except (ValueError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{source} has a damaged {CONFIG_FILE} ({type(error).__name__})") from None

    @classmethod
    def _from_pretrained(
        cls, *, model_id, revision=None, cache_dir=None, force_download=False, local_files_only=False, token=None,
        map_location="cpu", **model_kwargs,
    ) -> "VAEGAN":  # fmt: skip
        file = Path(model_id) / WEIGHTS_FILE
        if not Path(model_id).is_dir():
            file = hf_hub_download(
                model_id, WEIGHTS_FILE, revision=revision, cache_dir=cache_dir, force_download=force_download,
                token=token, local_files_only=local_files_only,
            )  # fmt: skip
        try:
            state = load_file(file)
            exported.require_plain(model_kwargs, inspect.signature(cls.__init__).parameters, len(state))
            with torch.device("meta"):  # takes no memory, whatever sizes the config asks for
                model = cls(**model_kwargs)
            exported.require_same(state, model.state_dict())
            model.to_empty(device="cpu").load_state_dict(state)
        except (SafetensorError, OSError, RuntimeError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"{file} does not hold the model that its {CONFIG_FILE} describes ({reason})") from None
        return model.to(map_location).eval()


def build_model(config: Config, classes: int = 0, class_names: tuple[str, ...] = ()) -> VAEGAN:
    """The model of a config; no encoder is built where no term needs one. `classes` of the data set, where it is
    conditional."""
    m = config.model
    return VAEGAN(
        image_size=config.data.image_size,
        channels=config.data.channels,
        latent_dim=m.latent_dim,
        network=m.network,
        width=m.width,
        max_width=m.max_width,
        depth=m.depth,
        hidden=list(m.hidden),
        norm=m.norm,
        variational=m.variational,
        encoder=config.objective.uses_reconstruction,
        learned_scale=config.objective.pixel_likelihood == "gaussian_learned" and config.objective.pixel_weight > 0,
        classes=classes,
        class_names=list(class_names),
    )


def build_discriminator(config: Config, classes: int = 0) -> Discriminator | None:
    """The discriminator of a config, None where no term needs one. `classes` as in `build_model`."""
    if not config.objective.uses_discriminator:
        return None
    m = config.model
    return Discriminator(
        image_size=config.data.image_size,
        channels=config.data.channels,
        network=m.network,
        width=m.discriminator_width,
        max_width=m.max_width,
        depth=m.depth,
        hidden=m.discriminator_hidden,
        norm=m.discriminator_norm,
        spectral_norm=m.spectral_norm,
        feature_layer=m.feature_layer,
        classes=classes,
    )
