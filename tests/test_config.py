"""The configuration: what is refused and how it is told, fields explained, and the way to plain values and back."""

import ast
import dataclasses
import json
import typing
from pathlib import Path

import pytest

from vaegan import config as module
from vaegan.cli import config_from_dict
from vaegan.config import (
    Config,
    ConfigError,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)

SECTIONS = {"data": DataConfig, "model": ModelConfig, "objective": ObjectiveConfig, "optimizer": OptimizerConfig}
SECTIONS |= {"train": TrainConfig, "evaluation": EvaluationConfig}
GAN = {"adversarial_weight": 1.0}


def lines(build) -> list[str]:
    with pytest.raises(ConfigError) as error:
        build()
    return str(error.value).splitlines()


def section(name, **values):
    return SECTIONS[name](**({"steps": 10} if name == "train" and "epochs" not in values else {}) | values)


def whole(**values) -> Config:
    return Config(**{"train": TrainConfig(steps=10)} | values)


@pytest.mark.parametrize(
    ("name", "field", "value", "allowed"),
    [
        ("data", "image_size", 3, 4), ("data", "val_fraction", -0.1, 0), ("data", "val_fraction", 1.0, 0.99),
        ("data", "memory_limit", -1.0, 0.0), ("data", "workers", -1, 0), ("data", "crop_padding", -1, 0),
        ("data", "crop_padding", 32, 31), ("data", "rotation", -1.0, 0.0), ("data", "rotation", 181.0, 180.0),
        ("data", "channels", 2, 3), ("model", "latent_dim", 0, 1), ("model", "width", 0, 1),
        ("model", "max_width", 0, 1),
        ("model", "depth", 0, 1), ("model", "discriminator_width", 0, 1), ("model", "hidden", (), (1,)),
        ("model", "hidden", (8, 0), (8, 1)), ("model", "discriminator_hidden", (-1,), (3,)),
        ("objective", "kl_weight", -1.0, 0.0), ("objective", "kl_warmup_steps", -1, 0),
        ("objective", "free_bits", -0.1, 0.0),
        ("objective", "pixel_weight", -1.0, 0.0), ("objective", "pixel_scale", 0.0, 0.1),
        ("objective", "feature_weight", -1.0, 0.0), ("objective", "adversarial_weight", -1.0, 0.0),
        ("objective", "adversarial_start", -1, 0), ("objective", "adversarial_ramp", -1, 0),
        ("objective", "balance_decay", -0.1, 0.0), ("objective", "balance_decay", 1.0, 0.99),
        ("objective", "balance_max", 0.0, 1.0), ("objective", "reconstruction_gamma", 0.0, 0.1),
        ("objective", "equilibrium_margin", -0.1, 0.0), ("objective", "r1_weight", -1.0, 0.0),
        ("objective", "r2_weight", -1.0, 0.0), ("objective", "gradient_penalty_weight", -1.0, 0.0),
        ("objective", "penalty_interval", 0, 1), ("objective", "reconstruct_every", 0, 1), ("optimizer", "lr", 0.0, 1e-9),
        ("optimizer", "discriminator_lr", -1.0, 1e-9),
        ("optimizer", "betas", (0.9, 1.0), (0.0, 0.999)), ("optimizer", "discriminator_betas", (-0.1, 0.9), (0.0, 0.0)),
        ("optimizer", "weight_decay", -1.0, 0.0), ("optimizer", "l1_weight", -1.0, 0.0),
        ("optimizer", "grad_clip", -1.0, 0.0),
        ("optimizer", "warmup_steps", -1, 0), ("train", "batch_size", 0, 1), ("train", "accumulate", 0, 1),
        ("train", "ema_decay", -0.1, 0.0), ("train", "ema_decay", 1.0, 0.9999), ("train", "threads", -1, 0),
        ("train", "log_every", 0, 1), ("train", "sample_every", 0, 1), ("train", "val_every", 0, 1),
        ("train", "val_images", -1, 0), ("train", "save_every", 0, 1), ("train", "keep_last", 0, 1),
        ("train", "patience", -1, 0),
        ("train", "precision", "fp16", "bf16"), ("train", "epochs", 0.0, 0.5), ("train", "epochs", -1.0, 3.0),
        ("train", "steps", 0, 1), ("train", "steps", -3, 5),
    ],
)  # fmt: skip
def test_bounds_name_the_field_and_the_value(name, field, value, allowed):
    (line,) = lines(lambda: section(name, **{field: value}))
    assert line.startswith(f"{name}.{field} ")
    assert str(list(value) if isinstance(value, tuple) else value) in line
    assert getattr(section(name, **{field: allowed}), field) == allowed


