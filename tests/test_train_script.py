"""scripts/train.py as users run it: bad input, kills, resumes, launchers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, SHARED_DATA
from PIL import Image

SCRIPT = str(REPOSITORY / "scripts" / "train.py")
TINY = ["--data.image_size", "8", "--model.width", "4", "--model.discriminator_width", "4", "--train.batch_size", "16",
        "--train.sample_every", "1000", "--train.val_every", "1000", "--name", "run"]  # fmt: skip


def train(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)


def call(monkeypatch, capsys, *arguments: str) -> tuple[int, list[str]]:
    """The script's main function in this process: exit status and the lines of its errors."""
    import importlib.util

    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)  # it is one for the process, and remembers its first precision
    spec = importlib.util.spec_from_file_location("train_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        module.cli.run(module.main)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    return stop.value.code, errors


@pytest.fixture
def bad_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("text", "truncated"):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.new("L", (8, 8), i).save(tmp_path / name / f"{i:02d}.png")
    (tmp_path / "text" / "05.png").write_text("this is no picture")
    Image.effect_noise((64, 64), 50).save(tmp_path / "truncated" / "photo.jpg")
    data = (tmp_path / "truncated" / "photo.jpg").read_bytes()
    (tmp_path / "truncated" / "photo.jpg").write_bytes(data[: len(data) // 2])
    return tmp_path


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--data.source", "{}/nowhere"], "data.source"),
        (["--data.source", "mnits"], "mnist"),
        (["--data.source", "{}/empty"], "empty"),
        (["--data.source", "{}/text"], "05.png"),
        (["--data.source", "{}/truncated"], "photo.jpg"),
        (["--data.source", "{}/text", "--data.storage", "stream", "--data.workers", "0"], "05.png"),
        (["--data.image_size", "48"], "data.image_size"),
        (["--train.batch_size", "70000"], "train.batch_size"),
        (["--train.precision", "fp16"], "fp16"),
        (["--train.stepz", "3"], "train.steps"),
        (["--resume", "{}/empty"], "resume"),
        (["--config", "{}/none.yaml"], "none.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_status_2(bad_folders, monkeypatch, capsys, arguments, expected):
    runs = bad_folders / "runs"
    filled = [a.format(bad_folders) for a in arguments]
    extra = [a for a in TINY if "--data.image_size" not in filled or a not in ("--data.image_size", "8")]
    if "--data.source" in filled or "--resume" in filled or "--train.batch_size" in filled:
        filled = extra + filled
    status, errors = call(monkeypatch, capsys, "--runs_dir", str(runs), "--train.steps", "3", *filled)
    assert status == 2 and len(errors) == 1, errors
    assert expected in errors[0]
    left = list(runs.rglob("*.safetensors")) + list(runs.rglob("*.png"))
    assert not left


@pytest.mark.parametrize("configured, launched, native, chosen", [
    ("auto", "no", True, "bf16"), ("auto", "no", False, "no"), ("auto", None, True, "bf16"), ("auto", "bf16", False, "bf16"),
    ("fp32", "bf16", True, "no"), ("bf16", "no", False, "bf16"), ("fp32", "fp16", True, "no"),
])  # fmt: skip
def test_precision(monkeypatch, configured, launched, native, chosen):
    from vaegan.training import process

    monkeypatch.setattr(process, "multiplies_bfloat16", lambda cpu: native)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert process.choose_precision(configured, cpu=True) == chosen


def test_checkpoint_of_another_architecture_is_refused(image_folder, tmp_path, monkeypatch, capsys):
    source = ["--data.source", str(image_folder), "--runs_dir", str(tmp_path), *TINY, "--train.steps", "2"]
    assert train(*source).returncode == 0
    status, errors = call(monkeypatch, capsys, *source, "--resume", "auto", "--model.latent_dim", "3")
    assert status == 2 and len(errors) == 1 and "model.latent_dim" in errors[0]


def test_a_second_run_does_not_overwrite_the_first(image_folder, tmp_path):
    source = ["--data.source", str(image_folder), "--runs_dir", str(tmp_path), *TINY, "--train.steps", "1"]
    for _ in range(2):
        assert train(*source).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-2"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL") or sys.platform != "linux", reason="prctl is Linux's")
def test_trainer_ends_with_its_launcher(image_folder, tmp_path):
    """A SIGTERM to accelerate launch would else leave the trainer running alone."""
    launcher = subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", SCRIPT, "--data.source", str(image_folder), *TINY,
         "--runs_dir", str(tmp_path), "--train.steps", "1000000", "--train.save_every", "5"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    import psutil

    checkpoints, deadline = tmp_path / "run" / "checkpoints", time.monotonic() + 90
    while not list(checkpoints.glob("step_*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    children = psutil.Process(launcher.pid).children(recursive=True)
    assert children, "the trainer did not start"
    launcher.terminate()
    launcher.wait(timeout=30)
    _, alive = psutil.wait_procs(children, timeout=15)
    for process in alive:
        process.kill()
    assert not alive


def test_accelerates_fp16_is_refused_with_a_reason(image_folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    status, errors = call(monkeypatch, capsys, "--data.source", str(image_folder), *TINY, "--runs_dir", str(tmp_path))
    assert status == 2 and len(errors) == 1 and "loss" in errors[0] and "bf16" in errors[0]


def test_print_config_is_a_config(tmp_path):
    done = train("--print_config", "--optimizer.lr", "2e-4")
    file = tmp_path / "config.yaml"
    file.write_text(done.stdout)
    assert done.returncode == 0 and yaml.safe_load(done.stdout)["optimizer"]["lr"] == 2e-4
    again = train("--config", str(file), "--print_config")
    assert again.stdout == done.stdout


@pytest.mark.skipif(not (SHARED_DATA / "cifar10-jpeg-train.zip").exists(), reason="needs CIFAR-10 as a zip archive")
def test_real_cifar10_trains_from_its_zip(tmp_path):
    done = train("--config", str(REPOSITORY / "configs" / "cifar10.yaml"), "--data.source",
                 str(SHARED_DATA / "cifar10-jpeg-train.zip"), "--runs_dir", str(tmp_path), "--train.steps", "200", "--train.batch_size", "16", "--model.width", "8", "--model.discriminator_width",
                 "8")  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "cifar10"
    assert (run / "checkpoints" / "step_00000200").is_dir() and (run / "samples.png").is_file()
    assert Path(run / "model.safetensors").is_file() and os.path.getsize(run / "metrics.jsonl") > 0


@pytest.mark.parametrize("name", ["train.py", "sample.py", "fid.py"])
def test_help_does_not_wait_for_torch(name):
    command = [sys.executable, "-X", "importtime", str(REPOSITORY / "scripts" / name), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and len(done.stdout) > 500
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "vaegan" in imported and not imported & {"torch", "torchvision", "accelerate", "matplotlib", "PIL"}


def test_nothing_waits_for_torchvision_that_does_not_use_it():
    """It takes another second or two, most of them for the compiler, which it imports."""
    code = "import sys, vaegan.training, vaegan.sampling, vaegan.evaluation.commands; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "'torch'" in done.stdout and "'torchvision'" not in done.stdout and "'torch._dynamo'" not in done.stdout
