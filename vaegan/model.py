"""The model that is trained, exported and used: an encoder and a decoder around a standard normal latent."""

import contextlib
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vaegan import latents
from vaegan.config import Config, ConfigError
from vaegan.networks import Decoder, Discriminator, Encoder

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
_MOST_CONFIG = 1 << 16  # bytes


class TrainingPass(NamedTuple):
    """What one pass of encoder and decoder hands to the objective."""

    mu: Tensor | None  # (B, latent_dim)
    logvar: Tensor | None  # (B, latent_dim)
    z: Tensor | None  # (B, latent_dim)
    z_decoded: Tensor | None  # the same numbers, on the decoder's side: its gradient is what the decoder sends back
    raw: Tensor  # (B or 2B, C, H, W) before tanh: reconstructions, then prior samples
    log_scale: Tensor | None  # () learned log-scale of the pixel likelihood


class VAEGAN(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="vaegan",
    tags=["vae-gan", "image-generation"],
):
    """Encoder and decoder of a VAE, VAE-GAN, autoencoder or GAN (`encoder=False`).

    Images are (B, channels, image_size, image_size) float32 in [-1, 1]; latents are (B, latent_dim). The arguments
    are those of `vaegan.networks.Encoder` and `Decoder`. `learned_scale` adds the pixel likelihood's learned scale.
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
    ):
        super().__init__()
        self.image_shape = (channels, image_size, image_size)
        self.latent_dim, self.variational = latent_dim, variational
        shape = (image_size, channels, latent_dim, network, width, max_width, depth, tuple(hidden), norm)
        self.encoder = Encoder(*shape, variational=variational) if encoder else None
        self.decoder = Decoder(*shape)
        self.log_scale = nn.Parameter(torch.zeros(())) if learned_scale else None

    def forward(self, x: Tensor | None, eps: Tensor | None, z_prior: Tensor | None) -> TrainingPass:
        """The training pass: one through the encoder, and one through the decoder for reconstructions and prior
        samples together. Pass x=None to decode only `z_prior` (B, latent_dim), or z_prior=None only to reconstruct.
        """
        mu = logvar = z = z_decoded = None
        if x is not None:
            mu, logvar = self.encoder(x)
            z = mu if logvar is None else mu + (0.5 * logvar).exp() * eps  # Kingma & Welling 2014, equation 10
            z_decoded = z.view_as(z)
        raw = self.decoder(torch.cat([part for part in (z_decoded, z_prior) if part is not None]))
        return TrainingPass(mu, logvar, z, z_decoded, raw, self.log_scale)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance of q(z|x), each (B, latent_dim); the latter None if the model is not variational."""
        if self.encoder is None:
            raise ValueError("this model has no encoder: it was trained as a GAN")
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Images in [-1, 1] of latents (B, latent_dim)."""
        return self.decoder(z).tanh()

    def reconstruct(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] decoded from the posterior mean."""
        return self.decode(self.encode(x)[0])

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0, start: int = 0) -> Tensor:
        """n images in [-1, 1] from the prior. Latent i depends on seed and start + i alone, so that in evaluation
        mode any batch size or number of processes gives the same images, up to the rounding of float32."""
        if self.encoder is not None and not self.variational:
            raise ValueError("a deterministic autoencoder has no prior to sample from")
        return self.decode(latents.prior(n, self.latent_dim, seed, start, self.device))

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
            _check_config(folder / CONFIG_FILE, set(inspect.signature(cls.__init__).parameters) - {"self"})
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
            _require_plain(model_kwargs, inspect.signature(cls.__init__).parameters, len(state))
            with torch.device("meta"):  # takes no memory, whatever sizes the config asks for
                model = cls(**model_kwargs)
            _require_same(state, model.state_dict())
            model.to_empty(device="cpu").load_state_dict(state)
        except (SafetensorError, OSError, RuntimeError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"{file} does not hold the model that its {CONFIG_FILE} describes ({reason})") from None
        return model.to(map_location).eval()


def _check_config(file: Path, known: set[str]) -> None:
    """ConfigError unless an exported config.json holds arguments of VAEGAN and nothing else."""
    try:
        if file.stat().st_size > _MOST_CONFIG:
            raise ValueError(f"more than {_MOST_CONFIG} bytes")
        values = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is damaged ({error}): export the model again") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} is damaged (it holds no fields): export the model again")
    if unknown := sorted(set(values) - known):
        names = ", ".join(unknown)
        names = (names if names.isprintable() else repr(names))[:200]
        raise ConfigError(f"{file} has fields that this version does not know ({names}): update vaegan")


def _require_plain(arguments: dict, parameters: Mapping[str, inspect.Parameter], tensors: int) -> None:
    """ValueError for values that are not of their defaults' kinds, and for more layers than there are tensors: building
    them might take for ever."""
    for name, value in arguments.items():
        kind = type(parameters[name].default)
        if type(value) is not kind and not (kind is tuple and isinstance(value, list)):
            raise ValueError(f"{name} must be of type {kind.__name__}, got {type(value).__name__}")
    for name, layers in (("depth", arguments.get("depth", 0)), ("hidden", len(arguments.get("hidden", ())))):
        if layers > tensors:
            raise ValueError(f"{name} asks for {layers} layers, but there are {tensors} tensors")


def _require_same(state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """ValueError unless names and shapes agree."""
    shapes, wanted = ({name: tuple(tensor.shape) for name, tensor in of.items()} for of in (state, own))
    if different := [name for name in wanted | shapes if shapes.get(name) != wanted.get(name)]:
        name = different[0]
        raise ValueError(f"{name!r:.80} has shape {shapes.get(name)} for {wanted.get(name)}")


def build_model(config: Config) -> VAEGAN:
    """The model of a config; no encoder is built where no term needs one."""
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
    )


def build_discriminator(config: Config) -> Discriminator | None:
    """The discriminator of a config, None where no term needs one."""
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
    )
