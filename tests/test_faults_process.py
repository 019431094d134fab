"""Runs that are killed, told to end, or out of disk: nothing is lost."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file

from vaegan.training import checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, signals and small file systems as Linux has them")
TINY = ["--data.image_size", "8", "--model.width", "4", "--model.discriminator_width", "4", "--train.batch_size", "16",
        "--train.sample_every", "1000", "--train.val_every", "1000", "--objective.fakes", "both", "--name", "run",
        "--objective.reconstruct_every", "1",
        "--train.threads", "1", "--train.precision", "fp32", "--resume", "auto"]  # fmt: skip


class Server:
    """Runs of scripts/train.py, by train_server.py."""

    def __init__(self, output: Path):
        self.output = output
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "tests")}
        self._process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests" / "train_server.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def _ask(self, **request) -> dict:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, *arguments: str) -> int:
        self.output.write_text("")
        return self._ask(start=list(arguments), output=str(self.output))["pid"]

    def wait(self, pid: int) -> int:
        return self._ask(wait=pid)["status"]

    def run(self, *arguments: str) -> int:
        return self.wait(self.start(*arguments))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server") / "output.txt")
    yield server
    server.close()


def ended(pid: int) -> bool:
    """Whether the process is no more, or waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition, pid: int, seconds: float = 60) -> None:
    """Until a condition holds or the process has ended."""
    deadline = time.monotonic() + seconds
    while not condition() and not ended(pid):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.0002)


def assert_same_run(one: Path, two: Path, step: int) -> None:
    a, b = (checkpoint.checkpoint_path(run / "run" / "checkpoints", step) for run in (one, two))
    for file in sorted(a.glob("*.safetensors")):
        first, second = load_file(file), load_file(b / file.name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), file.name


# ---------------------------------------------------------------------- kill -9


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.soak)])
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(server, image_folder, tmp_path, kills):
    """Every other kill waits for a save to begin; the others come at any time. There is always a sound checkpoint."""
    steps, rng = 4 * kills, random.Random(0)
    common = ["--data.source", str(image_folder), *TINY, "--train.steps", str(steps), "--train.save_every", "1",
              "--train.log_every", "1", "--data.horizontal_flip", "true"]  # fmt: skip
    assert server.run(*common, "--runs_dir", str(tmp_path / "whole")) == 0, server.output.read_text()
    checkpoints, inside, done = tmp_path / "killed" / "run" / "checkpoints", 0, 0
    while done < kills:
        before = max(checkpoint.list_steps(checkpoints), default=0)
        pid = server.start(*common, "--runs_dir", str(tmp_path / "killed"))
        wait_until(lambda: max(checkpoint.list_steps(checkpoints), default=0) > before, pid)
        if done % 2:
            wait_until(lambda: any(checkpoints.glob(".partial-*")), pid)
        else:
            time.sleep(rng.random() * 0.05)
        assert not ended(pid), "the run ended before it could be killed"
        os.kill(pid, signal.SIGKILL)
        assert server.wait(pid) == -signal.SIGKILL
        done += 1
        inside += any(checkpoints.glob(".partial-*"))
        assert checkpoint.load_latest(checkpoints) is not None
    print(f"{done} kills, {inside} inside a save")
    assert inside >= 0.15 * kills
    assert server.run(*common, "--runs_dir", str(tmp_path / "killed")) == 0, server.output.read_text()
    assert_same_run(tmp_path / "whole", tmp_path / "killed", steps)
    lines = [json.loads(line) for line in (tmp_path / "killed" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "images_per_second" in line] == list(range(1, steps + 1))


# ---------------------------------------------------------------------- signals

# The places in which a signal arrives: what the run is made to do most of its time.
PLACES = {
    "steps": (),
    "evaluation": ("--evaluation.every", "1", "--evaluation.extractor", "tiny_extractor:slow", "--evaluation.num_samples", "24",
                   "--evaluation.batch_size", "8"),
    "sampling": ("--train.sample_every", "1"),
    "saves": ("--train.save_every", "1"),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.soak)])
