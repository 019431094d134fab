"""Runs that are resumed, at every step and in every way, end with the bits of the run that was not."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FULL_OBJECTIVE, replace
from resume_worker import (
    RESUMED_AT,
    advance,
    bits,
    differences,
    differing_resumes,
    of_step,
    restored,
    uninterrupted,
    weights,
)
from safetensors.torch import load_file

from vaegan.training import run_state

STEPS_PER_EPOCH, STEPS = 6, 12
WORKER = str(Path(__file__).with_name("resume_worker.py"))


@pytest.fixture
def full_config(tiny_config):
    """A function of the sections data and train to a Config with all that can be on together, of two epochs."""

    def build(data=(), train=()):
        objective = dataclasses.replace(
            FULL_OBJECTIVE,
            gradient_penalty_weight=0.1,
            equilibrium_gate=True,
            equilibrium=0.69,
            equilibrium_margin=0.04,
        )
        config = tiny_config(
            objective,
            model={"width": 2, "discriminator_width": 2},
            data={"val_fraction": 0.15, "crop_padding": 1} | dict(data),
            train={"steps": None, "epochs": 2.0, "batch_size": 12, "accumulate": 2, "ema_decay": 0.9} | dict(train),
        )
        return replace(config, optimizer={"schedule": "cosine", "warmup_steps": 3, "l1_weight": 1e-4, "grad_clip": 2.0,
                                          "weight_decay": 0.01, "betas": (0.5, 0.99)})  # fmt: skip

    return build


# ---------------------------------------------------------------------- at every step


def test_everything_that_a_run_can_have_is_on_in_these(full_config, make_trainer, monkeypatch):
    """Else the tests below would show less than they say."""
    t = make_trainer(full_config())
    assert (t.steps_per_epoch, t.total_steps) == (STEPS_PER_EPOCH, STEPS)
    gates, norms, gate = [], [], t.objective.gate
    monkeypatch.setattr(t.objective, "gate", lambda terms: gates.append(gate(terms)) or gates[-1])
    seen = [t.train_step(micro_batches) for micro_batches in t.batches()]
    assert len(set(gates)) > 1, "no player ever paused"
    norms = [step[name].item() for step in seen for name in ("grad_norm/autoencoder", "grad_norm/discriminator")]
    assert max(norms) > t.config.optimizer.grad_clip, "nothing was clipped"
    assert len({frozenset(step) for step in seen}) > 1, "no penalty was left out"
    assert t.ema.updates == STEPS and t.statistics.values


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_resumed_before_every_step(full_config, make_trainer, tmp_path, storage):
    config = full_config({"storage": storage, "workers": 0})
    final = bits(uninterrupted(make_trainer, config, tmp_path))
    assert differing_resumes(make_trainer, config, tmp_path, final, range(STEPS)) == {}


@pytest.mark.parametrize("steps", [(1, 6, 9), pytest.param(range(STEPS), marks=pytest.mark.soak)], ids=["some", "all"])
def test_resumed_with_worker_processes(full_config, make_trainer, tmp_path, steps):
    """The run with workers has the bits of the one without, so that those are what it is held to as well."""
    final = bits(uninterrupted(make_trainer, full_config(), tmp_path / "memory"))
    config = full_config({"storage": "stream", "workers": 2})
    assert differences(bits(uninterrupted(make_trainer, config, tmp_path)), final) == []
    assert differing_resumes(make_trainer, config, tmp_path, final, steps) == {}


def test_resumed_three_times_in_an_epoch(full_config, make_trainer, tmp_path):
    config = full_config()
    final = bits(advance(make_trainer(config)))
    t = make_trainer(config)
    for stop in (1, 3, 4, STEPS_PER_EPOCH + 1, STEPS_PER_EPOCH + 2, STEPS - 1):
        run_state.save(advance(t, stop), tmp_path)
        t = restored(make_trainer, config, tmp_path)
        assert t.step == stop
    assert differences(bits(advance(t)), final) == []


# ---------------------------------------------------------------------- whole runs


def fit(t, run_dir: Path, die_at: int | None = None):
    """`fit`, which may die when that step is to be taken."""
    step = t.train_step

    def mortal(micro_batches):
        if t.step == die_at:
            raise InterruptedError
        return step(micro_batches)

    t.train_step = mortal
    with contextlib.suppress(InterruptedError) if die_at is not None else contextlib.nullcontext():
        t.fit(run_dir)
    return t


@pytest.fixture
def fit_config(full_config):
    """Looks at every second step, checkpoints and lines after each, and a monitor that chooses what is exported."""
    train = {
        "val_every": 2,
        "log_every": 1,
        "save_every": 1,
        "keep_last": STEPS,
        "patience": 50,
        "monitor": "val/active_units",
    }
    return full_config(train=train)


def left(run_dir: Path) -> dict:
    """What a run leaves to look at and to use, but for its speed."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    files = ("model.safetensors", "config.json", "config.yaml", "samples.png", "reconstructions.png")
    metrics = [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]
    return {name: (run_dir / name).read_bytes() for name in files} | {"metrics": metrics}


