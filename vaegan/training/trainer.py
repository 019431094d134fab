"""The training run: the alternating step, and the loop around it.

This is the only code that knows Accelerate, with `process.py` and the scripts.
"""

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from vaegan.config import Config
from vaegan.data import ImageSet, training_batches
from vaegan.evaluation.reconstruction import validate, validation_metrics
from vaegan.evaluation.shares import Shares
from vaegan.model import VAEGAN, TrainingPass, build_discriminator, build_model
from vaegan.objectives.noise import Noise, draw_noise
from vaegan.objectives.statistics import Statistics
from vaegan.objectives.vaegan import Objective
from vaegan.training import diagnose, optimizers, run_state
from vaegan.training.ema import EMA
from vaegan.training.finite import require_finite_losses, require_finite_weights
from vaegan.training.freeze import frozen
from vaegan.training.measure import Measurement
from vaegan.training.monitor import Monitor
from vaegan.training.profile import profiled
from vaegan.training.run_log import Meter, RunLog
from vaegan.training.schedules import learning_rate_factor

log = logging.getLogger("vaegan")


class Trainer:
    """Trains the model of a config on a set of images.

    `train_step` is the algorithm; `fit` adds logs, grids, validation and checkpoints, and may be called once.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        images: ImageSet,
        validation: ImageSet | None,
        model: VAEGAN | None = None,
        discriminator: nn.Module | None = None,
    ):
        """`model` and `discriminator`, where given, take the place of those that the config describes."""
        self.config, self.accelerator, self.images, self.validation = config, accelerator, images, validation
        self.step = 0
        self.monitor = Monitor(config, has_validation=validation is not None)
        self.shares = Shares.of(accelerator)
        self.steps_per_epoch = len(images) // config.train.batch_size
        self.total_steps = config.train.steps or max(1, math.ceil(config.train.epochs * self.steps_per_epoch))
        self.objective = Objective(config.objective)
        self.statistics = Statistics(config.objective.balance_decay)
        torch.manual_seed(config.seed)  # for the initialisation alone: everything later is counted
        self._build(config, model or build_model(config), discriminator or build_discriminator(config))

    def _build(self, config: Config, plain_model: VAEGAN, plain_discriminator: nn.Module | None) -> None:
        device = self.accelerator.device
        channels_last = config.train.channels_last
        if channels_last is None:
            channels_last = device.type != "cpu" or config.model.network == "conv"
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for module in (plain_model, plain_discriminator):
            if module is not None:
                module.to(device, memory_format=layout)
        self.ema = EMA(plain_model, config.train.ema_decay) if config.train.ema_decay > 0 else None
        if config.train.compile:
            import torch._functorch.config as functorch  # with much of the compiler, which other runs do not need

            # Where an adversary on reconstructions has graphs passed twice, their buffers must outlast the first pass.
            functorch.donated_buffer = False
            # Each network by itself: the code between them hooks gradients, which a compiled graph would hide.
            for module in (plain_model.encoder, plain_model.decoder, plain_discriminator):
                if module is not None:
                    module.compile(dynamic=False)
        o, prepare = config.optimizer, self.accelerator.prepare
        self.model = prepare(plain_model)
        self.model_optimizer = prepare(optimizers.build_optimizer(self.model, o.lr, o.betas, o.weight_decay))
        self.discriminator = self.discriminator_optimizer = None
        if plain_discriminator is not None:
            self.discriminator = prepare(plain_discriminator)
            self.discriminator_optimizer = prepare(
                optimizers.build_optimizer(
                    self.discriminator, o.discriminator_lr, o.discriminator_betas, o.weight_decay
                )
            )
        # The networks without the wrapper that averages gradients over the ranks. In the autoencoder's turn the
        # discriminator is such a fixed function: no hooks, no all-reduce.
        self.plain_model, self.plain_discriminator = plain_model, plain_discriminator

    @property
    def finished(self) -> bool:
        """Whether the budget is used up, or the monitor has stopped the run."""
        return self.step >= self.total_steps or self.monitor.exhausted

    @property
    def sampling_model(self) -> nn.Module:
        """The model to sample from and to export: the averaged one where there is one."""
        return self.ema.module if self.ema else self.plain_model

    # ------------------------------------------------------------------ one step

    def train_step(self, micro_batches: list[Tensor]) -> dict[str, Tensor]:
        """One step of each player on this rank's share of a batch. Returns the terms' means over the whole batch."""
        terms: list[dict[str, Tensor]] = [{} for _ in micro_batches]
        batch: list[dict[str, Tensor]] = [{} for _ in micro_batches]
        noises = [self._noise(i, len(x)) for i, x in enumerate(micro_batches)]
        # One pass of encoder and decoder serves both turns. Several micro-batches are passed again in the second
        # turn, since keeping all their graphs would take the memory that they are there to save.
        keep = len(micro_batches) == 1
        out = self._training_pass(self.model, micro_batches[0], noises[0]) if keep else None

        gate = True, True
        if self.discriminator is not None:
            for i, (x, noise) in enumerate(zip(micro_batches, noises)):
                last = i == len(micro_batches) - 1
                with (
                    record_function("discriminator"),
                    self._sync(self.discriminator, last),
                    self._twice_differentiable(),
                ):
                    raw = out.raw if keep else self._fakes(x, noise)
                    loss, terms[i] = self.objective.discriminator(self.discriminator, x, raw, noise, self.step)
                    self.accelerator.backward(loss / len(micro_batches))
            gate = self.objective.gate(self._whole_batch(terms) if self.config.objective.equilibrium_gate else {})
            self._update(self.discriminator, self.discriminator_optimizer, "discriminator", gate[1], terms)

        with frozen(self.plain_discriminator):
            for i, (x, noise) in enumerate(zip(micro_batches, noises)):
                with record_function("autoencoder"), self._sync(self.model, i == len(micro_batches) - 1):
                    out = out if keep else self._training_pass(self.model, x, noise)
                    loss, more, batch[i] = self.objective.autoencoder(
                        self.plain_discriminator, x, out, noise, self.step, self.statistics
                    )
                    self.accelerator.backward(loss / len(micro_batches))
                    terms[i] |= more
        if not gate[0]:
            for parameter in self.plain_model.decoder.parameters():
                parameter.grad = None  # the optimizer passes over what has no gradient
        if self.config.optimizer.l1_weight > 0:
            optimizers.add_l1_gradient(self.plain_model, self.config.optimizer.l1_weight)
        self._update(self.model, self.model_optimizer, "autoencoder", True, terms)
        if self.ema:
            self.ema.update(self.plain_model)

        whole = self._whole_batch([t | {f"statistic/{k}": v for k, v in b.items()} for t, b in zip(terms, batch)])
        self.statistics.update({name: whole.pop(f"statistic/{name}") for name in batch[0]})
        self.step += 1
        return whole

    def _noise(self, micro_batch: int, size: int) -> Noise:
        first = (self.accelerator.process_index * self.config.train.accumulate + micro_batch) * size
        rows = torch.arange(first, first + size, device=self.accelerator.device)
        return draw_noise(rows, self.config.model.latent_dim, self.config.seed, self.step)

    def _training_pass(self, model: nn.Module, x: Tensor, noise: Noise) -> TrainingPass:
        """Encode, reconstruct and decode prior samples in one forward of the wrapped model, whose hooks synchronise."""
        o = self.config.objective
        with record_function("training pass"):
            return model(x if o.uses_reconstruction else None, noise.eps, noise.z_prior if o.uses_prior else None)

    @torch.no_grad()
    def _fakes(self, x: Tensor, noise: Noise) -> Tensor:
        with self.accelerator.autocast():
            return self._training_pass(self.plain_model, x, noise).raw

    def _sync(self, module: nn.Module, last: bool):
        """Gradients are averaged over the ranks in the last micro-batch only."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(module)

    def _twice_differentiable(self):
        """Compiled graphs have no second derivative: steps with a gradient penalty run uncompiled."""
        compiled = self.config.train.compile and self.objective.penalises(self.step)
        return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()

    def _update(self, module: nn.Module, optimizer, name: str, wanted: bool, terms: list[dict]) -> None:
        """Clip, step and clear one player; its gradient norm goes to the terms where it is computed."""
        o = self.config.optimizer
        logged = (self.step + 1) % self.config.train.log_every == 0
        if o.grad_clip > 0 or logged:
            norm = nn.utils.clip_grad_norm_(module.parameters(), o.grad_clip or math.inf)
            for t in terms:
                t[f"grad_norm/{name}"] = norm
        if wanted:
            factor = learning_rate_factor(self.step, self.total_steps, o.schedule, o.warmup_steps)
            optimizers.set_learning_rate(optimizer, factor * (o.lr if name == "autoencoder" else o.discriminator_lr))
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _whole_batch(self, terms: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Means over micro-batches and ranks, in one message."""
        names = list(terms[0])
        sizes = [terms[0][name].numel() for name in names]
        flat = torch.stack([torch.cat([t[name].detach().float().reshape(-1) for name in names]) for t in terms]).mean(0)
        flat = self.accelerator.reduce(flat, "mean")
        return {name: v.reshape(terms[0][name].shape) for name, v in zip(names, flat.split(sizes))}

    # ------------------------------------------------------------------ the run

    def fit(self, run_dir: Path) -> None:
        """Train to the end of the budget, writing into `run_dir`; nothing if the run is finished.

        Raises NonFiniteLoss if a loss is not finite; ConfigError for what the data or the extractor make impossible.
        """
        c = self.config.train
        if self.finished:
            return
        batches = self.batches()  # checks the batch size, before anything is written
        measure = self._measurement()
        run_log, meter = RunLog(self, run_dir), Meter()
        if c.profile and self.accelerator.is_main_process:
            batches = profiled(batches, c.profile, self.total_steps - self.step, run_dir, run_log.message)
        try:
            for micro_batches in batches:
                terms = self.train_step(micro_batches)
                meter.add(terms, len(micro_batches) * len(micro_batches[0]) * self.accelerator.num_processes)
                done, last = self.step, self.step == self.total_steps
                save = last or done % c.save_every == 0
                # Reading a figure waits for a GPU, so there it is done when figures are read anyway.
                if done % c.log_every == 0 or save or self.accelerator.device.type == "cpu":
                    require_finite_losses(meter.non_finite(), done)
                figures = meter.read() if done % c.log_every == 0 else None
                run_log.progress(figures)
                if figures:
                    run_log.scalars(figures)
                    run_log.warn("training", diagnose.training(figures, done, self.config))
                with meter.paused():
                    save |= self._look(run_log, measure)
                    if save or self.finished:
                        require_finite_weights(
                            {"model": self.plain_model, "discriminator": self.plain_discriminator}, done
                        )
                        run_log.flush()
                        run_state.save(self, run_dir)
                if self.finished and not last:
                    run_log.message(f"stopped early: {self.monitor.name} did not improve in {c.patience} measurements")
                    break
            run_state.export_best(self, run_dir)
        finally:
            batches.close()  # which writes the profile of a run that ends early
            run_log.close()

    def batches(self) -> Iterator[list[Tensor]]:
        """This rank's micro-batches of each step from here to the end of the budget."""
        c = self.config
        return training_batches(
            self.images, c.data, start_step=self.step, stop_step=self.total_steps, batch_size=c.train.batch_size,
            accumulate=c.train.accumulate, rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes, seed=c.seed, device=self.accelerator.device,
        )  # fmt: skip

    def _measurement(self) -> Measurement | None:
        """What measures distances while training, if anything shall; it loads a feature network."""
        if self.config.evaluation.every == 0:
            return None
        real = self.validation if self.validation is not None else self.images
        return Measurement(self.config, real, self.shares, self.accelerator.device)

    def _look(self, run_log: RunLog, measure: Measurement | None) -> bool:
        """Validate, measure distances and draw grids when it is time; whether the monitored figure is the best so far."""
        c, last, best = self.config, self.step == self.total_steps, False
        if (self.step % c.train.val_every == 0 or last) and self.validation is not None and validation_metrics(c):
            figures = validate(self.sampling_model, self.validation, c, self.shares)
            run_log.scalars(figures)
            run_log.warn("validation", diagnose.validation(figures, c))
            best |= self.monitor.judge(self.step, figures)
        if measure and (self.step % c.evaluation.every == 0 or last):
            figures = measure(self.sampling_model)
            run_log.scalars(figures)
            best |= self.monitor.judge(self.step, figures)
        if self.step % c.train.sample_every == 0 or last:
            run_log.warn("samples", diagnose.samples(run_log.grids()))
        return best
