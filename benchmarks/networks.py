"""pythae's benchmark networks, for its own trainer and, the same layers, for ours."""

import contextlib
import logging
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vaegan.config import Config
from vaegan.data.images import ImageSet
from vaegan.data.named import ArrayImages
from vaegan.model import VAEGAN

LATENT_DIM = 16
FEATURE_LAYER = 3  # of the discriminator's layers, counted from 1: the one that pythae's examples take
SHAPES = {"pythae's MNIST networks": (1, 28, 28), "pythae's CIFAR-10 networks": (3, 32, 32)}


def random_images(config: Config, n: int = 4096) -> ImageSet:
    """A set of noise in the config's shape: no step's speed depends on what the images show."""
    size, generator = config.data.image_size, torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, config.data.channels, size, size), dtype=torch.uint8, generator=generator)
    return ImageSet(ArrayImages(pixels, None, None), config.data)


def pythae_model(case: str, **options):
    """pythae's VAEGAN on its benchmark networks for the case."""
    from pythae.models import VAEGAN as Theirs
    from pythae.models import VAEGANConfig

    shape = SHAPES[case]
    config = VAEGANConfig(input_dim=shape, latent_dim=LATENT_DIM, reconstruction_layer=FEATURE_LAYER, **options)
    if shape[0] == 1:
        from pythae.models.nn.benchmarks import mnist as nets

        parts = nets.Encoder_Conv_VAE_MNIST, nets.Decoder_Conv_AE_MNIST, nets.Discriminator_Conv_MNIST
    else:
        from pythae.models.nn.benchmarks import cifar as nets

        parts = nets.Encoder_Conv_VAE_CIFAR, nets.Decoder_Conv_AE_CIFAR, nets.Discriminator_Conv_CIFAR
    return Theirs(config, *(part(config) for part in parts))


def pythae_epoch(case: str, steps: int, batch_size: int) -> Callable[[], object]:
    """A function that runs pythae's trainer over an epoch of so many steps.

    The equilibrium's margin is out of reach, so that both players are updated in every step, as they are in ours.
    """
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import CoupledOptimizerAdversarialTrainer, CoupledOptimizerAdversarialTrainerConfig

    logging.disable(logging.WARNING)
    images = torch.rand(steps * batch_size, *SHAPES[case])
    config = CoupledOptimizerAdversarialTrainerConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch_size, no_cuda=not torch.cuda.is_available()
    )
    dataset = BaseDataset(images, torch.zeros(len(images)))
    trainer = CoupledOptimizerAdversarialTrainer(
        pythae_model(case, margin=1e6), dataset, training_config=config, callbacks=[]
    )
    with contextlib.suppress(FileExistsError):
        trainer.prepare_training()
    return lambda: trainer.train_step(1)


def as_ours(case: str, model: VAEGAN) -> tuple[VAEGAN, nn.Module]:
    """The same networks in the place of the model's own, and as a discriminator for our trainer."""
    theirs = pythae_model(case)
    model.encoder, model.decoder = _Encoder(theirs.encoder), _Decoder(theirs.decoder)
    return model, _Discriminator(theirs.discriminator)


class _Encoder(nn.Module):
    def __init__(self, theirs: nn.Module):
        super().__init__()
        self.theirs = theirs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.theirs(x)
        return out.embedding.float(), out.log_covariance.float()


class _Decoder(nn.Module):
    """Without the sigmoid at the end: our decoders give what comes before it."""

    def __init__(self, theirs: nn.Module):
        super().__init__()
        theirs.layers[-1][-1] = nn.Identity()
        self.theirs = theirs

    def forward(self, z: Tensor) -> Tensor:
        return self.theirs(z).reconstruction.float()


class _Discriminator(nn.Module):
    """Logits and features in one pass, without the sigmoid at the end."""

    def __init__(self, theirs: nn.Module):
        super().__init__()
        theirs.layers[-1][-1] = nn.Identity()
        self.theirs = theirs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.theirs(x, output_layer_levels=[FEATURE_LAYER, len(self.theirs.layers)])
        return out.embedding.flatten().float(), out[f"embedding_layer_{FEATURE_LAYER}"].float()
