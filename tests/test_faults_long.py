"""Long runs: memory, handles, threads and the folder stay as they are; two processes fifty times in a row."""

import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, replace
from test_distributed import VARIANTS, launch

from vaegan.config import Config, DataConfig, ModelConfig, ObjectiveConfig, TrainConfig
from vaegan.training import checkpoint

pytestmark = pytest.mark.soak
STEPS = 20_000
BALANCED = ObjectiveConfig(
    pixel_weight=1.0, adversarial_weight=0.5, balance=True, r1_weight=0.5, penalty_interval=4, fakes="both"
)


@pytest.fixture(scope="module")
def long_run(image_folder, tmp_path_factory):
    """The folder of a run of 20 000 steps, and what its process held on the way."""
    folder = tmp_path_factory.mktemp("long")
    config = Config(
        name="long", runs_dir=str(folder),
        data=DataConfig(source=str(image_folder), image_size=8, horizontal_flip=True),
        model=ModelConfig(latent_dim=2, width=2, discriminator_width=2), objective=BALANCED,
        train=TrainConfig(steps=STEPS, batch_size=4, log_every=100, val_every=1000, sample_every=1000, save_every=500,
                          threads=1, precision="fp32"),
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(replace(config, optimizer={"lr": 2e-4}).as_dict()))
    worker = [sys.executable, str(REPOSITORY / "tests" / "resume_worker.py"), "long", str(folder)]
    done = subprocess.run(worker, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", json.loads((folder / "report.json").read_text())


def test_memory_handles_and_threads_stay_as_they_are(long_run):
    """Medians of windows of 2000 steps, from step 4000 on: memory drifts by less than 2 %, the rest not at all."""
    _, report = long_run
    windows: dict[int, list] = {}
    for step, *held in report["samples"]:
        windows.setdefault(step // 2000, []).append(held)
    medians = [[statistics.median(column) for column in zip(*rows)] for _, rows in sorted(windows.items())]
    print(*(f"from step {2000 * i}: {rss / 2**20:.1f} MiB, {handles:.0f} handles, {threads:.0f} threads"
            for i, (rss, handles, threads) in enumerate(medians)), sep="\n")  # fmt: skip
    settled = medians[2:]
    assert len(medians) == STEPS // 2000
    assert max(rss for rss, _, _ in settled) < 1.02 * settled[0][0]
    assert len({(handles, threads) for _, handles, threads in settled}) == 1
    assert max(handles for _, _, handles, _ in report["samples"]) < settled[0][1] + 8  # files that are being written


def test_the_folder_of_a_long_run_holds_what_it_says_and_no_more(long_run):
    run, _ = long_run
    assert 2 <= len(list((run / "checkpoints").iterdir())) <= 3  # the last two, and the best
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == [".launch"]
    assert not [path for path in run.rglob(".*") if path.name != ".launch"]
    for name in ("samples", "reconstructions"):
        assert len(list((run / name).iterdir())) == STEPS // 1000
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == STEPS // 100 + STEPS // 1000
    halves = [statistics.mean(map(len, part)) for part in (lines[: len(lines) // 2], lines[len(lines) // 2 :])]
    size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    print(f"{size / 2**20:.2f} MiB in all; bytes of a line of metrics.jsonl: {halves[0]:.0f}, then {halves[1]:.0f}")
    assert halves[1] == pytest.approx(halves[0], rel=0.05)


def test_warnings_are_not_repeated_without_end(long_run):
    _, report = long_run
    kinds = Counter(re.sub(r"[\d.]+", "#", message) for message in report["messages"])
    print(kinds)
    assert all(count <= 10 for count in kinds.values())


def test_two_processes_fifty_times_in_a_row(image_folder, tmp_path):
    """How processes meet, talk and leave may never fail, now and then included; and the bits are the same each time."""
    times, ends = int(os.environ.get("VAEGAN_TEST_RUNS", 50)), set()
    for i in range(times):
        folder = tmp_path / str(i)
        folder.mkdir()
        for name in ("full", "gated"):
            objective, train = VARIANTS[name]
            config = Config(
                name="two", runs_dir=str(folder / "runs"),
                data=DataConfig(source=str(image_folder), image_size=8, val_fraction=0.3),
                model=ModelConfig(latent_dim=4, width=4, discriminator_width=4), objective=objective,
                train=TrainConfig(steps=10, batch_size=16, save_every=5, sample_every=5, log_every=1, **train),
            )  # fmt: skip
            (folder / f"{name}.json").write_text(json.dumps(config.as_dict()))
        done = launch(2, str(REPOSITORY / "tests" / "distributed_worker.py"), str(folder))
        assert done.returncode == 0, f"time {i + 1} of {times}:\n{done.stderr[-5000:]}"
        ranks = [_bits(folder / f"full.2.{rank}.pt") + _bits(folder / f"gated.2.{rank}.pt") for rank in (0, 1)]
        assert ranks[0] == ranks[1]
        ends.add(ranks[0])
        assert checkpoint.load_latest(folder / "runs" / "two" / "checkpoints")[1]["step"] == 10
    assert len(ends) == 1


def _bits(file: Path) -> str:
    tensors = torch.load(file, weights_only=True)["tensors"]
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()
