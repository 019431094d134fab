"""Two processes do what one does: the same weights after 20 steps, equal on both ranks to the bit."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FULL_OBJECTIVE, REPOSITORY

from vaegan.config import ObjectiveConfig

LEAN = ObjectiveConfig(feature_weight=0.3, adversarial_weight=1.0, fakes="both")
VARIANTS = {
    "lean": (LEAN, {}),
    "accumulated": (LEAN, {"accumulate": 2}),
    "penalised": (dataclasses.replace(LEAN, r1_weight=0.5, r2_weight=0.5, gradient_penalty_weight=0.5, penalty_interval=3), {}),
    "gated": (dataclasses.replace(LEAN, equilibrium_gate=True, equilibrium=0.69, equilibrium_margin=0.02), {}),
    "partly reconstructed": (dataclasses.replace(LEAN, reconstruct_every=2), {"accumulate": 2}),
    "full": (FULL_OBJECTIVE, {"accumulate": 2}),
    "conditional": (FULL_OBJECTIVE, {"accumulate": 2}),
}  # fmt: skip


def launch(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def results(tmp_path_factory, image_folder, labelled_folder):
    """{(variant, world, rank): what the worker saved}."""
    from conftest import Config, DataConfig, ModelConfig, TrainConfig

    folder = tmp_path_factory.mktemp("distributed")
    for name, (objective, train) in VARIANTS.items():
        conditional = name == "conditional"
        source = labelled_folder if conditional else image_folder
        config = Config(
            name="two", runs_dir=str(folder / "runs"),
            data=DataConfig(source=str(source), image_size=8, horizontal_flip=True, val_fraction=0.3),
            model=ModelConfig(latent_dim=4, width=4, discriminator_width=4, conditional=conditional),
            objective=objective, train=TrainConfig(steps=20, batch_size=16, save_every=10, sample_every=10, **train),
        )  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(config.as_dict()))
    worker = str(Path(__file__).with_name("distributed_worker.py"))
    for processes in (1, 2):
        done = launch(processes, worker, str(folder))
        assert done.returncode == 0, done.stderr[-3000:]
    loaded = {}
    for file in folder.glob("*.pt"):
        name, world, rank = file.stem.split(".")
        loaded[name, int(world), int(rank)] = torch.load(file, weights_only=True)
    return loaded | {"folder": folder}


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_are_equal_to_the_bit(results, variant):
    first, second = results[variant, 2, 0], results[variant, 2, 1]
    assert first["world"] == 2 and first["wrapped"] == ["DistributedDataParallel"] * 2
    for name, tensor in first["tensors"].items():
        assert torch.equal(tensor, second["tensors"][name]), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_equal_one(results, variant):
    one, two = results[variant, 1, 0], results[variant, 2, 0]
    assert one["world"] == 1 and one["wrapped"] == ["VAEGAN", "Discriminator"]
    assert one["tensors"].keys() == two["tensors"].keys()
    for name, tensor in one["tensors"].items():
        if "accuracy" not in name:  # shares of a few images jump
            torch.testing.assert_close(tensor, two["tensors"][name], rtol=5e-3, atol=5e-4, msg=lambda m: f"{name}: {m}")


def test_the_first_rank_writes_the_run(results):
    run = results["folder"] / "runs" / "two"
    assert sorted(f.name for f in (run / "checkpoints").iterdir()) == ["step_00000010", "step_00000020"]
    assert (run / "model.safetensors").is_file() and (run / "samples.png").is_file()


def test_accelerate_launch_on_cpu_starts_one_process_and_it_is_said(tmp_path, image_folder):
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
        str(REPOSITORY / "scripts" / "train.py"), "--data.source", str(image_folder), "--data.image_size", "8",
        "--runs_dir", str(tmp_path), "--train.steps", "2", "--train.batch_size", "8",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "asked for 2 processes and started 1" in done.stderr and "torchrun" in done.stderr
