"""Checkpoints: whole or absent, checked before use; and runs that go on to the bit."""

import random
import shutil

import pytest
import torch
from conftest import replace

from vaegan.config import ConfigError
from vaegan.training import checkpoint, run_state


def state_of(t) -> dict[str, torch.Tensor]:
    """Every tensor that training depends on."""
    from vaegan.training.optimizers import optimizer_tensors

    groups = {
        "model": t.plain_model.state_dict(), "discriminator": t.plain_discriminator.state_dict(),
        "ema": t.ema.module.state_dict(), "statistics": t.statistics.values,
        "model_optimizer": optimizer_tensors(t.model_optimizer),
        "discriminator_optimizer": optimizer_tensors(t.discriminator_optimizer),
    }  # fmt: skip
    return {f"{g}.{k}": v.clone() for g, tensors in groups.items() for k, v in tensors.items()}


def assert_same_bits(a: dict, b: dict):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def advance(t, to: int):
    for micro_batches in t.batches():
        if t.step == to:
            return
        t.train_step(micro_batches)


@pytest.mark.parametrize("network, norm, spectral", [("light", "group", False), ("conv", "batch", True), ("mlp", "none", False)])
@pytest.mark.parametrize("storage, workers", [("memory", 0), ("stream", 0)])
def test_resume_at_any_step_is_bit_identical(tiny_config, make_trainer, tmp_path, network, norm, spectral, storage, workers):
    """N + N steps equal N, resume, N: mid-epoch (5 steps an epoch), ramps, balance, lazy penalties, accumulation."""
    config = tiny_config(
        model={"network": network, "norm": norm, "spectral_norm": spectral, "hidden": (16,), "discriminator_hidden": (16,)},
        data={"storage": storage, "workers": workers, "crop_padding": 1},
        train={"accumulate": 2},
    )  # fmt: skip
    config = replace(config, optimizer={"schedule": "cosine", "warmup_steps": 3, "l1_weight": 1e-4, "grad_clip": 5.0})
    whole = make_trainer(config)
    for stop in range(1, 13):
        advance(whole, stop)
        if stop in (1, 4, 7, 10):
            run_state.save(whole, tmp_path / str(stop))
    final = state_of(whole)
    for stop in (1, 4, 7, 10):
        resumed = make_trainer(config)
        assert run_state.restore(resumed, tmp_path / str(stop)) and resumed.step == stop
        advance(resumed, 12)
        assert_same_bits(state_of(resumed), final)


def test_same_seed_same_weights_and_another_seed_others(tiny_config, make_trainer):
    results = []
    for seed in (0, 0, 1):
        t = make_trainer(tiny_config(seed=seed))
        advance(t, 6)
        results.append(state_of(t))
    assert_same_bits(results[0], results[1])
    assert not torch.equal(results[0]["model.decoder.blocks.0.weight"], results[2]["model.decoder.blocks.0.weight"])


def test_validation_grids_and_logs_do_not_touch_training(tiny_config, make_trainer, tmp_path):
    quiet, busy = make_trainer(tiny_config()), make_trainer(
        tiny_config(train={"val_every": 1, "sample_every": 2, "log_every": 1, "save_every": 3})
    )  # fmt: skip
    advance(quiet, 12)
    busy.fit(tmp_path / "run")
    assert_same_bits(state_of(quiet), state_of(busy))


@pytest.fixture
def folder(tmp_path):
    for step in (10, 20, 30):
        tensors = {"model": {"w": torch.arange(5.0) + step}, "ema": {"w": torch.ones(3, 3, 2, 2).contiguous(memory_format=torch.channels_last)}}
        checkpoint.save(tmp_path, step, tensors, {"step": step})
    return tmp_path


def test_round_trip_and_pruning(folder):
    tensors, state = checkpoint.load_latest(folder)
    assert state == {"step": 30} and torch.equal(tensors["model"]["w"], torch.arange(5.0) + 30)
    checkpoint.prune(folder, 30, keep_last=1, also_keep=10)
    assert checkpoint.list_steps(folder) == [10, 30]


def test_every_damage_is_found_and_the_checkpoint_before_is_taken(folder, caplog):
    newest = checkpoint.checkpoint_path(folder, 30)
    backup = folder / "backup"
    shutil.copytree(newest, backup)
    rng = random.Random(0)
    for file in sorted(f.name for f in backup.iterdir()):
        size = (backup / file).stat().st_size
        for kind in ["truncate", "flip", "remove", "empty"] * 3:
            shutil.rmtree(newest)
            shutil.copytree(backup, newest)
            target = newest / file
            data = bytearray(target.read_bytes())
            if kind == "remove":
                target.unlink()
            elif kind == "flip":
                data[rng.randrange(size)] ^= 1 << rng.randrange(8)
                target.write_bytes(data)
            else:
                target.write_bytes(data[: rng.randrange(size) if kind == "truncate" else 0])
            caplog.clear()
            _, state = checkpoint.load_latest(folder)
            assert state == {"step": 20}, (file, kind)
            assert "step_00000030" in caplog.text


def test_a_save_that_is_cut_short_leaves_the_old_checkpoints_alone(folder, monkeypatch):
    real, calls = checkpoint._write, []

    def dying(file, data):
        calls.append(file)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(checkpoint, "_write", dying)
    with pytest.raises(OSError, match=r"step_00000040 cannot be written \(No space left on device\): it takes 16 bytes, \d+ are free"):
        checkpoint.save(folder, 40, {"model": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2)}}, {"step": 40})
    monkeypatch.undo()
    assert not list(folder.glob(".partial*")) and checkpoint.load_latest(folder)[1] == {"step": 30}
    checkpoint.save(folder, 40, {"model": {"w": torch.ones(2)}}, {"step": 40})
    assert checkpoint.load_latest(folder)[1] == {"step": 40}


def test_nothing_is_pickled(folder):
    for file in folder.rglob("*"):
        assert file.is_dir() or file.suffix in (".safetensors", ".json")
        assert file.is_dir() or not file.read_bytes().startswith((b"PK", b"\x80"))


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"model": {"latent_dim": 5}}, "model.latent_dim"),
        ({"model": {"width": 8}}, "model.width"),
        ({"train": {"batch_size": 8}}, "train.batch_size"),
        ({"seed": 3}, "seed"),
        ({"objective": {"kl_weight": 0.25}}, "objective.kl_weight"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tiny_config, make_trainer, tmp_path, changes, field):
    t = make_trainer(tiny_config())
    advance(t, 2)
    run_state.save(t, tmp_path / "run")
    with pytest.raises(ConfigError) as error:
        run_state.restore(make_trainer(replace(tiny_config(), **changes)), tmp_path / "run")
    assert field in str(error.value) and len(str(error.value).splitlines()) == 1


def test_options_that_change_nothing_may_differ(tiny_config, make_trainer, tmp_path):
    t = make_trainer(tiny_config())
    advance(t, 2)
    run_state.save(t, tmp_path / "run")
    longer = replace(tiny_config(), train={"steps": 20, "log_every": 1}, data={"storage": "stream", "workers": 0})
    assert run_state.restore(make_trainer(longer), tmp_path / "run")