def test_fit_resumed_after_every_step(fit_config, make_trainer, tmp_path):
    """One batch is left out, as after a rollback; the best step is not the last; each line is there once."""
    t = make_trainer(fit_config)
    t.skipped = [4]
    whole = tmp_path / "whole"
    final = bits(fit(t, whole))
    assert t.monitor.best["step"] < STEPS and t.monitor.failures > 0
    for k in range(1, STEPS):
        run = tmp_path / str(k)
        shutil.copytree(whole, run)
        for later in range(k + 1, STEPS + 1):
            shutil.rmtree(run / "checkpoints" / f"step_{later:08d}")
        t = restored(make_trainer, fit_config, run)
        assert t.step == k
        assert differences(bits(fit(t, run)), final) == [], k
        assert left(run) == left(whole), k


def test_fit_that_dies_three_times_in_an_epoch(fit_config, make_trainer, tmp_path):
    final = bits(fit(make_trainer(fit_config), tmp_path / "whole"))
    run = tmp_path / "run"
    fit(make_trainer(fit_config), run, die_at=7)
    for stop in (8, 10, STEPS - 1):
        assert fit(restored(make_trainer, fit_config, run), run, die_at=stop).step == stop
    assert differences(bits(fit(restored(make_trainer, fit_config, run), run)), final) == []
    assert left(run) == left(tmp_path / "whole")


# ---------------------------------------------------------------------- two processes


def launch(processes: int, *arguments: str, **environment: str) -> None:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([*command, WORKER, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=5e-3, atol=5e-4, msg=lambda m: f"{name}: {m}")


def test_two_processes_resume_and_one_goes_on_with_two_and_two_with_one(full_config, make_trainer, tmp_path):
    config = full_config()
    (tmp_path / "config.json").write_text(json.dumps(config.as_dict()))
    one = uninterrupted(make_trainer, config, tmp_path / "one")
    launch(2, "ranks", str(tmp_path))
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    tensors = {(name, rank): load_file(tmp_path / f"{name}.{rank}.safetensors")
               for name in ("whole", "resumed", "seen") for rank in (0, 1)}  # fmt: skip
    # Two processes, resumed before every step.
    assert [report["world"] for report in reports] == [2, 2]
    assert [report["differing"] for report in reports] == [{}, {}]
    # From one process to two: the checkpoint's bits, the same batches and noise, and both ranks equal.
    at = restored(make_trainer, config, tmp_path / "one" / str(RESUMED_AT))
    assert [differences(report["restored"], bits(at)) for report in reports] == [[], []]
    assert differences(reports[0]["resumed"], reports[1]["resumed"]) == []
    expected = {}
    advance(at, None, lambda t, micro_batches: expected.update(of_step(t, micro_batches)))
    assert expected.keys() == tensors["seen", 0].keys() and len(expected) == 6 * (STEPS - RESUMED_AT)
    for name, rows in expected.items():
        assert torch.equal(torch.cat([tensors["seen", 0][name], tensors["seen", 1][name]]), rows), name
    assert_close(tensors["resumed", 0], weights(one))
    # From two processes to one.
    back = restored(make_trainer, config, tmp_path / "several" / str(RESUMED_AT))
    assert_close(weights(advance(back)), tensors["whole", 0])


# ---------------------------------------------------------------------- another process


def test_another_process_trains_the_same_weights(full_config, make_trainer, tmp_path):
    """A hundred steps here, where much has been done before, and in a process of its own."""
    config = full_config(train={"epochs": None, "steps": 100})
    (tmp_path / "config.json").write_text(json.dumps(config.as_dict()))
    launch(1, "hashes", str(tmp_path), PYTHONHASHSEED="7")
    torch.rand(5)
    theirs = json.loads((tmp_path / "hashes-7.json").read_text())
    assert len(theirs) > 80 and differences(bits(advance(make_trainer(config))), theirs) == []


def test_what_a_kill_left_of_an_export_is_cleared_away(fit_config, make_trainer, tmp_path):
    left_behind = tmp_path / ".partial-export" / ".model.safetensors.12345"
    left_behind.parent.mkdir()
    left_behind.write_bytes(bytes(9))
    fit(make_trainer(fit_config), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == [".launch"]