def test_a_signal_ends_a_run_after_a_save_and_it_goes_on_to_the_bit(server, image_folder, tmp_path, place, count):
    rng, steps = random.Random(place), (8 if place == "evaluation" else 40) * count
    common = ["--data.source", str(image_folder), *TINY, "--train.steps", str(steps), "--train.save_every", "1000000",
              "--train.log_every", "1", "--evaluation.cache", str(tmp_path / "cache"), *PLACES[place]]  # fmt: skip
    metrics = tmp_path / "stopped" / "run" / "metrics.jsonl"

    def logged() -> int:
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    for i in range(count):
        number = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[i % 3]
        before = logged()
        pid = server.start(*common, "--runs_dir", str(tmp_path / "stopped"))
        wait_until(lambda: logged() > before, pid)
        time.sleep(rng.random() * 0.1)
        os.kill(pid, number)
        assert server.wait(pid) == 128 + number, server.output.read_text()
        step = max(checkpoint.list_steps(tmp_path / "stopped" / "run" / "checkpoints"))
        last = json.loads(metrics.read_text().splitlines()[-1])["step"]
        assert last == step, "a step was taken and not saved"
        output = server.output.read_text()
        assert f"stopped by {number.name} at step {step} of" in output and "Traceback" not in output
    assert server.run(*common, "--runs_dir", str(tmp_path / "stopped")) == 0, server.output.read_text()
    assert server.run(*common, "--runs_dir", str(tmp_path / "whole")) == 0, server.output.read_text()
    assert_same_run(tmp_path / "whole", tmp_path / "stopped", steps)
    seen = [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in metrics.read_text().splitlines()]
    whole = [json.loads(line) for line in (tmp_path / "whole" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in line.items() if k != "images_per_second"} for line in whole] == seen  # each look once


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_signal_while_networks_are_compiled_ends_the_run_after_that_step(server, image_folder, tmp_path):
    pid = server.start(
        "--data.source", str(image_folder), *TINY, "--train.steps", "50", "--train.compile", "true", "--runs_dir", str(tmp_path)
    )  # fmt: skip
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), pid)
    time.sleep(2)
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == 128 + signal.SIGTERM, server.output.read_text()
    assert checkpoint.list_steps(tmp_path / "run" / "checkpoints") == [1]


# ---------------------------------------------------------------------- no room


@pytest.fixture
def small_disk(tmp_path):
    """A function of bytes to a file system of that size; it may be called again to resize it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = []

    def mount(size: int) -> Path:
        options = f"{'remount,' if made else ''}size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("needs the right to mount a file system")
        made.append(size)
        return folder

    yield mount
    if made:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_no_checkpoint_and_training_goes_on(server, image_folder, small_disk, tmp_path):
    """Ten times: the disk fills up at another place of a run, which goes on, says so, and ends with status 1; with room
    again it goes on to the bits of the uninterrupted run."""
    steps = 30
    common = ["--data.source", str(image_folder), *TINY, "--train.steps", str(steps), "--train.save_every", "5", "--train.log_every",
              "1", "--train.keep_last", "1"]  # fmt: skip
    assert server.run(*common, "--runs_dir", str(tmp_path / "whole")) == 0, server.output.read_text()
    newest = tmp_path / "whole" / "run" / "checkpoints" / f"step_{steps:08d}"
    size = sum(file.stat().st_size for file in newest.iterdir())
    rng = random.Random(0)
    for i in range(10):
        disk = small_disk(64 << 20)
        shutil.rmtree(disk / "run", ignore_errors=True)
        (disk / "ballast").unlink(missing_ok=True)
        pid = server.start(*common, "--runs_dir", str(disk))
        wait_until(lambda: checkpoint.list_steps(disk / "run" / "checkpoints"), pid)
        os.kill(pid, signal.SIGSTOP)
        free = shutil.disk_usage(disk).free
        with open(disk / "ballast", "wb") as ballast:
            ballast.write(bytes(max(0, free - rng.randrange(size))))  # less than a checkpoint is left
        os.kill(pid, signal.SIGCONT)
        status, output = server.wait(pid), server.output.read_text()
        assert status == 1, output
        assert f"step_{steps:08d} cannot be written (No space left on device)" in output and "bytes" in output
        assert f"{steps}/{steps}" in output and output.count("Traceback") <= 1  # that of TensorBoard's own thread
        kept = checkpoint.list_steps(disk / "run" / "checkpoints")
        assert kept and all(checkpoint.load(checkpoint.checkpoint_path(disk / "run" / "checkpoints", step)) for step in kept)
        (disk / "ballast").unlink()
        assert server.run(*common, "--runs_dir", str(disk)) == 0, server.output.read_text()
        assert_same_run(tmp_path / "whole", disk, steps)


def test_room_that_comes_back_is_used_at_the_next_save(tiny_config, make_trainer, tmp_path, monkeypatch, caplog):
    t, real, calls = make_trainer(tiny_config(train={"save_every": 3})), checkpoint.save, []

    def sometimes(folder, step, *rest):
        calls.append(step)
        if step in (6, 9):
            raise OSError(28, f"{folder} cannot be written (No space left on device): it takes 9 bytes, 1 are free")
        return real(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "save", sometimes)
    t.fit(tmp_path / "run")
    assert calls == [3, 6, 9, 12] and checkpoint.list_steps(tmp_path / "run" / "checkpoints") == [3, 12]
    assert caplog.text.count("it takes 9 bytes") == 2 and "the checkpoints before it are kept" in caplog.text


@pytest.mark.parametrize("kind", ["file", "read-only"])
def test_a_runs_folder_that_cannot_be_written_is_said_in_a_line(server, image_folder, tmp_path, small_disk, kind):
    place = tmp_path / "place"
    if kind == "file":
        place.touch()
    else:
        place = small_disk(1 << 20)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    status = server.run("--data.source", str(image_folder), *TINY, "--train.steps", "3", "--runs_dir", str(place))
    lines = [line for line in server.output.read_text().splitlines() if line.startswith("error")]
    assert status == 2 and len(lines) == 1 and str(place) in lines[0] and "runs_dir" in lines[0]