@pytest.mark.parametrize("value", [float("nan")])
@pytest.mark.parametrize(("name", "field"), [("objective", "kl_weight"), ("optimizer", "lr"), ("train", "epochs"),
                                             ("objective", "pixel_scale"), ("train", "ema_decay")])  # fmt: skip
def test_not_a_number_is_no_number(name, field, value):
    assert lines(lambda: section(name, **{field: value}))[0].startswith(f"{name}.{field} ")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Config(train=TrainConfig()), ["train.steps", "train.epochs", "exactly one", "None and None"]),
        (lambda: Config(train=TrainConfig(steps=5, epochs=2.0)),
         ["train.steps", "train.epochs", "exactly one", "5 and 2.0"]),
        (lambda: section("train", batch_size=10, accumulate=4), ["train.batch_size", "train.accumulate (4)", "10"]),
        (lambda: section("train", precision="fp16"), ["train.precision", "fp16", "choose bf16"]),
        (lambda: ObjectiveConfig(kl_schedule="linear"), ["objective.kl_schedule linear", "kl_warmup_steps", "above 0"]),
        (lambda: ObjectiveConfig(kl_schedule="cyclical"), ["objective.kl_schedule cyclical", "kl_warmup_steps"]),
        (lambda: ObjectiveConfig(kl_weight=0, pixel_weight=0),
         ["no term", "kl_weight", "adversarial_weight", "above 0"]),
        (lambda: ObjectiveConfig(balance=True), ["objective.balance", "adversarial_weight", "set it to false"]),
        (lambda: ObjectiveConfig(balance=True, pixel_weight=0, **GAN),
         ["objective.balance", "pixel_weight or feature_weight"]),
        (lambda: ObjectiveConfig(r1_weight=1), ["objective.r1_weight", "adversarial_weight", "penalties to 0"]),
        (lambda: ObjectiveConfig(r2_weight=1), ["r2_weight", "adversarial_weight"]),
        (lambda: ObjectiveConfig(gradient_penalty_weight=1), ["gradient_penalty_weight", "adversarial_weight"]),
        (lambda: ObjectiveConfig(reconstruct_every=2), ["objective.reconstruct_every", "got 2", "adversarial_weight"]),
        (lambda: ObjectiveConfig(reconstruct_every=2, fakes="reconstruction", **GAN), ["objective.reconstruct_every", "fakes"]),
        (lambda: whole(objective=ObjectiveConfig(reconstruct_every=3, **GAN)),
         ["train.batch_size", "objective.reconstruct_every (3)", "got 128"]),
        (lambda: whole(data=DataConfig(image_size=48)), ["data.image_size", "got 48", "choose 32 or 64", "mlp"]),
        (lambda: whole(data=DataConfig(image_size=4)), ["data.image_size", "got 4", "choose 8;"]),
        (lambda: whole(data=DataConfig(image_size=28)), ["data.image_size", "got 28", "choose 16 or 32"]),
        (lambda: whole(model=ModelConfig(variational=False)),
         ["objective.kl_weight must be 0", "model.variational", "1.0"]),
        (lambda: whole(model=ModelConfig(feature_layer=3), objective=ObjectiveConfig(**GAN)),
         ["model.feature_layer", "-3 … 2", "got 3"]),
        (lambda: whole(model=ModelConfig(feature_layer=-4), objective=ObjectiveConfig(**GAN)), ["-3 … 2", "got -4"]),
        (lambda: whole(model=ModelConfig(network="mlp", feature_layer=2), objective=ObjectiveConfig(**GAN)),
         ["model.feature_layer", "-2 … 1", "got 2"]),
        (lambda: whole(name=""), ["name", "folder name", "''"]),
        (lambda: whole(name="a/b"), ["name", "folder name", "'a/b'"]),
        (lambda: whole(seed=-1), ["seed", "at least 0", "-1"]),
    ],
)  # fmt: skip
def test_fields_that_do_not_go_together_name_field_value_and_remedy(build, words):
    (line,) = lines(build)
    for word in words:
        assert word in line


@pytest.mark.parametrize("size", [600, 1000, 1024])
def test_a_size_beyond_the_largest_gets_one_choice(size):
    (line,) = lines(lambda: whole(data=DataConfig(image_size=size)))
    assert "512" in line and "512 or 512" not in line


@pytest.mark.parametrize("name", [".", ".."])
def test_a_name_does_not_lead_out_of_the_runs(name):
    lines(lambda: whole(name=name))


