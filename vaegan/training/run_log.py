"""What a run leaves to look at: metrics.jsonl, TensorBoard, image grids, a progress bar."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import yaml
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from vaegan import sampling
from vaegan.config import ConfigError
from vaegan.data import ImageSet, spread_rows, to_float
from vaegan.data.labels import aligned
from vaegan.evaluation.reconstruction import evaluating
from vaegan.model import VAEGAN
from vaegan.training import diagnose
from vaegan.training.background import Background
from vaegan.training.process import LAUNCH_FILE, launch_id

GRID_SAMPLES, GRID_PAIRS, GRID_COLUMNS = 64, 32, 8
GRID_CLASSES = 16  # rows that a grid may grow to, a class each
log = logging.getLogger("vaegan")


class Meter:
    """Means of the terms since the last reading. Sums stay on the device; reading them is the only wait for it."""

    def __init__(self):
        self._sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}  # lazily applied penalties come only now and then
        self._images = 0
        self._since = time.perf_counter()

    def add(self, terms: dict[str, Tensor], images: int) -> None:
        names, values = tuple(terms), torch.stack(list(terms.values()))
        before, count = self._sums.get(names, (0.0, 0))
        self._sums[names] = (before + values, count + 1)
        self._images += images

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time in this context does not count as training."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start

    def non_finite(self) -> list[str]:
        """Terms that were not finite in any step since the last reading."""
        return sorted(
            {n for names, (sums, _) in self._sums.items() for n, ok in zip(names, sums.isfinite().tolist()) if not ok}
        )

    def read(self) -> dict[str, float]:
        """Means of the interval and images a second; starts the next interval."""
        totals: dict[str, tuple[float, int]] = {}
        for names, (sums, count) in self._sums.items():
            for name, value in zip(names, sums.tolist()):
                total, n = totals.get(name, (0.0, 0))
                totals[name] = (total + value, n + count)
        now = time.perf_counter()
        speed = self._images / (now - self._since)
        self._sums, self._images, self._since = {}, 0, now
        return {name: total / n for name, (total, n) in totals.items()} | {"images_per_second": speed}


class RunLog:
    """Writes into the run's folder on the first process, in the background; on the others it only takes part.

    After a resume the curves go on at the checkpoint's step: later lines are taken out.
    """

    def __init__(self, trainer, run_dir: Path):
        self._trainer, self._dir, self._accelerator = trainer, run_dir, trainer.accelerator
        self._main = self._accelerator.is_main_process
        self._warned: dict[str, set[str]] = {}
        self._bar = self._metrics = None
        if not self._main:
            return
        self._background, self._failed = Background(), False
        text = yaml.safe_dump(trainer.config.as_dict(), sort_keys=False)
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            (run_dir / "config.yaml").write_text(text)
            (run_dir / LAUNCH_FILE).write_text(launch_id())
            self._open_metrics()
        except OSError as error:
            raise ConfigError(
                f"runs_dir: {run_dir} cannot be written ({error.strerror}); make room, or choose another runs_dir"
            ) from error
        self._accelerator.project_configuration.logging_dir = str(run_dir)
        self._accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": trainer.step + 1}})
        self._accelerator.log({"config": f"```yaml\n{text}```"}, step=trainer.step)
        self._bar = tqdm(
            total=trainer.total_steps, initial=trainer.step, unit="step", dynamic_ncols=True, mininterval=0.5
        )

    def progress(self, figures: dict[str, float] | None) -> None:
        """One step is done; `figures` where a logging interval ended."""
        if self._bar is not None:
            self._bar.update()
            if figures:
                self._bar.set_postfix_str(f"{figures['images_per_second']:.0f} images/s", refresh=False)

    def scalars(self, figures: dict[str, float]) -> None:
        """A line of metrics.jsonl, and the same to TensorBoard."""
        if self._main:
            self._in_background(self._write_scalars, self._trainer.step, figures)

    def _write_scalars(self, step: int, figures: dict[str, float]) -> None:
        self._metrics.write(json.dumps({"step": step, **figures}) + "\n")
        self._accelerator.log(figures, step=step)

    def warn(self, source: str, failures: dict[str, str]) -> None:
        """Log the failures that `source` did not report last time."""
        before, self._warned[source] = self._warned.get(source, set()), set(failures)
        for name, line in failures.items():
            if self._main and name not in before:
                self.message(f"step {self._trainer.step}: {line}", logging.WARNING)

    def message(self, line: str, level: int = logging.INFO) -> None:
        if self._main:
            with logging_redirect_tqdm([log]) if log.handlers else contextlib.nullcontext():
                log.log(level, line)

    def grids(self) -> tuple[float, float] | None:
        """Draw the grids of fixed samples and of reconstructions; returns the mean distances (samples, images)."""
        if not self._main:
            return None
        trainer = self._trainer
        model, shown = trainer.sampling_model, {}
        real = trainer.validation if trainer.validation is not None else trainer.images
        rows = spread_rows(len(real), GRID_SAMPLES)
        x = to_float(real.batch(rows)).to(model.device)
        labels = self._labels(real, rows)
        spread = None
        with evaluating(model):
            if model.variational:
                samples = self._samples(model)
                shown["samples"] = sampling.to_uint8(samples)
                spread = (diagnose.mean_distance(samples), diagnose.mean_distance(x)) if len(x) > 1 else None
            if model.encoder is not None:
                chosen = spread_rows(len(x), GRID_PAIRS)
                y = None if labels is None else labels[chosen]
                pairs = sampling.beside(x[chosen], model.reconstruct(x[chosen], y))
                shown["reconstructions"] = sampling.to_uint8(pairs)
        for name, images in shown.items():
            self._in_background(self._write_picture, trainer.step, name, sampling.grid(images, GRID_COLUMNS))
        return spread

    def _samples(self, model: VAEGAN) -> Tensor:
        """Fixed samples; of a conditional model a row a class, in turn, of up to `GRID_CLASSES` of them."""
        if not model.classes:
            return model.sample(GRID_SAMPLES, seed=self._trainer.config.seed)
        rows = max(GRID_SAMPLES // GRID_COLUMNS, min(model.classes, GRID_CLASSES))
        labels = sampling.row_labels(rows, GRID_COLUMNS, model.classes)
        return model.sample(len(labels), seed=self._trainer.config.seed, labels=labels)

    def _labels(self, real: ImageSet, rows: Tensor) -> Tensor | None:
        """Labels of images of a set, where the run is conditional."""
        model = self._trainer.sampling_model
        if not model.classes:
            return None
        where = "the set that is shown"
        return aligned(real.labels, real.classes, model.classes, model.class_names, where)[rows]

    def _write_picture(self, step: int, name: str, picture: Tensor) -> None:
        data = sampling.png(picture)
        sampling.write_whole(self._dir / name / f"{step:08d}.png", data)
        sampling.write_whole(self._dir / f"{name}.png", data)  # the latest, where one looks first
        for tracker in self._accelerator.trackers:
            tracker.log_images({name: picture[None].numpy()}, step=step)

    def _in_background(self, write: Callable, *arguments) -> None:
        """Training goes on where curves and pictures cannot be written: they can be spared, unlike its weights."""

        def attempt() -> None:
            try:
                write(*arguments)
            except OSError as error:
                if not self._failed:  # a full disk is said once
                    self._failed = True
                    log.warning("%s: curves or pictures cannot be written (%s); training goes on", self._dir, error)
            else:
                self._failed = False

        self._background.do(attempt)

    def _open_metrics(self) -> None:
        _drop_later_lines(self._dir / "metrics.jsonl", self._trainer.step)
        self._metrics = open(self._dir / "metrics.jsonl", "a", buffering=1)

    def rewind(self) -> None:
        """Go back to the trainer's step: lines of later ones are taken out."""
        if self._main:
            self._background.flush()
            self._metrics.close()
            self._open_metrics()
            self._bar.n = self._trainer.step

    def flush(self) -> None:
        """Wait until all is written: a checkpoint must not be ahead of the curves."""
        if self._main:
            self._background.flush()

    def close(self) -> None:
        """Write what there is."""
        if self._main:
            self._bar.close()
            for close in (self._metrics.close, *(tracker.finish for tracker in self._accelerator.trackers)):
                self._in_background(close)
            self._background.close()


def _drop_later_lines(file: Path, step: int) -> None:
    """Keep the lines of metrics.jsonl up to a step; a last line that a kill cut in two goes as well, and what is no line."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    partial = file.with_name(".metrics.partial")
    partial.write_text("".join(kept))
    os.replace(partial, file)
