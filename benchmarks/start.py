"""Start-up and sampling as a user waits for them: whole processes, from launch to what is to be seen."""

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from timing import Row, Table, in_turn, rows

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
IMAGES = 1000
FIRST_STEP, FIRST_IMAGE = "scripts/train.py, first training step on MNIST", "scripts/sample.py --images 1"


def start_tables(repeats: int, root: str) -> list[Table]:
    """Seconds until the scripts explain themselves, and until the first step of the default run is in its log."""
    contestants = {f"scripts/{name} --help": partial(helped, name) for name in ("train.py", "sample.py", "fid.py")}
    contestants['python -c "import torch"'] = partial(seconds, [sys.executable, "-c", "import torch"])
    contestants[FIRST_STEP] = partial(first_step, root)
    text = "From launch to exit, or to the first line of metrics.jsonl with train.log_every 1."
    return [Table("Start-up", rows(in_turn(contestants, repeats), "s"), text=text)]


def sampling_tables(repeats: int, root: str) -> list[Table]:
    """Images a second of scripts/sample.py on the networks of the default run, and seconds until a first image."""
    with tempfile.TemporaryDirectory() as folder:
        run = trained(Path(folder), root)
        contestants = {
            f"{n} images, {kind}": partial(sampled, run, n, suffix)
            for n in (IMAGES, 10 * IMAGES)
            for kind, suffix in (("folder", ""), ("zip", ".zip"))
        }
        contestants[FIRST_IMAGE] = partial(sampled, run, 1, "")
        figures = in_turn(contestants, repeats)
    one = {FIRST_IMAGE: [1 / rate for rate in figures.pop(FIRST_IMAGE)]}
    found: list[Row] = rows(figures, "images/s") + rows(one, "s")
    text = "scripts/sample.py on the networks of configs/mnist.yaml, from launch to exit, the files on disk."
    return [Table("Sampling", found, text=text)]


def helped(script: str) -> float:
    return seconds([sys.executable, str(SCRIPTS / script), "--help"])


def first_step(root: str) -> float:
    """Seconds from launch until the log has its first line; the run is ended then."""
    with tempfile.TemporaryDirectory() as folder:
        errors, command = Path(folder) / "errors", training(Path(folder), root, "--train.log_every=1")
        start = time.perf_counter()
        with open(errors, "w") as stderr:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            while not any(log.stat().st_size for log in Path(folder).glob("*/metrics.jsonl")):
                if process.poll() is not None:
                    raise SystemExit(f"the training failed:\n{errors.read_text()[-2000:]}")
                time.sleep(0.005)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()


def trained(folder: Path, root: str) -> Path:
    """A run of the default networks after one step."""
    seconds(training(folder, root, "--train.steps=1"))
    return folder / "mnist"


def training(folder: Path, root: str, *flags: str) -> list[str]:
    flags = (f"--runs_dir={folder}", *([f"--data.root={root}"] if root else []), *flags)
    return [sys.executable, str(SCRIPTS / "train.py"), *flags]


def sampled(run: Path, n: int, suffix: str) -> float:
    """Images a second of a process that writes n."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"samples{suffix}"
        return n / seconds([sys.executable, str(SCRIPTS / "sample.py"), str(run), f"--images={n}", f"--out={out}"])


def seconds(command: list[str]) -> float:
    """How long a process takes; SystemExit with its last lines if it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    taken = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return taken
