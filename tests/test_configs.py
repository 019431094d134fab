"""Every recipe is parsed, built and stepped twice; its head says what it is, whose, and what to beware of."""

import math

import numpy as np
import pytest
from conftest import REPOSITORY, replace
from PIL import Image

from vaegan.cli import parse_config

RECIPES = sorted((REPOSITORY / "configs").glob("*.yaml"))
NEEDED = {"mnist", "cifar10", "celeba64", "folder128", "dense_vae", "beta_vae", "dense_vaegan", "dense_autoencoder", "larsen",
          "cifar10_gpu", "mnist_conditional"}  # fmt: skip


def test_all_recipes_are_there():
    assert NEEDED <= {file.stem for file in RECIPES}


@pytest.fixture(scope="module")
def colour_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    for i in range(12):
        (folder / f"class{i % 3}").mkdir(exist_ok=True)  # which the conditional recipes want
        Image.fromarray(random.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"class{i % 3}" / f"{i}.png")
    return folder


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipe_trains(file, make_trainer, colour_folder):
    config = parse_config(["--config", str(file)], REPOSITORY / "configs" / "mnist.yaml")
    assert config.name == file.stem
    small = {"source": str(colour_folder), "val_source": None, "val_fraction": 0.25}
    # Compiling is tested elsewhere, and takes minutes.
    train = {"batch_size": 4, "steps": 2, "epochs": None, "log_every": 1, "compile": False}
    config = replace(config, data=small, train=train)
    precision = "bf16" if config.train.precision == "bf16" else "no"
    trainer = make_trainer(config, precision)
    for micro_batches in trainer.batches():
        terms = trainer.train_step(micro_batches)
        assert all(math.isfinite(value) for value in terms.values())
    assert trainer.step == 2


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipe_head(file):
    head = "".join(line for line in file.read_text().splitlines(True) if line.startswith("#"))
    assert "Paper" in head and "Mistake" in head


def test_readme_lists_every_recipe():
    readme = (REPOSITORY / "README.md").read_text()
    assert all(f"configs/{file.name}" in readme for file in RECIPES)
