"""Distances while training: they choose the checkpoint and stop the run, and change nothing else."""

import json

import pytest
import torch
from conftest import replace

from vaegan.config import ConfigError, ObjectiveConfig
from vaegan.evaluation import evaluate
from vaegan.training import checkpoint, measure, run_state
from vaegan.training.measure import distance_metrics

SAMPLES, RECONSTRUCTIONS = "fd/samples_tiny_extractor-build_24", "fd/reconstructions_tiny_extractor-build_24"


@pytest.fixture
def measured(tiny_config, tmp_path):
    """A config that measures every three of its twelve steps."""
    fields = {"every": 3, "extractor": "tiny_extractor:build", "num_samples": 24, "batch_size": 7}
    return replace(tiny_config(), evaluation=fields | {"cache": str(tmp_path / "cache")})


def lines(folder, name):
    """{step: value} of a figure in metrics.jsonl."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in found if name in line}


def test_it_changes_nothing_of_the_run(measured, make_trainer, tmp_path):
    plain = make_trainer(replace(measured, evaluation={"every": 0}))
    plain.fit(tmp_path / "plain")
    trainer = make_trainer(measured)
    before = torch.random.get_rng_state()
    trainer.fit(tmp_path / "run")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert trainer.sampling_model.training == plain.sampling_model.training
    for mine, theirs in ((trainer.plain_model, plain.plain_model), (trainer.ema.module, plain.ema.module)):
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name
    assert sorted(lines(tmp_path / "run", SAMPLES)) == sorted(lines(tmp_path / "run", RECONSTRUCTIONS)) == [3, 6, 9, 12]
    tensors, _ = checkpoint.load(checkpoint.checkpoint_path(tmp_path / "run" / "checkpoints", 12))
    assert not any("kernel" in name for part in tensors.values() for name in part)


def test_the_figure_is_the_distance_of_samples_to_validation_images(measured, make_trainer, tmp_path):
    from vaegan.evaluation.distances import frechet_distance, statistics_of
    from vaegan.evaluation.features import load_extractor
    from vaegan.sampling import to_uint8

    trainer = make_trainer(measured)
    trainer.fit(tmp_path / "run")
    extractor, model = load_extractor("tiny_extractor:build"), trainer.ema.module.eval()
    real = statistics_of(extractor(trainer.validation.batch(torch.arange(len(trainer.validation)))))
    fake = statistics_of(extractor(to_uint8(model.sample(24, seed=measured.seed))))
    assert lines(tmp_path / "run", SAMPLES)[12] == pytest.approx(frechet_distance(real, fake), rel=1e-4)


def test_the_best_checkpoint_is_chosen_by_distance(measured, make_trainer, tmp_path, monkeypatch):
    values = iter([5.0, 9.0, 2.0, 9.0, 4.0, 9.0, 3.0, 9.0])  # samples and reconstructions in turn
    monkeypatch.setattr(measure, "frechet_distance", lambda real, fake: next(values))
    trainer = make_trainer(replace(measured, train={"save_every": 100, "keep_last": 1}))
    trainer.fit(tmp_path / "run")
    assert trainer.monitor.name == SAMPLES and trainer.monitor.best == {"step": 6, "value": 2.0}
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step_00000006", "step_00000012"]  # the best and the last


def test_early_stopping_by_distance(measured, make_trainer, tmp_path, monkeypatch):
    values = iter([5.0, 9.0, 6.0, 9.0, 7.0, 9.0])
    monkeypatch.setattr(measure, "frechet_distance", lambda real, fake: next(values))
    trainer = make_trainer(replace(measured, train={"patience": 2}))
    trainer.fit(tmp_path / "run")
    assert trainer.step == 9 and trainer.finished and trainer.monitor.best["step"] == 3


def test_a_resume_remembers_the_best_by_the_same_figure(measured, make_trainer, tmp_path):
    trainer = make_trainer(measured)
    trainer.fit(tmp_path / "run")
    again = make_trainer(replace(measured, train={"steps": 14}))
    assert run_state.restore(again, tmp_path / "run")
    assert (again.monitor.best, again.monitor.failures) == (trainer.monitor.best, trainer.monitor.failures)
    other = make_trainer(replace(measured, train={"steps": 14, "monitor": "val/psnr"}))
    assert run_state.restore(other, tmp_path / "run") and other.monitor.best is None


def test_the_reference_is_computed_once(measured, make_trainer, tmp_path, monkeypatch):
    calls = []
    extract = evaluate.extract
    monkeypatch.setattr(
        evaluate, "extract", lambda source, *a, **k: calls.append(source.name) or extract(source, *a, **k)
    )
    for name in ("first", "second"):
        make_trainer(replace(measured, evaluation={"every": 12})).fit(tmp_path / name)
    assert [name for name in calls if name == "reference"] == ["reference"] and len(calls) == 5
    assert lines(tmp_path / "first", SAMPLES) == lines(tmp_path / "second", SAMPLES)


@pytest.mark.parametrize(
    ("objective", "model", "expected"),
    [
        (ObjectiveConfig(kl_weight=0, pixel_weight=0, adversarial_weight=1.0), {}, ["samples"]),
        (ObjectiveConfig(kl_weight=0), {"variational": False}, ["reconstructions"]),
        (ObjectiveConfig(), {}, ["samples", "reconstructions"]),
    ],
    ids=["gan", "autoencoder", "vae"],
)
def test_what_a_model_can_do_is_measured(tiny_config, make_trainer, tmp_path, objective, model, expected):
    evaluation = {"every": 4, "extractor": "tiny_extractor:build", "num_samples": 24, "cache": str(tmp_path / "cache")}
    config = replace(tiny_config(objective, model=model, train={"steps": 4}), evaluation=evaluation)
    names = distance_metrics(config)
    assert names == [f"fd/{kind}_tiny_extractor-build_24" for kind in expected]
    trainer = make_trainer(config)
    trainer.fit(tmp_path / "run")
    for name in names:
        assert lines(tmp_path / "run", name)[4] > 0
    assert trainer.monitor.best["step"] == 4 and trainer.monitor.name == names[0]
    unmeasured = make_trainer(replace(config, evaluation={"every": 0}))
    assert unmeasured.monitor.name == ("val/bits_per_dim" if config.model.variational else "val/psnr")


def test_an_extractor_that_is_not_there_is_told_before_anything_is_written(measured, make_trainer, tmp_path):
    trainer = make_trainer(replace(measured, evaluation={"extractor": "missing.pt"}))
    with pytest.raises(ConfigError, match="missing.pt does not exist"):
        trainer.fit(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_monitor_that_is_not_measured(measured, make_trainer):
    with pytest.raises(ConfigError, match=f"train.monitor fd/samples .*choose {SAMPLES}, "):
        make_trainer(replace(measured, train={"monitor": "fd/samples", "patience": 1}))


def test_fewer_images_than_the_name_says_are_told(measured, make_trainer, tmp_path, caplog):
    trainer = make_trainer(replace(measured, evaluation={"every": 12}))
    with caplog.at_level("INFO"):
        trainer.fit(tmp_path / "run")
    assert f"{RECONSTRUCTIONS} is of {len(trainer.validation)} images" in caplog.text and "proxy" in caplog.text
