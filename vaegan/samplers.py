"""What latents are drawn from: the prior, or what was fitted to the aggregated posterior and is saved with the model.

The decoder is trained where q(z|x) of the training images lies, which need not fill N(0, I): samples of the prior then
come from where the decoder has learned little (Dai & Wipf 2019; Ghosh et al. 2020). A fitted sampler draws from where
it has learned, and gives a deterministic autoencoder, which has no prior, something to draw from.
"""

import hashlib
import json
import logging
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import vaegan
from vaegan import counter, stop
from vaegan.config import ConfigError
from vaegan.data import to_float
from vaegan.evaluation.reconstruction import evaluating
from vaegan.evaluation.shares import ALONE, Shares
from vaegan.evaluation.sources import Source, labels_for, run_source
from vaegan.mixture import Mixture, fit_mixture
from vaegan.model import CONFIG_FILE, VAEGAN, WEIGHTS_FILE
from vaegan.sampling import write_whole
from vaegan.second_stage import SecondStage, fit_second_stage

PRIOR = "prior"
KINDS = {"mixture": Mixture, "second_stage": SecondStage}
NAMES = (PRIOR, *KINDS)
FOLDER = "samplers"  # in that of the model
LATENTS = 50_000  # at most so many are fitted to
_BATCH = 256
log = logging.getLogger("vaegan")


@torch.no_grad()
def posterior_latents(model: VAEGAN, source: Source, seed: int = 0) -> Tensor:
    """A draw of q(z|x) for each image of a source in the model's form: (N, latent_dim), on the model's device.

    Deterministic autoencoders give their codes; of a conditional model, the prior's mean for the image's label is taken
    off, as `VAEGAN.sample` adds it. Raises ConfigError if the model has no encoder, or the source no labels it needs.
    """
    if model.encoder is None:
        raise ConfigError("the model has no encoder, having been trained as a GAN: N(0, I) is what it was trained on")
    labels, key, latents = labels_for(model, source), counter.key(seed, "aggregated posterior"), []
    with evaluating(model):
        for start in range(0, len(source), _BATCH):
            stop.check()
            end = min(start + _BATCH, len(source))
            images, places = source.batch(start, end), torch.tensor(source.places(start, end))
            if not len(images):
                continue
            mu, logvar = model.encode(to_float(images.to(model.device)))
            eps = counter.normal(places.to(mu.device), model.latent_dim, key)
            z = mu if logvar is None else mu + (0.5 * logvar).exp() * eps
            latents.append(z if labels is None else z - model.prior_mean(labels[places].to(mu.device)))
    if not latents:
        raise ConfigError(f"{source.name} holds no images to fit a sampler to")
    return torch.cat(latents)


def fit_sampler(name: str, z: Tensor, seed: int = 0) -> tuple[Mixture | SecondStage, dict[str, str]]:
    """The sampler of that name for latents (N, latent_dim), every tenth held out where there are 20 or more; and what
    to say of it: their numbers, and the mean log-likelihood in nats of those held out (of all, if none are)."""
    if name not in KINDS:
        raise ConfigError(f"only {' and '.join(KINDS)} are fitted, got {name!r}")
    left = torch.arange(len(z), device=z.device) % 10 == (9 if len(z) >= 20 else 10)
    fitted, held_out = z[~left], z[left] if left.any() else z
    sampler = fit_mixture(fitted, seed=seed, held_out=held_out) if name == "mixture" else fit_second_stage(fitted, seed)
    about = {"latents": str(len(fitted)), "held_out": str(int(left.sum())), "seed": str(seed)}
    about["nats"] = f"{sampler.log_density(held_out).mean().item():.3f}"
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(held_out.cpu()).sum(1).mean().item()
    return sampler, about | {"nats_prior": f"{normal:.3f}"}


def save_sampler(folder: str | Path, sampler: Mixture | SecondStage, about: dict[str, str] | None = None) -> Path:
    """Write samplers/NAME.safetensors into the folder of the exported model to whose latents it was fitted, naming its
    weights by their hash; `about` goes beside it. OSError if the disk does not take it."""
    folder = Path(folder).expanduser()
    file = folder / FOLDER / f"{sampler.name}.safetensors"
    write_whole(file, _encoded(sampler, _hash(folder), about or {}))
    return file


def open_sampler(folder: str | Path, name: str) -> Mixture | SecondStage:
    """What `save_sampler` wrote. Raises ConfigError in one line if there is none, if it is damaged or does not fit the
    model's latents, or if it was fitted to other weights than the folder's model now has."""
    folder = Path(folder).expanduser()
    if name not in KINDS:
        raise ConfigError(f"only {' and '.join(KINDS)} are files, got {name!r} (to sample the prior, give no sampler)")
    file = folder / FOLDER / f"{name}.safetensors"
    if not file.is_file():
        raise ConfigError(f"{folder} holds no {FOLDER}/{file.name}: fit it with sample.py {folder} --sampler {name}")
    data = _read(file)
    if _metadata(file, data)["model"] != _hash(folder):
        raise ConfigError(f"{file} was fitted to other weights: fit it anew with sample.py {folder} --sampler {name}")
    return _decoded(file, data, name, _latent_dim(folder / CONFIG_FILE))


