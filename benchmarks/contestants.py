"""Who takes part in the quality benchmark, as tables of what each one changes in the recipe. Nothing here imports torch
before something is trained.

All of ours have the recipe's networks, data and batches; the objective, and with it the optimizer, is what differs.
"""

import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import rivals
from quality_records import Job

from vaegan.cli import config_from_dict, load_yaml
from vaegan.config import Config, ConfigError

if TYPE_CHECKING:
    from vaegan.model import VAEGAN

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = {("mnist", "cpu"): "mnist", ("cifar10", "cpu"): "cifar10", ("cifar10", "gpu"): "cifar10_gpu"}
# Sections of a config that make a contestant what it is, without the fields that do not.
LEFT_OUT = {"data": ("source", "root", "val_source", "val_fraction", "split_seed", "storage", "memory_limit", "workers",
                     "damaged", "damaged_limit")}  # fmt: skip
TRAIN = ("batch_size", "accumulate", "ema_decay", "precision", "compile", "channels_last")
NO_END = 10**9  # steps: the clock ends the training


@dataclass(frozen=True)
class Contestant:
    """A row of a table: its name in files, its title, and what it changes."""

    name: str
    title: str
    objective: str | dict | None = None
    """In the place of the recipe's: that of a config, with its optimizer, or these fields alone."""
    overrides: dict = field(default_factory=dict)
    """Single fields after that, by dotted name; a function gets the recipe's value."""
    rival: str = ""
    """pythae's model, where it is pythae's."""
    our_networks: bool = False
    seeds: tuple[int, int] = (1, 0)
    """How many of MNIST and of CIFAR-10, if the command line does not say."""


CONTESTANTS = (
    Contestant("vaegan", "vaegan, the recipe", seeds=(3, 3)),
    Contestant("gan", "GAN, our networks", overrides={
        "objective.kl_weight": 0.0, "objective.pixel_weight": 0.0, "objective.feature_weight": 0.0,
        "objective.balance": False, "objective.adversarial_weight": 1.0, "objective.fakes": "prior",
        "objective.reconstruct_every": 1,  # read by nothing of it: a recipe's value would be part of its records
    }, seeds=(3, 3)),
    Contestant("vae", "VAE, our networks", {"kl_weight": 1.0, "pixel_likelihood": "gaussian_optimal"},
               {"optimizer.betas": [0.9, 0.999]}, seeds=(3, 1)),
    Contestant("beta_vae", "beta-VAE, our networks", "beta_vae"),
    Contestant("larsen", "Larsen et al., our networks", "larsen"),
    Contestant("pythae_vaegan", "pythae VAEGAN", rival="VAEGAN", seeds=(3, 1)),
    Contestant("pythae_vaegan_our_networks", "pythae VAEGAN, our networks", rival="VAEGAN", our_networks=True,
               seeds=(3, 1)),
    Contestant("pythae_wae", "pythae WAE-MMD", rival="WAE_MMD"),
    Contestant("pythae_rae", "pythae RAE-L2", rival="RAE_L2"),
    Contestant("pythae_vae", "pythae VAE", rival="VAE"),
)  # fmt: skip

# The recipe that the ablation was made of had learned similarity, which did not pay: it is without since.
BASE = {"objective.feature_weight": 1.0}
# That one, and one choice of it turned off at a time.
ABLATION = (
    Contestant("with_features", "the recipe with learned similarity", overrides=BASE),
    Contestant("no_features", "no learned similarity: the recipe as it is", overrides={"objective.feature_weight": 0.0}),
    Contestant("no_pixels", "no pixel term", overrides=BASE | {"objective.pixel_weight": 0.0}),
    Contestant("no_balance", "no balance: an adversarial weight of 1",
               overrides=BASE | {"objective.balance": False, "objective.adversarial_weight": 1.0}),
    Contestant("no_penalties", "no R1, R2", overrides=BASE | {"objective.r1_weight": 0.0, "objective.r2_weight": 0.0}),
    Contestant("every_penalty", "R1, R2 in every step", overrides=BASE | {"objective.penalty_interval": 1}),
    Contestant("nonsaturating", "non-saturating loss for the relativistic one",
               overrides=BASE | {"objective.adversarial_loss": "nonsaturating"}),
    Contestant("all_reconstructed", "every image reconstructed, not one in four",
               overrides=BASE | {"objective.reconstruct_every": 1}),
    Contestant("both_fakes", "reconstructions among the fakes", overrides=BASE | {"objective.fakes": "both"}),
    Contestant("no_ema", "no averaged weights", overrides=BASE | {"train.ema_decay": 0.0}),
    Contestant("momentum_5", "Adam's momentum 0.5", overrides=BASE | {
        "optimizer.betas": lambda betas: [0.5, betas[1]],
        "optimizer.discriminator_betas": lambda betas: [0.5, betas[1]],
    }),
    Contestant("momentum_9", "Adam's momentum 0.9", overrides=BASE | {
        "optimizer.betas": lambda betas: [0.9, betas[1]],
        "optimizer.discriminator_betas": lambda betas: [0.9, betas[1]],
    }),
    Contestant("twice_the_latents", "twice the latents",
               overrides=BASE | {"model.latent_dim": lambda dims: 2 * dims}),
)  # fmt: skip
ABLATION_SEEDS = (0, 1)


