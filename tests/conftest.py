"""Shared fixtures: a small folder of images, and trainers of tiny networks on it."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaegan.config import Config, DataConfig, ModelConfig, ObjectiveConfig, TrainConfig

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# Every term that can be on together, so that a test of the step is a test of all of them.
FULL_OBJECTIVE = ObjectiveConfig(
    kl_weight=0.5, kl_schedule="linear", kl_warmup_steps=8, free_bits=0.05, pixel_weight=0.1,
    pixel_likelihood="gaussian_optimal", feature_weight=0.1, feature_likelihood="gaussian_optimal",
    adversarial_weight=0.8, adversarial_loss="relativistic", fakes="both", adversarial_start=2, adversarial_ramp=4,
    balance=True, reconstruction_gamma=0.5, r1_weight=0.5, r2_weight=0.5, penalty_interval=2,
    augment=("color", "translation", "cutout"),
)  # fmt: skip


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """96 images of 8 x 8 pixels: a bright square somewhere on a grey gradient."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for i in range(96):
        pixels = np.tile(np.linspace(20, 120, 8), (8, 1)) + random.normal(0, 5, (8, 8))
        y, x = random.integers(0, 5, 2)
        pixels[y : y + 3, x : x + 3] = 230
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder


BRIGHTNESS = (200, 40, 120)  # of the classes of `labelled_folder`: bright, dark and grey


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory) -> Path:
    """96 noisy images of 8 x 8 pixels in three class subfolders, whose brightness tells the class."""
    folder = tmp_path_factory.mktemp("labelled")
    random = np.random.default_rng(0)
    for i in range(96):
        label = int(random.integers(3))
        file = folder / ("bright", "dark", "grey")[label] / f"{i:03d}.png"
        file.parent.mkdir(exist_ok=True)
        pixels = random.normal(BRIGHTNESS[label], 15, (8, 8)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    return folder


@pytest.fixture
def tiny_config(image_folder, tmp_path):
    """A function of overrides to a Config of tiny networks: `objective=…` whole, the rest by section."""

    def build(objective: ObjectiveConfig = FULL_OBJECTIVE, model=(), data=(), train=(), **top) -> Config:
        fields = {"steps": 12, "batch_size": 16, "log_every": 4, "sample_every": 100, "val_every": 6, "save_every": 6}
        return Config(
            name="tiny",
            runs_dir=str(tmp_path / "runs"),
            data=DataConfig(**{"source": str(image_folder), "image_size": 8, "horizontal_flip": True} | dict(data)),
            model=ModelConfig(**{"latent_dim": 4, "width": 4, "discriminator_width": 4} | dict(model)),
            objective=objective,
            train=TrainConfig(**fields | dict(train)),
            **top,
        )

    return build


@pytest.fixture
def make_trainer():
    """A function of a Config to a Trainer on the CPU."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from vaegan.data import load_data
    from vaegan.training import Trainer

    def build(config: Config, mixed_precision: str = "no"):
        AcceleratorState._reset_state(True)  # it is one for the process, and remembers its first precision
        accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision)
        return Trainer(config, accelerator, *load_data(config.data))

    return build


def replace(config, **changes):
    """A config with some fields changed, sections by dicts of fields."""
    changes = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **changes)
