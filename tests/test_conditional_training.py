"""Conditional runs: labels follow their images wherever they come from, runs resume to the bit, and classes are learned."""

import json

import pytest
import torch
from conftest import BRIGHTNESS, FULL_OBJECTIVE, REPOSITORY, replace
from PIL import Image
from resume_worker import bits, differences

from vaegan import sampling
from vaegan.cli import parse_config
from vaegan.config import ConfigError, DataConfig, ObjectiveConfig
from vaegan.data import StepLabels, load_data, training_batches
from vaegan.data.labels import aligned, classes_of
from vaegan.evaluation.reconstruction import evaluating, validate
from vaegan.model import VAEGAN, build_model
from vaegan.objectives import elbo
from vaegan.training import run_state
from vaegan.training.finite import NonFiniteLoss

STEPS = 7  # of 16 of the 91 training images: past the end of an epoch


@pytest.fixture
def conditional(tiny_config, labelled_folder):
    """A function of overrides to the Config of a conditional run on `labelled_folder`."""

    def build(objective=FULL_OBJECTIVE, model=(), data=(), **rest):
        data = {"source": str(labelled_folder), "horizontal_flip": True, "val_fraction": 0.1} | dict(data)
        return tiny_config(objective, model={"conditional": True} | dict(model), data=data, **rest)

    return build


def brightness_class(x: torch.Tensor) -> torch.Tensor:
    """The class of images in [-1, 1] of `labelled_folder`, by their mean."""
    means = (x.mean((1, 2, 3)) + 1) * 127.5
    return (means[:, None] - torch.tensor(BRIGHTNESS)).abs().argmin(1)


@pytest.mark.parametrize("storage, workers", [("memory", 0), ("stream", 0), ("stream", 2)])
def test_labels_follow_their_images(conditional, make_trainer, storage, workers):
    data = {"storage": storage, "workers": workers, "crop_padding": 1}
    t = make_trainer(conditional(data=data, train={"accumulate": 2, "steps": STEPS}))
    batches, classes = t.batches(), set()
    for micro_batches in batches:
        labels = t.labels_of(micro_batches)
        assert [len(y) for y in labels] == [8, 8]
        assert all(torch.equal(y, brightness_class(x)) for x, y in zip(micro_batches, labels))
        classes |= {y for part in labels for y in part.tolist()}
        t.step += 1
    assert t.step == STEPS and classes == {0, 1, 2}


@pytest.mark.parametrize("rank", [0, 1])
def test_labels_follow_the_images_of_each_process(labelled_folder, rank):
    images, _ = load_data(DataConfig(source=str(labelled_folder), image_size=8, val_fraction=0))
    place = {"batch_size": 16, "accumulate": 2, "rank": rank, "world_size": 2, "seed": 3, "device": torch.device("cpu")}
    labels = StepLabels(images.labels, **place)
    batches = training_batches(images, DataConfig(), start_step=4, stop_step=9, **place)
    for step, micro_batches in zip(range(4, 9), batches, strict=True):
        assert all(torch.equal(y, brightness_class(x)) for x, y in zip(micro_batches, labels(step), strict=True))


@pytest.mark.parametrize("network, norm, storage", [("light", "group", "memory"), ("mlp", "batch", "stream")])
def test_a_resumed_run_is_the_same_to_the_bit(conditional, make_trainer, tmp_path, network, norm, storage):
    model = {"network": network, "norm": norm, "hidden": (12, 9), "discriminator_hidden": (12, 9)}
    config = conditional(model=model, data={"storage": storage, "workers": 0}, train={"steps": STEPS, "accumulate": 2})
    whole = make_trainer(config)
    for micro_batches in whole.batches():
        if whole.step == 3:
            run_state.save(whole, tmp_path / "run")
        whole.train_step(micro_batches)
    resumed = make_trainer(config)
    assert run_state.restore(resumed, tmp_path / "run") and resumed.step == 3
    for micro_batches in resumed.batches():
        resumed.train_step(micro_batches)
    assert not differences(bits(whole), bits(resumed))
    assert whole.plain_model.prior_means.weight.abs().max() > 0  # it has been learned
    assert whole.ema.module.prior_means.weight.abs().max() > 0