def sampler_of(
    run: str | Path, name: str, model: VAEGAN, shares: Shares = ALONE, *, root: str | None = None
) -> Mixture | SecondStage | None:
    """The sampler of a run's model, on every process: the one in its folder or, if that has none for these weights, one
    that the first process fits to the run's training images and saves. None for the prior.

    root: where named sets lie, None for where the run found them. Raises ConfigError if it can be neither opened nor
    fitted. All processes call it together.
    """
    if name == PRIOR:
        return None
    folder = Path(run).expanduser()
    file = folder / FOLDER / f"{name}.safetensors"
    data = _current(folder, file, name, model, root) if shares.rank == 0 else b""
    return _decoded(file, _of_the_first(data, shares), name, model.latent_dim)


def _current(folder: Path, file: Path, name: str, model: VAEGAN, root: str | None) -> bytes:
    """The bytes of a sampler file for the model's weights as they are."""
    if file.is_file():
        data = _read(file)
        if _metadata(file, data)["model"] == _hash(folder):
            return data
        log.info("%s was fitted to other weights than the model's: it is fitted anew", file)
    if model.encoder is None:
        raise ConfigError(f"{folder} was trained as a GAN, without encoder: there is no posterior to fit {name} to")
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{folder} holds no {FOLDER}/{file.name} for its weights, and no config.yaml, which would name the images "
            f"to fit it to: give the run folder, or copy {FOLDER}/ from there"
        )
    began = time.monotonic()
    source = run_source(folder, "train", root=root, limit=LATENTS, on_bad_image="skip")
    sampler, about = fit_sampler(name, posterior_latents(model, source))
    data = _encoded(sampler, _hash(folder), about | {"images": source.manifest})
    if source.skipped:
        log.warning("%d of %d images are damaged and were skipped", len(source.skipped), len(source))
    log.info(
        "%s fitted to %s latents of %s in %.0f s: %s nats on those held out (N(0, I): %s)",
        name, about["latents"], source.name, time.monotonic() - began, about["nats"], about["nats_prior"],
    )  # fmt: skip
    try:
        write_whole(file, data)
    except OSError as error:
        log.warning("%s cannot be written (%s): it is not kept for the next time", file, error.strerror or error)
    return data


def _of_the_first(data: bytes, shares: Shares) -> bytes:
    """The first process's bytes, on all: they need not share a disk, and that may be read-only."""
    if shares.processes == 1:
        return data
    length = int(shares.total(torch.tensor([float(len(data))], dtype=torch.float64)).item())
    values = torch.zeros(length)
    if shares.rank == 0:
        values.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return shares.total(values).to(torch.uint8).numpy().tobytes()


def _hash(folder: Path) -> str:
    """What `sha256sum` says of the model's weights."""
    return hashlib.sha256(_read(folder / WEIGHTS_FILE)).hexdigest()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror or error})") from error


def _latent_dim(config: Path) -> int:
    """Of the model whose config.json this is."""
    try:
        return int(json.loads(_read(config))["latent_dim"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(f"{config} is damaged ({type(error).__name__}): export the model again") from None


def _encoded(sampler: Mixture | SecondStage, model: str, about: dict[str, str]) -> bytes:
    described = about | {
        "sampler": sampler.name,
        "model": model,
        "vaegan": vaegan.__version__,
        "torch": torch.__version__,
    }
    return save(sampler.tensors(), metadata={"fitted": json.dumps(described, sort_keys=True)})


def _metadata(file: Path, data: bytes) -> dict[str, str]:
    """What a sampler file says of itself; ConfigError if that is not to be read."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        described = json.loads(header["__metadata__"]["fitted"])
        if not isinstance(described["model"], str) or not isinstance(described["sampler"], str):
            raise TypeError("no words")
        return described
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _damaged(file, f"its header is not to be read: {type(error).__name__}") from None


def _decoded(file: Path, data: bytes, name: str, latent_dim: int) -> Mixture | SecondStage:
    """The sampler of a file's bytes; ConfigError unless they hold that kind, over so many latents."""
    if _metadata(file, data)["sampler"] != name:
        raise _damaged(file, f"it is a {_metadata(file, data)['sampler']:.40}")
    try:
        tensors = load(data)
        return KINDS[name].of(tensors, latent_dim)
    except (SafetensorError, ValueError, RuntimeError, TypeError, LookupError) as error:
        raise _damaged(file, " ".join(str(error).split())[:200]) from None


def _damaged(file: Path, reason: str) -> ConfigError:
    reason = reason if reason.isprintable() else repr(reason)
    return ConfigError(f"{file} does not hold the sampler of its name ({reason}): remove it, and it is fitted anew")
