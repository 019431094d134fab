#!/usr/bin/env python3
"""How cost grows with the data set, the batch, the processes and an evaluation's images; and the memory of whole runs.

Each configuration is a process of its own (`growth_worker.py`), so that its peak memory is its own, and waits while
another one is measured.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from memory import peak_of
from timing import Row, Table, in_turn, machine, markdown, rows

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
WORKER = Path(__file__).with_name("growth_worker.py")
SIZES = (600, 6000, 60_000)
BATCHES = (16, 64, 256)
DELIVERED = {"memory": 60_000, "stream": 12_000}  # images that a measurement of the data path takes, or an epoch
STEP_IMAGES = 1024  # that a measurement of training steps takes: a multiple of every batch times penalty_interval
WHOLE = "--data.val_fraction=0"
COLOUR = ("--data.source=mnist", "--data.channels=3", "--data.fit=pad")


def growth_tables(repeats: int, root: str) -> list[Table]:
    """Tables of all PARTS. `root`: CIFAR-10 for its recipe, as an archive or folder of images, or the folder where
    torchvision has put it; if it is empty, MNIST in colour."""
    return [table for tables in PARTS.values() for table in tables(repeats, root)]


def data_set(repeats: int, root: str) -> list[Table]:
    """Data path and training step on 10 and 100 times as many images, kept in memory and streamed."""
    with tempfile.TemporaryDirectory() as folder:
        archives = {n: digits(Path(folder) / f"{n}.zip", n) for n in SIZES}
        return [
            table
            for storage in ("memory", "stream")
            for table in (_data_path(archives, storage, repeats), _steps(archives, storage, repeats))
        ]


def _data_path(archives: dict[int, Path], storage: str, repeats: int) -> Table:
    workers = {
        f"{n} images": Worker("data", recipe="mnist", flags=_source(file, storage), images=DELIVERED[storage])
        for n, file in archives.items()
    }
    text = f"MNIST as PNG in a zip archive, at least an epoch of batches; data.storage {storage}."
    return _table(f"Growth: data path, {storage}", workers, repeats, "µs an image", text)


def _steps(archives: dict[int, Path], storage: str, repeats: int) -> Table:
    workers = {f"{n} images": _training("mnist", 64, *_source(file, storage)) for n, file in archives.items()}
    text = f"configs/mnist.yaml, the data path included; data.storage {storage}."
    return _table(f"Growth: training, {storage}", workers, repeats, "µs an image", text)


def batch(repeats: int, root: str) -> list[Table]:
    workers = {f"batch of {size}": _training("mnist", size) for size in BATCHES}
    return [_table("Growth: batch", workers, repeats, "images/s", "Training steps of configs/mnist.yaml.")]


def processes(repeats: int, root: str) -> list[Table]:
    """One process of two threads against two processes of one, which are also measured without a word to each other."""
    cifar10 = Path(root) / "cifar-10-batches-py"
    flags = COLOUR if not root else (f"--data.root={root}",) if cifar10.is_dir() else (f"--data.source={root}", WHOLE)
    found = []
    for recipe, size, own in (("mnist", 64, ()), ("cifar10", 128, flags)):
        one, two = (("--train.device=cpu", f"--train.threads={threads}", *own) for threads in (2, 1))
        workers = {
            "1 process, 2 threads": _training(recipe, size, *one),
            "2 processes, 1 thread": _training(recipe, size, *two, processes=2),
            "the same, without messages": _training(recipe, size, *two, processes=2, messages=False),
        }
        text = f"Training steps of configs/{recipe}.yaml on the CPU, {size} images each over all processes."
        found.append(_table(f"Growth: processes, {recipe}", workers, repeats, "images/s", text))
    return found


def evaluation(repeats: int, root: str) -> list[Table]:
    with tempfile.TemporaryDirectory() as folder:
        archives = {n: digits(Path(folder) / f"{n}.zip", n) for n in SIZES}
        workers = {f"{n} images": Worker("evaluation", source=str(file), images=n) for n, file in archives.items()}
        text = "From PNG files in a zip archive to the Fréchet distance from half as many, features of one convolution."
        return [_table("Growth: evaluation", workers, repeats, "µs an image", text)]


PARTS: dict[str, Callable[[int, str], list[Table]]] = {
    "data": data_set, "batch": batch, "processes": processes, "evaluation": evaluation,
}  # fmt: skip


def memory_tables(repeats: int, root: str, count: int = 10_000, steps: int = 100) -> list[Table]:
    """Peak memory of a short training run of the default recipe, and of an evaluation of `count` of its samples against
    as many images. Each is run once: what memory it takes does not vary."""
    with tempfile.TemporaryDirectory() as folder:
        train = _script("train.py", f"--runs_dir={folder}", f"--train.steps={steps}", "--train.sample_every=50")
        sides = ("mnist", f"{folder}/mnist", f"--num-samples={count}")
        calc = _script("fid.py", "calc", *sides, "--extractor=efficientnet-lite0", "--no-cache")
        found = {
            f"train.py, configs/mnist.yaml, {steps} steps": peak_of(train),
            f"fid.py calc, efficientnet-lite0, {count} images and samples": peak_of(calc),
        }
    return [Table("Memory", [Row(name, value, value, value, "MiB") for name, value in found.items()])]


def _script(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPTS / name), *arguments]


def digits(file: Path, n: int) -> Path:
    """A zip archive of n MNIST images as PNG files."""
    from PIL import Image

    from vaegan.evaluation.sources import open_source

    images = open_source("mnist", split="train", limit=n).batch(0, n)
    with zipfile.ZipFile(file, "w") as archive:
        for i, image in enumerate(images):
            Image.fromarray(image[0].numpy()).save(png := io.BytesIO(), "png", compress_level=1)
            archive.writestr(f"{i:06d}.png", png.getvalue())
    return file


class Worker:
    """A process that measures when it is asked to. `note` says what else the last measurement found."""

    def __init__(self, kind: str, processes: int = 1, **options):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(launch if processes > 1 else []), str(WORKER), kind]
        if kind == "training":
            options["processes"] = processes
        environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if processes > 1 else {})
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*command, json.dumps(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            text=True, env=environment, cwd=WORKER.parent,
        )  # fmt: skip
        self.note = ""

    def measure(self) -> float:
        """Images a second."""
        try:
            self._process.stdin.write("again\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        for line in self._process.stdout:
            if line.startswith("measured "):
                found = json.loads(line.removeprefix("measured "))
                self.note = f"{found['MiB']:.0f} MiB"
                if "opened/s" in found:
                    self.note += f", opened at {1e6 / found['opened/s']:.1f} µs an image"
                return found["images/s"]
        return self._fail()

    def _fail(self) -> float:
        self._errors.seek(0)
        raise SystemExit(f"{' '.join(self._process.args)} failed:\n{self._errors.read().decode()[-2000:]}")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def _training(recipe: str, size: int, *flags: str, processes: int = 1, messages: bool = True) -> Worker:
    flags, steps = (*flags, f"--train.batch_size={size}"), max(4, STEP_IMAGES // size)
    return Worker("training", processes, recipe=recipe, flags=flags, steps=steps, messages=messages)


def _source(archive: Path, storage: str) -> tuple[str, ...]:
    return (f"--data.source={archive}", f"--data.storage={storage}", WHOLE)


def _table(title: str, workers: dict[str, Worker], repeats: int, unit: str, text: str) -> Table:
    """Figures of workers, with ratios to the first."""
    reference = next(iter(workers))
    try:
        figures = in_turn({name: worker.measure for name, worker in workers.items()}, repeats)
        if unit == "µs an image":
            figures = {name: [1e6 / value for value in values] for name, values in figures.items()}
        notes = {name: worker.note for name, worker in workers.items()}
        return Table(title, rows(figures, unit, reference, notes), reference, text)
    finally:
        for worker in workers.values():
            worker.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each, after one left out (default 7)")
    parser.add_argument(
        "--root", default="", help="CIFAR-10: an archive, a folder of images, or where torchvision put it"
    )
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "memory"), default=(*PARTS, "memory"), metavar="PART")
    parser.add_argument("--images", type=int, default=10_000, help="of the evaluation whose memory is measured")
    options = parser.parse_args()
    found = [table for part in PARTS if part in options.parts for table in PARTS[part](options.repeats, options.root)]
    if "memory" in options.parts:
        found += memory_tables(options.repeats, options.root, options.images)
    print(markdown(found, machine()))


if __name__ == "__main__":
    main()
