"""The training run: the alternating step, and the loop around it.

This is the only code that knows Accelerate, with `process.py` and the scripts.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from vaegan.config import Config, ConfigError
from vaegan.data import ImageSet, StepLabels, rows_of_step, training_batches
from vaegan.data.labels import aligned, classes_of
from vaegan.evaluation.shares import Shares
from vaegan.model import VAEGAN, TrainingPass, build_discriminator, build_model
from vaegan.objectives.noise import Noise, draw_noise
from vaegan.objectives.statistics import Statistics
from vaegan.objectives.vaegan import Objective
from vaegan.training import finite, optimizers
from vaegan.training.ema import EMA
from vaegan.training.freeze import frozen
from vaegan.training.monitor import Monitor
from vaegan.training.run import Run
from vaegan.training.schedules import learning_rate_factor


class Trainer:
    """Trains the model of a config on a set of images.

    `train_step` is the algorithm; `fit` (in run.py) adds logs, grids, validation and checkpoints, and may be called once.
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
        self.look_due = False  # whether the step that was taken last has still to be looked at
        self.skipped: list[int] = []  # steps whose batches are left out, since they made the run NaN or infinite
        self.monitor = Monitor(config, has_validation=validation is not None)
        self.shares = Shares.of(accelerator)
        self.steps_per_epoch = len(images) // config.train.batch_size
        self.total_steps = config.train.steps or max(1, math.ceil(config.train.epochs * self.steps_per_epoch))
        self._labels: StepLabels | None = None
        self.objective = Objective(config.objective)
        self.statistics = Statistics(config.objective.balance_decay)
        classes, names = self._take_labels(config) if config.model.conditional else (0, [])
        torch.manual_seed(config.seed)  # for the initialisation alone: everything later is counted
        model = model or build_model(config, classes, names)
        self._build(config, model, discriminator or build_discriminator(config, classes))

    def _take_labels(self, config: Config) -> tuple[int, list[str]]:
        """Number and names of the training set's classes. ConfigError if it, or validation, has no labels to train by."""
        images, val, a = self.images, self.validation, self.accelerator
        classes, names = classes_of(images.labels, images.classes, f"data.source {config.data.source}")
        if val is not None:
            source = f"data.val_source {config.data.val_source or config.data.source}"
            aligned(val.labels, val.classes, classes, names, source)
        self._labels = StepLabels(
            images.labels, batch_size=config.train.batch_size, accumulate=config.train.accumulate, seed=config.seed,
            rank=a.process_index, world_size=a.num_processes, device=a.device,
        )  # fmt: skip
        return classes, names

    def _build(self, config: Config, plain_model: VAEGAN, plain_discriminator: nn.Module | None) -> None:
        device = self.accelerator.device
        for module, norm in ((plain_model, config.model.norm), (plain_discriminator, config.model.discriminator_norm)):
            if module is not None:
                module.to(device, memory_format=_layout(config, device, norm))
        self.ema = EMA(plain_model, config.train.ema_decay) if config.train.ema_decay > 0 else None
        if config.train.compile:
            import torch._functorch.config as functorch  # with much of the compiler, which other runs do not need

            # Where an adversary on reconstructions has graphs passed twice, their buffers must outlast the first pass.
            functorch.donated_buffer = False
            # Each network by itself: the code between them hooks gradients, which a compiled graph would hide.
            for module in (plain_model.encoder, plain_model.decoder, plain_discriminator):
                if module is not None:
                    module.compile(dynamic=False)
        o = config.optimizer
        self.model = self.accelerator.prepare(plain_model)
        # The optimizers are not prepared: without a loss scale, all that would come of it is a slower step.
        self.model_optimizer = optimizers.build_optimizer(self.model, o.lr, o.betas, o.weight_decay)
        self.discriminator = self.discriminator_optimizer = None
        if plain_discriminator is not None:
            self.discriminator = self.accelerator.prepare(plain_discriminator)
            self.discriminator_optimizer = optimizers.build_optimizer(
                self.discriminator, o.discriminator_lr, o.discriminator_betas, o.weight_decay
            )
        # The networks without the wrapper that averages gradients over the ranks. In the autoencoder's turn the
        # discriminator is such a fixed function: no hooks, no all-reduce.
        self.plain_model, self.plain_discriminator = plain_model, plain_discriminator

    @property
    def finished(self) -> bool:
        """Whether the budget is used up, or the monitor has stopped the run."""
        return self.step >= self.total_steps or self.monitor.exhausted

    @property
    def checks_each_step(self) -> bool:
        """Whether every step's figures are checked: reading one waits for a GPU, where it is done when they are logged."""
        return self.accelerator.device.type == "cpu" or self.config.train.on_non_finite == "rollback"

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
        labels = self.labels_of(micro_batches)
        # One pass of encoder and decoder serves both turns. Several micro-batches are passed again in the second
        # turn, since keeping all their graphs would take the memory that they are there to save.
        keep = len(micro_batches) == 1
        out = self._training_pass(self.model, micro_batches[0], noises[0], labels[0]) if keep else None

        gate = True, True
        if self.discriminator is not None:
            for i, (x, noise, y) in enumerate(zip(micro_batches, noises, labels)):
                last = i == len(micro_batches) - 1
                with (
                    record_function("discriminator"),
                    self._sync(self.discriminator, last),
                    self._twice_differentiable(),
                ):
                    raw = out.raw if keep else self._fakes(x, noise, y)
                    loss, terms[i] = self.objective.discriminator(self.discriminator, x, raw, noise, self.step, y)
                    self.accelerator.backward(loss / len(micro_batches))
            gate = self.objective.gate(self._whole_batch(terms) if self.config.objective.equilibrium_gate else {})
            self._update(self.discriminator_optimizer, "discriminator", gate[1], terms, micro_batches)

        with frozen(self.plain_discriminator):
            for i, (x, noise, y) in enumerate(zip(micro_batches, noises, labels)):
                with record_function("autoencoder"), self._sync(self.model, i == len(micro_batches) - 1):
                    out = out if keep else self._training_pass(self.model, x, noise, y)
                    loss, more, batch[i] = self.objective.autoencoder(
                        self.plain_discriminator, x, out, noise, self.step, self.statistics, y
                    )
                    self.accelerator.backward(loss / len(micro_batches))
                    terms[i] |= more
        if not gate[0]:
            for parameter in self.plain_model.decoder.parameters():
                parameter.grad = None  # the optimizer passes over what has no gradient
        if self.config.optimizer.l1_weight > 0:
            optimizers.add_l1_gradient(self.plain_model, self.config.optimizer.l1_weight)
        self._update(self.model_optimizer, "autoencoder", True, terms, micro_batches)
        if self.ema:
            self.ema.update()

        whole = self._whole_batch([t | {f"statistic/{k}": v for k, v in b.items()} for t, b in zip(terms, batch)])
        self.statistics.update({name: whole.pop(f"statistic/{name}") for name in batch[0]})
        self.step += 1
        return whole

    def _noise(self, micro_batch: int, size: int) -> Noise:
        first = (self.accelerator.process_index * self.config.train.accumulate + micro_batch) * size
        rows = torch.arange(first, first + size, device=self.accelerator.device)
        return draw_noise(rows, self.config.model.latent_dim, self.config.seed, self.step)

    def _training_pass(self, model: nn.Module, x: Tensor, noise: Noise, y: Tensor | None) -> TrainingPass:
        """Encode, reconstruct and decode prior samples in one forward of the wrapped model, whose hooks synchronise."""
        o, labels = self.config.objective, () if y is None else (y,)
        decoded = slice(None, None, o.reconstruct_every)
        z_prior = noise.z_prior if o.uses_prior else None
        with record_function("training pass"):
            return model(x[decoded] if o.uses_reconstruction else None, noise.eps[decoded], z_prior, *labels)

    @torch.no_grad()
    def _fakes(self, x: Tensor, noise: Noise, y: Tensor | None) -> Tensor:
        with self.accelerator.autocast():
            return self._training_pass(self.plain_model, x, noise, y).raw

    def _sync(self, module: nn.Module, last: bool):
        """Gradients are averaged over the ranks in the last micro-batch only."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(module)

    def _twice_differentiable(self):
        """Compiled graphs have no second derivative: steps with a gradient penalty run uncompiled."""
        compiled = self.config.train.compile and self.objective.penalises(self.step)
        return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()

    def _update(self, optimizer, name: str, wanted: bool, terms: list[dict], micro_batches: list[Tensor]) -> None:
        """Clip, step and clear one player; its gradient norm goes to the terms where it is logged. NonFiniteLoss if it is
        not finite."""
        o = self.config.optimizer
        logged = (self.step + 1) % self.config.train.log_every == 0
        checked = logged or self.checks_each_step
        if o.grad_clip > 0 or checked:
            parameters = [p for p in optimizers.parameters_of(optimizer) if p.grad is not None]
            norm = nn.utils.get_total_norm([p.grad for p in parameters])
            if checked and not norm.isfinite():
                raise finite.non_finite(self, terms, micro_batches)
            if o.grad_clip > 0:
                nn.utils.clip_grads_with_norm_(parameters, o.grad_clip, norm)
            if o.grad_clip > 0 or logged:
                for t in terms:
                    t[f"grad_norm/{name}"] = norm
        if wanted:
            factor = learning_rate_factor(self.step, self.total_steps, o.schedule, o.warmup_steps)
            optimizers.set_learning_rate(optimizer, factor * (o.lr if name == "autoencoder" else o.discriminator_lr))
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _whole_batch(self, terms: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Means over micro-batches and ranks, in one message."""
        if len(terms) == 1 and self.accelerator.num_processes == 1:
            return {name: term.detach().float() for name, term in terms[0].items()}
        names = list(terms[0])
        sizes = [terms[0][name].numel() for name in names]
        flat = torch.stack([torch.cat([t[name].detach().float().reshape(-1) for name in names]) for t in terms]).mean(0)
        flat = self.accelerator.reduce(flat, "mean")
        return {name: v.reshape(terms[0][name].shape) for name, v in zip(names, flat.split(sizes))}

    def batches(self) -> Iterator[list[Tensor]]:
        """This rank's micro-batches of each step from here to the end of the budget."""
        c, parts = self.config, self.accelerator.num_processes * self.config.train.accumulate
        if c.train.batch_size // parts % c.objective.reconstruct_every:
            raise ConfigError(
                "train.batch_size must be a multiple of processes times train.accumulate times "
                f"objective.reconstruct_every ({parts} x {c.objective.reconstruct_every}), got {c.train.batch_size}"
            )
        return training_batches(
            self.images, c.data, start_step=self.step, stop_step=self.total_steps, batch_size=c.train.batch_size,
            accumulate=c.train.accumulate, rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes, seed=c.seed, device=self.accelerator.device,
        )  # fmt: skip

    def places_of_batch(self) -> Tensor:
        """(n,) int64, the places in the data set of the images of this rank's share of the coming batch."""
        c, a = self.config.train, self.accelerator
        return rows_of_step(
            len(self.images), self.step, c.batch_size, a.process_index, a.num_processes, self.config.seed
        )

    def labels_of(self, micro_batches: list[Tensor]) -> list[Tensor | None]:
        """Labels (n,) int64 of each of this rank's micro-batches of the coming batch; None where none are used."""
        return self._labels(self.step) if self._labels else [None] * len(micro_batches)

    def fit(self, run_dir: Path) -> None:
        """Train to the end of the budget, writing into `run_dir`; nothing if the run is finished.

        Raises NonFiniteLoss if a loss or gradient is not finite; Stopped if a signal, a lost process or a full disk ended
        the run; ConfigError for what the data or the extractor make impossible.
        """
        Run(self, run_dir).train()


def _layout(config: Config, device: torch.device, norm: str) -> torch.memory_format:
    """That of a network's weights, and with them of its feature maps."""
    channels_last = config.train.channels_last
    if channels_last is None:
        channels_last = device.type != "cpu" or config.model.network == "conv" or norm == "none"
    return torch.channels_last if channels_last else torch.contiguous_format
