"""pythae's models in the quality benchmark, as tables of what its documentation gives them. `quality_pythae.py` trains
them so; nothing here imports torch or pythae.

Nothing of pythae's is mended. Its values are those of its repository, clementchadebec/benchmark_VAE: S is
examples/scripts/configs/mnist (its "training on benchmark datasets"; cifar10 beside it has the same values, as far as
it has any), N the model's notebook in examples/notebooks/models_training. Where the two differ, the one is taken that
suits a short training or samples from the prior.
"""

from dataclasses import dataclass

from vaegan.config import Config

VERSION = "0.1.2"
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}  # of the images that its benchmark networks take
COMPONENTS, MIXTURE_IMAGES = 10, 10_000  # of the mixture that samples RAE (N), fitted to so many training images


@dataclass(frozen=True)
class Rival:
    """A model by the names of pythae's classes, and their fields."""

    config: str
    values: dict
    trainer: str
    training: dict
    variational: bool = True
    discriminator: bool = False


RIVALS = {
    "VAE": Rival(
        "VAEConfig", {"latent_dim": 16, "reconstruction_loss": "mse"},  # S, N
        "BaseTrainerConfig", {"per_device_train_batch_size": 100, "learning_rate": 1e-3},  # S; 64 and 1e-4 in N
    ),
    "WAE_MMD": Rival(
        "WAE_MMD_Config",  # S, N, but for reg_weight: N, and 1 in S
        {"latent_dim": 16, "kernel_choice": "imq", "kernel_bandwidth": 2.0, "reg_weight": 100.0},
        "BaseTrainerConfig", {"per_device_train_batch_size": 100, "learning_rate": 1e-3},  # S; 64 and 1e-4 in N
        variational=False,
    ),
    # Trainers with an optimizer for each network do not read `learning_rate`, which is 1e-3 in S and 1e-4 in N: the
    # rates that they do read are named nowhere, and stay at their default, 1e-4.
    "RAE_L2": Rival(
        "RAE_L2_Config", {"latent_dim": 16, "embedding_weight": 1e-2, "reg_weight": 1e-4},  # S, N
        "CoupledOptimizerTrainerConfig",
        {"per_device_train_batch_size": 100, "encoder_learning_rate": 1e-4, "decoder_learning_rate": 1e-4},  # S, N
        variational=False,
    ),
    "VAEGAN": Rival(
        "VAEGANConfig",  # S, N
        {"latent_dim": 16, "reconstruction_loss": "mse", "adversarial_loss_scale": 0.8, "reconstruction_layer": 3,
         "margin": 0.4, "equilibrium": 0.68},
        "CoupledOptimizerAdversarialTrainerConfig",  # the batch size is N's; 100 in S
        {"per_device_train_batch_size": 64, "encoder_learning_rate": 1e-4, "decoder_learning_rate": 1e-4,
         "discriminator_learning_rate": 1e-4},
        discriminator=True,
    ),
}  # fmt: skip


def values(name: str, ours: Config | None) -> dict:
    """Fields of a model's config; on our networks, latents and feature layer are those of our config."""
    found = dict(RIVALS[name].values)
    if ours is not None:
        layer = ours.model.feature_layer % ours.discriminator_blocks + 1  # which pythae counts from 1
        found |= {"latent_dim": ours.model.latent_dim, "reconstruction_layer": layer}
    return found


def shape(data: str, ours: Config | None) -> tuple[int, int, int]:
    """Of the images that a model takes, (C, H, W)."""
    return SHAPES[data] if ours is None else (ours.data.channels, ours.data.image_size, ours.data.image_size)


def recipe(name: str, data: str, ours: Config | None) -> dict:
    """What decides what a rival is, as plain values."""
    networks = "its benchmark networks" if ours is None else ours.as_dict()["model"]
    return {
        "pythae": VERSION, "model": name, "networks": networks, "values": values(name, ours),
        "training": RIVALS[name].training, "shape": list(shape(data, ours)),
    }  # fmt: skip