def named(name: str) -> Contestant:
    """ConfigError if there is none of that name."""
    for contestant in (*CONTESTANTS, *ABLATION):
        if contestant.name == name:
            return contestant
    names = ", ".join(contestant.name for contestant in (*CONTESTANTS, *ABLATION))
    raise ConfigError(f"--contestants {name!r} is none of {names}")


def config_of(contestant: Contestant, job: Job) -> Config:
    """The config that a contestant of ours is trained by; of a rival, the recipe, whose data and networks it takes."""
    values = load_yaml(CONFIGS / f"{RECIPES[job.data, job.budget]}.yaml")
    if isinstance(contestant.objective, str):
        other = load_yaml(CONFIGS / f"{contestant.objective}.yaml")
        values |= {"objective": other["objective"], "optimizer": other.get("optimizer", {})}
    elif contestant.objective is not None:
        values["objective"] = contestant.objective
    relative = any(callable(value) for value in contestant.overrides.values())
    recipe = config_from_dict(values).as_dict() if relative else {}
    for name, value in contestant.overrides.items():
        section, key = name.split(".")
        values.setdefault(section, {})[key] = value(recipe[section][key]) if callable(value) else value
    source = dict(zip(("source", "val_source"), job.images))
    values["data"] |= {"root": job.root, **source}
    values["train"] = {k: v for k, v in values["train"].items() if k != "epochs"} | {
        "steps": NO_END, "threads": job.threads, "device": "cpu" if job.budget == "cpu" else "auto",
    }  # fmt: skip
    return config_from_dict(values | {"name": contestant.name, "seed": job.seed})


def recipe_of(contestant: Contestant, job: Job) -> dict:
    """What decides what a contestant is, as plain values: of a config the fields that are not at their defaults, so
    that a new field that is off changes nothing."""
    config = config_of(contestant, job)
    if contestant.rival:
        return rivals.recipe(contestant.rival, job.data, config if contestant.our_networks else None)
    return {section: changed for section in ("data", "model", "objective", "optimizer", "train")
            if (changed := _changed(config, section))}  # fmt: skip


def _changed(config: Config, section: str) -> dict:
    values, part = config.as_dict()[section], getattr(config, section)
    names = [f.name for f in fields(part) if getattr(part, f.name) != f.default]
    names = [name for name in names if name not in LEFT_OUT.get(section, ()) and (section != "train" or name in TRAIN)]
    return {name: values[name] for name in names}


def train_ours(contestant: Contestant, job: Job, seconds: float) -> tuple["VAEGAN", dict]:
    """Train for so many seconds of wall-clock time; the averaged model, and what was done.

    Counted are batches and steps, the first ones with all that they warm up, and nothing else: no validation, grids,
    measurements or saves. A learning rate that falls does so with the clock: at each step the number of all steps is
    what the pace so far comes to.
    """
    from vaegan.data import load_data
    from vaegan.training import Trainer, process

    config = config_of(contestant, job)
    accelerator = process.start(config)
    trainer = Trainer(config, accelerator, load_data(config.data)[0], None)
    batches = trainer.batches()
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        if trainer.step:
            trainer.total_steps = max(trainer.step + 1, round(trainer.step * seconds / elapsed))
        trainer.train_step(next(batches))
    elapsed = finished(start, accelerator.device.type)
    counted = counts(elapsed, trainer.step, trainer.step * config.train.batch_size)
    players = {"encoder": trainer.plain_model.encoder, "decoder": trainer.plain_model.decoder,
               "discriminator": trainer.plain_discriminator}  # fmt: skip
    precision = "bfloat16" if accelerator.mixed_precision == "bf16" else "float32"
    return trainer.sampling_model.eval(), counted | {"precision": precision, "parameters": parameters(players)}


def open_ours(contestant: Contestant, job: Job) -> "VAEGAN":
    """The untrained model, for weights that were kept."""
    from vaegan.model import build_model

    return build_model(config_of(contestant, job)).eval()


def finished(start: float, device: str) -> float:
    """Seconds since `start`, the last step being done on a GPU too."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter() - start


def counts(seconds: float, steps: int, images: int) -> dict:
    return {"seconds": round(seconds, 2), "steps": steps, "images": images, "images/s": round(images / seconds, 2)}


def parameters(players: dict) -> dict[str, int]:
    """Weights of each network; those that a contestant has not are left out."""
    return {name: sum(p.numel() for p in module.parameters()) for name, module in players.items() if module is not None}
