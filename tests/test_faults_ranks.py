"""Runs of two processes: signals, the death of one of them, weights that drift apart."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY
from test_faults_process import assert_same_run

from vaegan.training import checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and processes as Linux has them")
SCRIPT = str(REPOSITORY / "scripts" / "train.py")
STEPS = {1: 60, 2: 60, 10: 200, 20: 600}  # by how often a test upsets a run
TINY = ["--data.image_size", "8", "--model.width", "4", "--model.discriminator_width", "4", "--train.batch_size", "16",
        "--train.sample_every", "1000", "--train.val_every", "1000", "--name", "run",
        "--train.precision", "fp32", "--train.log_every", "1", "--train.save_every", "3"]  # fmt: skip


class Launch:
    """Two processes of a script under torchrun."""

    def __init__(self, output: Path, *arguments: str, script: str = SCRIPT, restarts: int = 0):
        self.output = output
        self._file = open(output, "w")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                   "--max_restarts", str(restarts), script, *arguments]  # fmt: skip
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment, stdout=self._file, stderr=self._file)

    def workers(self) -> list[psutil.Process]:
        """The processes of the run, by rank."""
        children = psutil.Process(self.process.pid).children()
        return sorted((c for c in children if "RANK" in c.environ()), key=lambda c: int(c.environ()["RANK"]))

    def wait(self, seconds: float = 120) -> int:
        status = self.process.wait(seconds)
        self._file.close()
        return status


def wait_for_step(run: Path, above: int, launch: Launch) -> None:
    deadline = time.monotonic() + 90
    while max(checkpoint.list_steps(run / "checkpoints"), default=0) <= above:
        assert time.monotonic() < deadline and launch.process.poll() is None, launch.output.read_text()[-3000:]
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, image_folder):
    """A function of steps to the uninterrupted run."""

    @functools.cache
    def run(steps: int) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        arguments = ["--data.source", str(image_folder), *TINY, "--runs_dir", str(folder), "--train.steps", str(steps)]
        launch = Launch(folder / "output.txt", *arguments)
        assert launch.wait() == 0, launch.output.read_text()[-3000:]
        return folder

    return run


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_a_signal_ends_all_processes_after_one_save(whole, image_folder, tmp_path, count):
    """Sent to the launcher, which sends it on to all, or to one process, which tells the other."""
    steps = STEPS[count]
    arguments = ["--data.source", str(image_folder), *TINY, "--runs_dir", str(tmp_path), "--resume", "auto",
                 "--train.save_every", "1000", "--train.steps", str(steps)]  # fmt: skip
    metrics, rng = tmp_path / "run" / "metrics.jsonl", random.Random(0)
    for i in range(count):
        before = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        launch = Launch(tmp_path / "output.txt", *arguments)
        deadline = time.monotonic() + 90
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > before):
            assert time.monotonic() < deadline and launch.process.poll() is None, launch.output.read_text()[-3000:]
            time.sleep(0.002)
        time.sleep(rng.random() * 0.02)
        workers = launch.workers()
        number = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)[i % 3]
        (workers[i % 2] if number == signal.SIGUSR1 else launch.process).send_signal(number)
        assert launch.wait() != 0
        output = launch.output.read_text()
        step = max(checkpoint.list_steps(tmp_path / "run" / "checkpoints"))
        assert f"stopped by {number.name} at step {step} of" in output, output[-3000:]
        assert json.loads(metrics.read_text().splitlines()[-1])["step"] == step
        assert all(not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE for worker in workers)
        assert step < steps - 10, "it might end by itself"
    launch = Launch(tmp_path / "output.txt", *arguments)
    assert launch.wait() == 0, launch.output.read_text()[-3000:]
    assert_same_run(whole(steps), tmp_path, steps)


@pytest.mark.parametrize("rank", [1, *(pytest.param(i % 2, marks=pytest.mark.soak, id=f"soak{i}") for i in range(10))])
def test_the_others_end_when_one_process_dies(image_folder, tmp_path, rank):
    """Without a launcher that would end them: they notice by themselves, and say so in a line."""
    launch = Launch(
        tmp_path / "output.txt", "--data.source", str(image_folder), *TINY, "--runs_dir", str(tmp_path), "--train.steps", "100000"
    )  # fmt: skip
    wait_for_step(tmp_path / "run", 3, launch)
    workers = launch.workers()
    launch.process.send_signal(signal.SIGSTOP)
    try:
        workers[rank].send_signal(signal.SIGKILL)
        start, deadline = time.monotonic(), time.monotonic() + 60
        while workers[1 - rank].status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the other process waits"
            time.sleep(0.05)
        print(f"the other ended after {time.monotonic() - start:.1f} s")
    finally:
        launch.process.send_signal(signal.SIGCONT)
    assert launch.wait() != 0
    output = launch.output.read_text()
    line = next(line for line in output.splitlines() if "another process of this run has ended" in line)
    assert "--resume auto" in line
    assert checkpoint.load_latest(tmp_path / "run" / "checkpoints") is not None


@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_max_restarts_goes_on_to_the_bit(whole, image_folder, tmp_path, count):
    """A new run, whose processes are killed now and then: no --resume is needed."""
    steps = STEPS[count]
    arguments = ["--data.source", str(image_folder), *TINY, "--runs_dir", str(tmp_path), "--train.steps", str(steps)]
    launch, rng = Launch(tmp_path / "output.txt", *arguments, restarts=count), random.Random(0)
    for i in range(count):
        wait_for_step(tmp_path / "run", 3 + i * (steps - 12) // count, launch)
        rng.choice(launch.workers()).send_signal(signal.SIGKILL)
        time.sleep(1)
    assert launch.wait(60 + 30 * count) == 0, launch.output.read_text()[-3000:]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]
    assert_same_run(whole(steps), tmp_path, steps)


def test_weights_that_drift_apart_are_found_and_named(tmp_path, image_folder):
    """One process changes one weight by the last bit; the next comparison finds it, on both. And a NaN that one process
    meets stops both in that step."""
    worker = str(Path(__file__).with_name("faulty_worker.py"))
    launch = Launch(tmp_path / "output.txt", str(tmp_path), str(image_folder), script=worker)
    assert launch.wait() == 0, launch.output.read_text()[-3000:]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["diverged"].startswith("model.encoder.blocks.0.0.weight, ema.encoder.blocks.0.0.weight differ between")
        assert "at step 6;" in found["diverged"]
        assert found["nan"].startswith("gradient of the") or "discriminator" in found["nan"]
        assert "not finite at step 3" in found["nan"] and found["step"] == 2
    assert "(images" in json.loads((tmp_path / "1.json").read_text())["nan"]  # only that process has them