def test_neighbouring_settings_are_allowed():
    ModelConfig(feature_layer=99)  # means nothing without a discriminator
    whole(model=ModelConfig(feature_layer=99))
    whole(model=ModelConfig(network="mlp"), data=DataConfig(image_size=28))
    whole(model=ModelConfig(variational=False), objective=ObjectiveConfig(kl_weight=0))
    ObjectiveConfig(balance=True, **GAN)
    ObjectiveConfig(kl_schedule="linear", kl_warmup_steps=1)
    ObjectiveConfig(r1_weight=1, feature_weight=1)
    for size in (8, 16, 32, 64, 128, 256, 512):
        whole(data=DataConfig(image_size=size))


def test_several_problems_are_all_named():
    told = lines(lambda: ObjectiveConfig(kl_weight=-1, pixel_scale=0, penalty_interval=0, balance=True))
    assert [line.split()[0] for line in told] == ["objective.kl_weight", "objective.penalty_interval",
                                                 "objective.pixel_scale", "objective.balance"]  # fmt: skip
    told = lines(lambda: whole(name="", seed=-1, data=DataConfig(image_size=12)))
    assert [line.split()[0] for line in told] == ["data.image_size", "name", "seed"]
    told = lines(lambda: config_from_dict({"model": {"latent_dim": 0}, "train": {"steps": 0}, "optimizer": {"lr": 0}}))
    assert [line.split()[0] for line in told] == ["model.latent_dim", "optimizer.lr", "train.steps"]


@pytest.mark.parametrize(
    ("settings", "discriminator", "reconstruction", "prior"),
    [
        ({}, False, True, False),  # VAE
        ({"kl_weight": 0}, False, True, False),  # autoencoder
        ({"kl_weight": 0, "pixel_weight": 0, **GAN}, True, False, True),  # GAN
        ({"kl_weight": 0, "pixel_weight": 0, "fakes": "reconstruction", **GAN}, True, True, False),
        ({"kl_weight": 0, "pixel_weight": 0, "fakes": "both", **GAN}, True, True, True),
        (GAN, True, True, True),  # VAE-GAN
        ({"fakes": "reconstruction", **GAN}, True, True, False),
        ({"pixel_weight": 0, "feature_weight": 1}, True, True, True),
    ],
)
def test_what_the_terms_need(settings, discriminator, reconstruction, prior):
    objective = ObjectiveConfig(**settings)
    needs = objective.uses_discriminator, objective.uses_reconstruction, objective.uses_prior
    assert needs == (discriminator, reconstruction, prior)


def test_every_field_is_explained_beneath_it():
    tree = ast.parse(Path(module.__file__).read_text())
    explained = 0
    for kind in [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Config")]:
        for field, below in zip(kind.body, [*kind.body[1:], None]):
            if isinstance(field, ast.AnnAssign):
                text = (
                    below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
                )
                assert isinstance(text, str) and len(text) > 4 and text.strip()[-1] in ".)", (
                    f"{kind.name}.{field.target.id}"
                )
                explained += 1
        assert ast.get_docstring(kind)
    assert explained == sum(len(dataclasses.fields(kind)) for kind in (Config, *SECTIONS.values())) > 80


def test_literals_hold_their_defaults_and_sections_are_frozen():
    for kind in (Config, *SECTIONS.values()):
        example = whole() if kind is Config else section(next((n for n in SECTIONS if SECTIONS[n] is kind), ""))
        for name, hint in typing.get_type_hints(kind).items():
            if typing.get_origin(hint) is typing.Literal:
                assert getattr(example, name) in typing.get_args(hint)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(example, dataclasses.fields(kind)[0].name, "x")


EXAMPLE = Config(
    name="example", seed=3, data=DataConfig(image_size=64, channels=3, horizontal_flip=True),
    model=ModelConfig(hidden=(7, 5, 3), spectral_norm=True), train=TrainConfig(epochs=2.5, batch_size=6, accumulate=3),
    objective=ObjectiveConfig(augment=("color", "cutout"), balance=True, **GAN),
    optimizer=OptimizerConfig(betas=(0.5, 0.9)),
)  # fmt: skip


@pytest.mark.parametrize("config", [whole(), EXAMPLE], ids=["defaults", "example"])
def test_plain_values_and_back(config):
    plain = config.as_dict()
    assert config_from_dict(plain) == config
    assert config_from_dict(json.loads(json.dumps(plain))) == config
    assert json.loads(json.dumps(plain)) == plain  # nothing but what JSON holds
    assert hash(config_from_dict(plain)) == hash(config)
    assert set(plain) == {f.name for f in dataclasses.fields(Config)}
    for name, kind in SECTIONS.items():
        assert set(plain[name]) == {f.name for f in dataclasses.fields(kind)}
