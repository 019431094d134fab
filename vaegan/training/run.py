"""A run: the loop around the steps, what is looked at and saved between them, and what ends it before its time."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from vaegan import stop
from vaegan.evaluation.reconstruction import validate, validation_metrics
from vaegan.training import checkpoint, diagnose, ranks, run_state
from vaegan.training.finite import NonFiniteLoss, require_finite_losses, require_finite_weights
from vaegan.training.measure import Measurement
from vaegan.training.profile import profiled
from vaegan.training.run_log import Meter, RunLog

if TYPE_CHECKING:
    from vaegan.training.trainer import Trainer

MAX_SKIPPED = 10  # batches that a run may leave out: more, and it is not the batches that are bad


class Run:
    """One call of `Trainer.fit`."""

    def __init__(self, trainer: "Trainer", run_dir: Path):
        self._trainer, self._dir, self._config = trainer, run_dir, trainer.config.train
        self._unsaved = ""  # why the last save failed

    def train(self) -> None:
        t = self._trainer
        if t.finished and not t.look_due:
            return
        batches = t.batches()  # checks the batch size, before anything is written
        self._measure = self._measurement()
        self._log, self._meter = RunLog(t, self._dir), Meter()
        if self._config.profile and t.accelerator.is_main_process:
            steps = t.total_steps - t.step
            batches = profiled(batches, self._config.profile, steps, self._dir, self._log.message)
        self._batches = batches
        with stop.listening():
            try:
                self._signal = ranks.Signal(t.accelerator)
                self._start()
                while not t.finished:
                    self._step()
                run_state.export_best(t, self._dir)
            except RuntimeError as error:
                raise ranks.lost(error, t) or error
            finally:
                self._batches.close()  # which writes the profile of a run that ends early
                self._log.close()
        if self._unsaved:
            raise stop.Stopped(self._unsaved, 1)

    def _start(self) -> None:
        if self._trainer.look_due:
            self._between_steps()
        if self._config.on_non_finite == "rollback" and not checkpoint.list_steps(self._dir / "checkpoints"):
            self._save()  # there must be something to go back to

    def _step(self) -> None:
        """A step and what is due after it; where it is NaN or infinite, back to the last checkpoint if that is wished."""
        t = self._trainer
        try:
            micro_batches = next(self._batches)
            if t.step in t.skipped:
                t.step += 1
            else:
                self._meter.add(t.train_step(micro_batches), t.config.train.batch_size)
            t.look_due = True
            self._read_figures()
            self._between_steps()
        except NonFiniteLoss as error:
            if self._config.on_non_finite == "stop" or len(t.skipped) >= MAX_SKIPPED:
                raise
            self._roll_back(error)

    def _read_figures(self) -> None:
        done, last = self._trainer.step, self._trainer.step == self._trainer.total_steps
        logged = done % self._config.log_every == 0
        if logged or last or done % self._config.save_every == 0 or self._trainer.checks_each_step:
            require_finite_losses(self._meter.non_finite(), done)
        figures = self._meter.read() if logged else None
        self._log.progress(figures)
        if figures:
            self._log.scalars(figures)
            self._log.warn("training", diagnose.training(figures, done, self._trainer.config))

    def _between_steps(self) -> None:
        """Look and save when it is time. Stopped, after a save, where a signal has asked for it."""
        t, c = self._trainer, self._config
        with self._meter.paused():
            if c.compare_every and t.step % c.compare_every == 0:
                ranks.require_equal_weights(t)
            signal, together, best = self._signal.agreed(), True, False
            if not signal:
                try:
                    best = self._look()
                except (stop.Stopped, RuntimeError):  # the latter where another process has stopped in the same place
                    signal, together = stop.requested(), False
                    if not signal:
                        raise
            if best or signal or t.finished or t.step % c.save_every == 0:
                self._save(together)
        if signal:
            stopped = stop.stopped_by(signal)
            saved = self._unsaved or "saved: go on with --resume auto"
            raise stop.Stopped(f"{stopped} at step {t.step} of {t.total_steps}; {saved}", stopped.status)
        if t.finished and t.step < t.total_steps:
            self._log.message(f"stopped early: {t.monitor.name} did not improve in {c.patience} measurements")

    def _save(self, together: bool = True) -> None:
        """A checkpoint; where it cannot be written, training goes on and the next save tries again."""
        t = self._trainer
        require_finite_weights({"model": t.plain_model, "discriminator": t.plain_discriminator}, t.step)
        self._log.flush()
        self._unsaved = run_state.save(t, self._dir, together)
        if self._unsaved:
            self._log.message(f"{self._unsaved}; the checkpoints before it are kept", logging.ERROR)

    def _roll_back(self, error: NonFiniteLoss) -> None:
        """Back to the last checkpoint, whence the same steps are taken again but for the one that failed."""
        t = self._trainer
        self._batches.close()
        for optimizer in (t.model_optimizer, t.discriminator_optimizer):
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
        skipped = sorted({*t.skipped, error.step})
        if not run_state.restore(t, self._dir):
            raise error  # none could be written yet
        t.skipped = skipped
        self._log.message(
            f"{error.args[0]}; back to step {t.step}, and on without the batch of that step", logging.WARNING
        )
        self._log.rewind()
        self._meter = Meter()
        self._batches = t.batches()

    def _measurement(self) -> Measurement | None:
        """What measures distances while training, if anything shall; it loads a feature network."""
        t = self._trainer
        if t.config.evaluation.every == 0:
            return None
        real = t.validation if t.validation is not None else t.images
        return Measurement(t.config, real, t.shares, t.accelerator.device)

    def _look(self) -> bool:
        """Validate, measure distances and draw grids when it is time; whether the monitored figure is the best so far.

        Where a signal breaks it off, nothing of it is logged: it is done whole when the run goes on.
        """
        t, c = self._trainer, self._config
        step, last, best = t.step, t.step == t.total_steps, False
        validation: dict[str, float] = {}
        distances: dict[str, float] = {}
        if (step % c.val_every == 0 or last) and t.validation is not None and validation_metrics(t.config):
            validation = validate(t.sampling_model, t.validation, t.config, t.shares)
        if self._measure and (step % t.config.evaluation.every == 0 or last):
            distances = self._measure(t.sampling_model)
        t.look_due = False
        for figures in filter(None, (validation, distances)):
            self._log.scalars(figures)
            best |= t.monitor.judge(step, figures)
        if validation:
            self._log.warn("validation", diagnose.validation(validation, t.config))
        if step % c.sample_every == 0 or last:
            self._log.warn("samples", diagnose.samples(self._log.grids()))
        return best
