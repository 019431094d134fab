"""Known failures and their figures: when they are told, and that what they advise exists."""

import dataclasses
import re

import pytest
import torch

from vaegan.config import Config, ModelConfig, ObjectiveConfig, TrainConfig
from vaegan.training import diagnose

CONFIG = Config(
    model=ModelConfig(latent_dim=20),
    objective=ObjectiveConfig(adversarial_weight=1.0, adversarial_start=10),
    train=TrainConfig(steps=100),
)


def accuracies(real, fake):
    return {"accuracy_real": real, "accuracy_fake": fake}


@pytest.mark.parametrize(
    ("figures", "step", "told"),
    [
        (accuracies(0.99, 0.995), 211, True),
        (accuracies(0.99, 0.995), 210, False),  # still the head start of 10 steps, or the first 200 after it
        (accuracies(0.99, 0.9), 300, False),
        (accuracies(0.9, 1.0), 300, False),
        (accuracies(0.98, 1.0), 300, False),
        ({"pixel": 3.0}, 300, False),  # no discriminator
    ],
)
def test_a_saturated_discriminator_is_told_by_both_accuracies(figures, step, told):
    found = diagnose.training(figures, step, CONFIG)
    assert list(found) == ["saturated discriminator"] * told
    if told:
        assert "99%" in found["saturated discriminator"] and "\n" not in found["saturated discriminator"]


@pytest.mark.parametrize(("active", "told"), [(0, True), (2, True), (3, False), (20, False)])
def test_a_collapsed_posterior_is_told_by_its_active_latents(active, told):
    found = diagnose.validation({"val/active_units": float(active), "val/kl": 0.123}, CONFIG)
    assert list(found) == ["posterior collapse"] * told
    if told:
        assert f"{active} of 20" in found["posterior collapse"] and "0.12" in found["posterior collapse"]
    assert diagnose.validation({"val/psnr": 20.0}, CONFIG) == {}


@pytest.mark.parametrize(
    ("spread", "told"), [(None, False), ((0.1, 0.5), True), ((0.15, 0.5), False), ((0.6, 0.5), False)]
)
def test_collapsed_samples_are_told_by_their_spread(spread, told):
    found = diagnose.samples(spread)
    assert list(found) == ["collapsed samples"] * told
    if told:
        assert "0.10" in found["collapsed samples"] and "0.50" in found["collapsed samples"]


def test_every_field_that_is_advised_exists():
    lines = [
        *diagnose.training(accuracies(1.0, 1.0), 300, CONFIG).values(),
        *diagnose.validation({"val/active_units": 0.0, "val/kl": 0.0}, CONFIG).values(),
        *diagnose.samples((0.0, 1.0)).values(),
    ]
    assert len(lines) == 3
    fields = {f"{s.name}.{f.name}" for s in dataclasses.fields(Config) if dataclasses.is_dataclass(s.type)
              for f in dataclasses.fields(s.type)}  # fmt: skip
    for line in lines:
        advised = re.findall(r"\b(?:data|model|objective|optimizer|train)\.\w+", line)
        assert len(advised) >= 2 and set(advised) <= fields
        for word in re.findall(r"\b[a-z]+_[a-z_]+\b", line):
            assert any(field.endswith(f".{word}") for field in fields)
    choices = re.findall(r"(objective\.\w+) (relativistic|linear)", " ".join(lines))
    assert len(choices) == 2
    for field, choice in choices:
        assert choice in str(ObjectiveConfig.__dataclass_fields__[field.split(".")[1]].type)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_mean_distance_is_over_all_pairs(n):
    x = torch.rand(n, 3, 4, 5, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    squared = [(x[i] - x[j]).square().mean() for i in range(n) for j in range(n) if i != j]
    assert diagnose.mean_distance(x) == pytest.approx((sum(squared) / len(squared)).sqrt().item(), rel=1e-5)


def test_mean_distance_of_like_images_is_zero_and_of_opposite_ones_two():
    assert diagnose.mean_distance(torch.full((5, 1, 4, 4), 0.25)) == 0
    assert diagnose.mean_distance(torch.stack([torch.ones(1, 4, 4), -torch.ones(1, 4, 4)])) == pytest.approx(2)