def test_accumulation_equals_one_large_batch(conditional, make_trainer):
    objective = ObjectiveConfig(kl_weight=0.5, feature_weight=0.3, adversarial_weight=1.0, fakes="both", r1_weight=0.5)
    one, two = (make_trainer(conditional(objective, train={"accumulate": n})) for n in (1, 2))
    for t in (one, two):
        batches = t.batches()
        for _ in range(3):
            t.train_step(next(batches))
    for a, b in zip(one.plain_model.parameters(), two.plain_model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("objective", [
    ObjectiveConfig(), ObjectiveConfig(kl_weight=0.0), ObjectiveConfig(kl_weight=0.0, pixel_weight=0.0, adversarial_weight=1.0),
    ObjectiveConfig(adversarial_weight=1.0, adversarial_start=5, feature_weight=1.0),
])  # fmt: skip
def test_every_parameter_gets_a_gradient(conditional, make_trainer, monkeypatch, objective):
    """Several processes would wait for one that does not."""
    t, seen = make_trainer(conditional(objective)), []

    def look(optimizer, name, *rest):
        player = t.plain_model if name == "autoencoder" else t.plain_discriminator
        seen.append(all(p.grad is not None for p in player.parameters()))
        return update(optimizer, name, *rest)

    update = t._update
    monkeypatch.setattr(t, "_update", look)
    t.train_step(next(t.batches()))
    assert seen and all(seen)


def test_regularisation_leaves_what_is_learned_a_class_alone(conditional, make_trainer):
    t = make_trainer(replace(conditional(), optimizer={"weight_decay": 0.1}))
    decayed = {id(p) for g in t.model_optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    for name, p in t.plain_model.named_parameters():
        by_class = any(part in name for part in ("prior_means", ".gain.", ".bias.weight"))
        assert (id(p) in decayed) == (p.ndim > 1 and not by_class), name


def test_an_unconditional_run_takes_no_notice_of_labels(conditional, tiny_config, make_trainer, labelled_folder):
    """The labelled set trains an unconditional model as before: same parameters, and none of a class."""
    config = tiny_config(data={"source": str(labelled_folder)})
    t = make_trainer(config)
    assert t.labels_of([torch.zeros(1)]) == [None] and t.plain_model.classes == 0
    torch.manual_seed(config.seed)
    assert all(torch.equal(v, t.plain_model.state_dict()[k]) for k, v in build_model(config).state_dict().items())
    t.train_step(next(t.batches()))
    # The weights that a conditional run shares with it start alike.
    start, other = build_model(config), make_trainer(conditional()).plain_model.state_dict()
    assert "prior_means.weight" in other and start.state_dict().keys() - other.keys()


def test_validation_and_grids_use_the_labels(conditional, make_trainer, tmp_path):
    config = conditional(train={"steps": 4, "val_every": 4, "val_images": 0, "sample_every": 4})
    t = make_trainer(config)
    t.fit(tmp_path / "run")
    model, val = t.sampling_model, t.validation
    x = torch.stack([val.batch(torch.tensor([i]))[0] for i in range(len(val))]).float() / 127.5 - 1
    with evaluating(model):
        mu, logvar = model.encode(x)
        mse = (model.decode(mu, val.labels) - x).square().mean()
        kl = elbo.kl_divergence(mu, logvar, model.prior_means(val.labels)).sum(1).mean()
        grid = sampling.grid(sampling.to_uint8(model.sample(64, config.seed, labels=(torch.arange(64) // 8) % 3)), 8)
    figures = validate(model, val, config, t.shares)
    assert figures["val/mse"] == pytest.approx(mse.item(), rel=1e-4)
    assert figures["val/kl"] == pytest.approx(kl.item(), rel=1e-4)
    assert (tmp_path / "run" / "samples.png").read_bytes() == sampling.png(grid)
    opened = VAEGAN.from_pretrained(tmp_path / "run")
    assert (opened.classes, opened.class_names) == (3, ["bright", "dark", "grey"])


def test_measuring_draws_classes_in_the_proportions_of_the_reference(conditional, make_trainer, monkeypatch, tmp_path):
    from vaegan.training import measure

    seen = []

    class Spy(measure.ModelSource):
        def __init__(self, *arguments, **named):
            seen.append(named["labels"])
            super().__init__(*arguments, **named)

    monkeypatch.setattr(measure, "ModelSource", Spy)
    evaluation = {"every": 2, "extractor": "tiny_extractor:build", "num_samples": 18, "cache": str(tmp_path / "cache")}
    t = make_trainer(replace(conditional(train={"steps": 2}), evaluation=evaluation))
    t.fit(tmp_path / "run")
    counts = torch.bincount(t.validation.labels, minlength=3) * 18 / len(t.validation)
    assert len(seen) == 1 and (torch.bincount(seen[0], minlength=3) - counts).abs().max() <= 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for kind in ("samples", "reconstructions"):
        assert any(name.startswith(f"fd/{kind}") for line in lines for name in line)


def test_what_is_not_finite_is_named(conditional, make_trainer):
    t = make_trainer(conditional())
    micro_batches = next(t.batches())
    with torch.no_grad():
        t.plain_model.prior_means.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteLoss, match="weights of the prior_means"):
        t.train_step(micro_batches)


def test_a_set_without_labels_is_refused(conditional, make_trainer, image_folder, tmp_path):
    with pytest.raises(ConfigError, match="data.source .* has no labels.*model.conditional true.*subfolder"):
        make_trainer(conditional(data={"source": str(image_folder)}))
    with pytest.raises(ConfigError, match="data.val_source .* has no labels"):
        make_trainer(conditional(data={"val_source": str(image_folder)}))


def test_a_run_whose_labels_have_changed_is_refused(conditional, make_trainer, tmp_path, labelled_folder):
    t = make_trainer(conditional(train={"steps": 2}))
    t.train_step(next(t.batches()))
    run_state.save(t, tmp_path / "run")
    other = make_trainer(t.config)
    other.images.labels = (other.images.labels + 1) % 3
    with pytest.raises(ConfigError, match="has changed"):
        run_state.restore(other, tmp_path / "run")


def test_a_run_from_before_the_field_goes_on(tiny_config, conditional, make_trainer, tmp_path):
    t = make_trainer(tiny_config())
    state = run_state._state(t)
    del state["config"]["model"]["conditional"], state["config"]["objective"]["reconstruct_every"]
    place = (state["data"], tmp_path, state["validation"])
    run_state._require_same_run(state, t.config, *place)
    with pytest.raises(ConfigError, match="model.conditional is True but .* was trained with False"):
        run_state._require_same_run(state, conditional(), *place)


def test_classes_and_labels_of_other_sets():
    labels = torch.tensor([0, 2, 1])
    assert classes_of(labels, None, "here") == (3, []) and classes_of(labels, list("abcd"), "here") == (4, list("abcd"))
    assert aligned(labels, ["c", "a", "b"], 3, list("abc"), "there").tolist() == [2, 1, 0]
    assert aligned(labels, None, 3, list("abc"), "there").tolist() == [0, 2, 1]
    for wrong, names, message in (
        (labels, ["a", "x", "y"], "does not know: 'y', 'x'|does not know: 'x', 'y'"),
        (labels + 5, None, "labels up to 7, and the model has 3 classes"),
        (None, None, "has no labels"),
    ):
        with pytest.raises(ConfigError, match=message):
            aligned(wrong, names, 3, list("abc"), "there")
    with pytest.raises(ConfigError, match="at most 16384 classes"):
        classes_of(torch.tensor([1 << 20]), None, "here")


def test_two_classes_are_learned(make_trainer, tiny_config, tmp_path):
    """Bright and dark images: after some steps a sample is as bright as its class."""
    random = torch.Generator().manual_seed(0)
    for i in range(64):
        folder = tmp_path / "toy" / ("bright", "dark")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (190, 60)[i % 2] + 12 * torch.randn(8, 8, generator=random)
        Image.fromarray(pixels.clamp(0, 255).byte().numpy()).save(folder / f"{i}.png")
    objective = ObjectiveConfig(kl_weight=4.0, pixel_scale=0.3, adversarial_weight=0.5, adversarial_loss="relativistic")
    config = tiny_config(
        objective, train={"steps": 300, "batch_size": 32, "ema_decay": 0.9},
        model={"network": "mlp", "hidden": (32, 32), "discriminator_hidden": (32,), "conditional": True},
        data={"source": str(tmp_path / "toy"), "val_fraction": 0},
    )  # fmt: skip
    t = make_trainer(replace(config, optimizer={"lr": 5e-3}))
    for micro_batches in t.batches():
        t.train_step(micro_batches)
    model = t.ema.module
    bright, dark = ((model.sample(32, labels=y).mean((1, 2, 3)) + 1) * 127.5 for y in (0, 1))
    assert (bright > 125).float().mean() > 0.9 and (dark < 125).float().mean() > 0.9
    assert abs(bright.mean() - 190) < 15 and abs(dark.mean() - 60) < 15


def test_the_recipe_is_mnists_but_for_the_labels_and_the_rates():
    recipes = REPOSITORY / "configs"
    mine, plain = (
        parse_config(["--config", str(recipes / name)], recipes / "mnist.yaml")
        for name in ("mnist_conditional.yaml", "mnist.yaml")
    )
    rates = {name: getattr(mine.optimizer, name) for name in ("lr", "discriminator_lr")}
    assert replace(plain, name="mnist_conditional", model={"conditional": True}, optimizer=rates) == mine
