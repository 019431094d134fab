"""The whole configuration: frozen dataclasses, one a concern, every field explained beneath it.

Nothing here imports torch, so that `--help` and a wrong flag answer at once.
"""

import os
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

NAMED_SOURCES = ("mnist", "fashion_mnist", "cifar10", "svhn", "celeba", "flowers102")


class ConfigError(ValueError):
    """A value that a user can mend. The message names the field, the value and the remedy, a line a problem."""


class _Problems:
    """Collects every problem of a config, so that one run names them all."""

    def __init__(self):
        self.lines: list[str] = []

    def require(self, ok: bool, line: str) -> None:
        if not ok:
            self.lines.append(line)

    def sound(self, section: str, config) -> None:
        """Refuse what no field can mean: NaN, infinity, whole numbers beyond 2^53, text that can name no file."""
        for name in (f.name for f in fields(config)):
            value, key = getattr(config, name), f"{section}.{name}" if section else name
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, (int, float)) and not abs(part) <= 2**53:  # which NaN is not, either
                    self.require(False, f"{key} must be a finite number of at most 2^53, got {_short(part)}")
                if isinstance(part, str) and not _is_text(part):
                    self.require(False, f"{key} must be text that can stand in a file's name, got {part!r:.80}")

    def at_most(self, section: str, config, **bounds: float) -> None:
        for name, bound in bounds.items():
            value = getattr(config, name)
            self.require(value <= bound, f"{section}.{name} must be at most {bound}, got {_short(value)}")

    def at_least(self, section: str, config, **bounds: float) -> None:
        for name, bound in bounds.items():
            value = getattr(config, name)
            self.require(value >= bound, f"{section}.{name} must be at least {bound}, got {value}")

    def raise_all(self) -> None:
        firsts: dict[str, str] = {}  # NaN fails every check of its field: one is enough
        for line in self.lines:
            firsts.setdefault(line.split(" ", 1)[0], line)
        if firsts:
            raise ConfigError("\n".join(firsts.values()))


def _is_text(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _short(number: float) -> str:
    return f"{number}" if isinstance(number, float) or abs(number) < 10**20 else f"one of {number.bit_length()} bits"


@dataclass(frozen=True)
class DataConfig:
    """Images: where they are, and what the networks get to see of them."""

    source: str = "mnist"
    """mnist, fashion_mnist, cifar10, svhn, celeba, flowers102, a folder of images, a zip or tar archive,
    or a folder of such archives."""
    root: str = "~/.cache/vaegan"
    """Folder into which named data sets are downloaded."""
    image_size: int = 32
    """Height and width in pixels of the images that the networks see."""
    channels: Literal[1, 3] = 1
    """1 for grey, 3 for colour; every image is converted."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How other sizes and shapes become squares: `crop` scales the short side and cuts the centre, `stretch`
    ignores the aspect ratio, `pad` puts the whole image on black and, unlike the others, never enlarges it."""
    val_source: str | None = None
    """Validation images, if they are a folder or archive of their own. Default: the named set's test split, else
    `val_fraction` of the training images."""
    val_fraction: float = 0.05
    """Share of a folder or archive that is set aside for validation; 0 for none."""
    split_seed: int = 0
    """Seed of that split, apart from the training seed so that runs can be compared."""
    storage: Literal["auto", "memory", "stream"] = "auto"
    """`memory` decodes once and keeps uint8 pixels; `stream` decodes in worker processes; `auto` takes memory up
    to `memory_limit`."""
    memory_limit: float = 2.0
    """GiB of decoded pixels up to which `auto` keeps the set in memory."""
    workers: int = 2
    """Worker processes of a streaming set (0: decode in the training process)."""
    damaged: Literal["error", "substitute"] = "error"
    """An image that cannot be read or decoded: `error` stops with its name; `substitute` names it in the log and lets
    the next image of the set stand in for it, for up to `damaged_limit` of them."""
    damaged_limit: float = 0.01
    """Share of the set's images that may be damaged where others stand in for them; more are an error."""
    horizontal_flip: bool = False
    """Augmentation: mirror half of the training images."""
    crop_padding: int = 0
    """Augmentation: pad by so many pixels (reflected) and crop back at random."""
    rotation: float = 0.0
    """Augmentation: rotate by up to so many degrees either way."""

    def __post_init__(self):
        p = _Problems()
        p.sound("data", self)
        p.at_most("data", self, image_size=16384)
        p.at_least("data", self, image_size=4, val_fraction=0, memory_limit=0, workers=0, crop_padding=0, rotation=0)
        p.require(bool(self.source), "data.source is empty: give a named set, a folder or an archive")
        p.require(self.val_fraction < 1, f"data.val_fraction must be below 1, got {self.val_fraction}")
        p.require(
            0 <= self.damaged_limit <= 1, f"data.damaged_limit must be a share from 0 to 1, got {self.damaged_limit}"
        )
        p.require(self.rotation <= 180, f"data.rotation must be at most 180 degrees, got {self.rotation}")
        p.require(
            self.crop_padding < self.image_size,
            f"data.crop_padding must be below data.image_size ({self.image_size}), got {self.crop_padding}",
        )
        p.require(self.channels in (1, 3), f"data.channels must be 1 or 3, got {self.channels}")
        p.raise_all()


@dataclass(frozen=True)
class ModelConfig:
    """Networks."""

    network: Literal["light", "conv", "mlp"] = "light"
    """`light`: strided convolutions, fast on a CPU; `conv`: residual blocks; `mlp`: dense layers."""
    latent_dim: int = 16
    """Dimensions of the latent vector."""
    variational: bool = True
    """False for a deterministic autoencoder: z is the encoder's mean, and there is no log-variance."""
    width: int = 32
    """Channels at the full resolution; they double at each halving (light, conv)."""
    max_width: int = 512
    """Upper bound of the channels (light, conv)."""
    depth: int = 1
    """Residual blocks at each resolution (conv)."""
    hidden: tuple[int, ...] = (512, 256)
    """Layer sizes of the dense encoder, from the image to the latent; the decoder mirrors them (mlp)."""
    norm: Literal["group", "batch", "none"] = "group"
    """Normalisation in encoder and decoder. With `batch`, reconstructions and prior samples share the decoder's
    statistics, and through them a little of each one's gradient."""
    discriminator_width: int = 32
    """Channels of the discriminator at the full resolution (light, conv)."""
    discriminator_hidden: tuple[int, ...] = (512, 256)
    """Layer sizes of the dense discriminator (mlp)."""
    discriminator_norm: Literal["group", "none"] = "none"
    """Normalisation in the discriminator. Batch normalisation is not offered: real and generated images share one
    batch there, and its statistics would tell them apart."""
    spectral_norm: bool = False
    """Spectral normalisation of the discriminator (Miyato et al. 2018)."""
    feature_layer: int = -1
    """Block of the discriminator whose output is its feature vector; 0 is the first, -1 the last before the logit."""
    conditional: bool = False
    """Labels of the data set condition decoder (through its normalisation), prior (a learned mean a class) and
    discriminator (by projection, Miyato & Koyama 2018)."""

    def __post_init__(self):
        p = _Problems()
        p.sound("model", self)
        p.at_most(
            "model", self, **dict.fromkeys(("latent_dim", "width", "max_width", "depth", "discriminator_width"), 65536)
        )
        p.at_least("model", self, latent_dim=1, width=1, max_width=1, depth=1, discriminator_width=1)
        for name in ("hidden", "discriminator_hidden"):
            sizes = getattr(self, name)
            p.require(
                len(sizes) > 0 and all(0 < size <= 65536 for size in sizes),
                f"model.{name} must hold one or more sizes from 1 to 65536, got {list(sizes)}",
            )
        p.require(
            not self.conditional or self.norm != "none",
            "model.conditional true needs model.norm group or batch, through which the class enters the decoder, got "
            f"{self.norm}",
        )
        p.raise_all()


@dataclass(frozen=True)
class ObjectiveConfig:
    """Losses. A weight of zero switches its term off and nothing of it is computed; losses are summed over pixels
    or latent dimensions and averaged over the batch, so that `kl_weight` is the beta of the papers."""

    kl_weight: float = 1.0
    """Weight (beta) of KL(q(z|x) || p(z)); p(z) is N(0, I), or N(m_y, I) with `model.conditional`."""
    kl_schedule: Literal["constant", "linear", "cyclical"] = "constant"
    """`linear` warms the weight up from zero once, `cyclical` again and again (Fu et al. 2019)."""
    kl_warmup_steps: int = 0
    """Steps of the linear warm-up; in the cyclical schedule, the length of a cycle (its first half is the ramp)."""
    free_bits: float = 0.0
    """Nats a latent dimension below which its KL is not pressed further (Kingma et al. 2016)."""
    pixel_weight: float = 1.0
    """Weight of the pixel likelihood -log p(x|z)."""
    pixel_likelihood: Literal["bernoulli", "gaussian", "gaussian_learned", "gaussian_optimal", "laplace"] = "gaussian"
    """Distribution of a pixel. The Gaussian's scale is `pixel_scale`, or learned with the networks, or the optimal
    one in closed form (sigma-VAE, Rybkin et al. 2021)."""
    pixel_scale: float = 1.0
    """Fixed scale of `gaussian` and `laplace`, in units of pixels in [-1, 1]."""
    feature_weight: float = 0.0
    """Weight of the Gaussian likelihood of the discriminator's features (learned similarity, Larsen et al. 2016)."""
    feature_likelihood: Literal["gaussian", "gaussian_optimal"] = "gaussian"
    """Unit variance as in the paper, or the optimal variance in closed form, which the growth of features leaves be."""
    adversarial_weight: float = 0.0
    """Weight of the adversarial term in the decoder's loss; with `balance`, the ratio of its gradient's norm to the
    reconstruction's at the decoder's output."""
    adversarial_loss: Literal["nonsaturating", "hinge", "least_squares", "wasserstein", "relativistic"] = (
        "nonsaturating"
    )
    """Form of the adversarial losses of both players."""
    fakes: Literal["prior", "reconstruction", "both"] = "prior"
    """Images that the discriminator learns to tell from real ones: decoded prior samples, reconstructions, or both."""
    reconstruct_every: int = 1
    """Encode and reconstruct one image in so many; the adversary sees all of a batch. Samples take longer to get good than
    reconstructions, and this leaves them more of the time."""
    adversarial_to_encoder: bool = False
    """Let the adversarial gradient of reconstructions reach the encoder (Larsen et al. do not)."""
    adversarial_start: int = 0
    """Head start: steps in which only the discriminator hears the adversarial loss."""
    adversarial_ramp: int = 0
    """Steps over which the decoder's adversarial weight then rises linearly to its full value."""
    balance: bool = False
    """Scale the adversarial gradient to `adversarial_weight` times the reconstruction's norm (after Esser et al. 2021)."""
    balance_decay: float = 0.9
    """Smoothing of the norms that `balance` and the optimal variances follow, a step (0: the last step's alone)."""
    balance_max: float = 1e4
    """Upper bound of the factor that `balance` applies."""
    reconstruction_gamma: float = 1.0
    """The decoder hears this much of the reconstruction's gradient, the encoder all (gamma in Larsen et al. 2016)."""
    equilibrium_gate: bool = False
    """Skip the update of a player that is too far ahead, as Larsen's code does (margin around `equilibrium`)."""
    equilibrium: float = 0.68
    """Discriminator loss, in nats an image, of players in equilibrium."""
    equilibrium_margin: float = 0.35
    """Distance from `equilibrium` at which a player pauses."""
    r1_weight: float = 0.0
    """Weight gamma of R1: gamma/2 times the squared gradient norm at real images (Mescheder et al. 2018)."""
    r2_weight: float = 0.0
    """Weight gamma of R2: the same at generated images."""
    gradient_penalty_weight: float = 0.0
    """Weight of the WGAN-GP penalty at random interpolations (Gulrajani et al. 2017)."""
    penalty_interval: int = 1
    """Apply R1, R2 and the gradient penalty every so many steps, scaled up as much (lazy regularisation)."""
    augment: tuple[Literal["color", "translation", "cutout"], ...] = ()
    """Differentiable augmentation of all that the discriminator sees (Zhao et al. 2020)."""

    @property
    def uses_discriminator(self) -> bool:
        return self.adversarial_weight > 0 or self.feature_weight > 0

    @property
    def uses_reconstruction(self) -> bool:
        """Whether any term needs encoded images; where none does, no encoder is built (pure GAN)."""
        adversarial = self.uses_discriminator and self.fakes != "prior"
        return self.kl_weight > 0 or self.pixel_weight > 0 or self.feature_weight > 0 or adversarial

    @property
    def uses_prior(self) -> bool:
        """Whether prior samples are decoded in training."""
        return self.uses_discriminator and self.fakes != "reconstruction"

    def __post_init__(self):
        p = _Problems()
        p.sound("objective", self)
        p.at_least(
            "objective", self, kl_weight=0, kl_warmup_steps=0, free_bits=0, pixel_weight=0, feature_weight=0,
            adversarial_weight=0, adversarial_start=0, adversarial_ramp=0, balance_decay=0, equilibrium_margin=0,
            r1_weight=0, r2_weight=0, gradient_penalty_weight=0, penalty_interval=1, reconstruct_every=1,
        )  # fmt: skip
        for name in ("pixel_scale", "reconstruction_gamma", "balance_max"):
            p.require(getattr(self, name) > 0, f"objective.{name} must be above 0, got {getattr(self, name)}")
        p.require(self.balance_decay < 1, f"objective.balance_decay must be below 1, got {self.balance_decay}")
        p.require(
            self.kl_schedule == "constant" or self.kl_warmup_steps > 0,
            f"objective.kl_schedule {self.kl_schedule} needs objective.kl_warmup_steps above 0, got 0",
        )
        reconstructs = self.pixel_weight > 0 or self.feature_weight > 0
        p.require(
            self.reconstruct_every <= 1 or self.uses_prior,
            "objective.reconstruct_every must be 1 unless the adversary has prior samples among its fakes, got "
            f"{self.reconstruct_every} (or set adversarial_weight above 0 and fakes to prior or both)",
        )
        p.require(
            self.uses_reconstruction or self.uses_prior,
            "objective has no term: set kl_weight and pixel_weight (VAE), or adversarial_weight (GAN), above 0",
        )
        p.require(
            not self.balance or (self.adversarial_weight > 0 and reconstructs),
            "objective.balance needs adversarial_weight and pixel_weight or feature_weight above 0 (or set it to false)",
        )
        penalties = self.r1_weight + self.r2_weight + self.gradient_penalty_weight > 0
        p.require(
            not penalties or self.uses_discriminator,
            "objective.r1_weight, r2_weight and gradient_penalty_weight need a discriminator: set adversarial_weight "
            "or feature_weight above 0, or the penalties to 0",
        )
        p.raise_all()


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW for each player, its own learning rate and momenta."""

    lr: float = 1e-3
    """Learning rate of encoder and decoder."""
    discriminator_lr: float = 1e-3
    """Learning rate of the discriminator."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Adam's momenta for encoder and decoder. Without an adversary the first may be 0.9; with one it harms."""
    discriminator_betas: tuple[float, float] = (0.0, 0.99)
    """Adam's momenta for the discriminator."""
    weight_decay: float = 0.0
    """Decoupled L2 regularisation of both players' weights (AdamW)."""
    l1_weight: float = 0.0
    """L1 regularisation of encoder and decoder weights (biases and normalisations are left out)."""
    grad_clip: float = 0.0
    """Largest gradient norm of each player (0: not clipped)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of both learning rates after the warm-up; unless constant it would reach zero one step after the last."""
    warmup_steps: int = 0
    """Steps over which both learning rates rise linearly."""

    def __post_init__(self):
        p = _Problems()
        p.sound("optimizer", self)
        p.at_least("optimizer", self, weight_decay=0, l1_weight=0, grad_clip=0, warmup_steps=0)
        for name in ("lr", "discriminator_lr"):
            p.require(getattr(self, name) > 0, f"optimizer.{name} must be above 0, got {getattr(self, name)}")
        for name in ("betas", "discriminator_betas"):
            betas = getattr(self, name)
            ok = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
            p.require(ok, f"optimizer.{name} must be two numbers in [0, 1), got {list(betas)}")
        p.raise_all()


@dataclass(frozen=True)
class TrainConfig:
    """The run: its length, precision, logs and checkpoints."""

    steps: int | None = None
    """Length in optimizer steps of each player. Give this or `epochs`; on the command line the last one counts."""
    epochs: float | None = None
    """Length in passes over the training images. Give this or `steps`."""
    batch_size: int = 128
    """Images in one step, over all processes and micro-batches together."""
    accumulate: int = 1
    """Micro-batches into which a process cuts its share of a batch, to save memory."""
    ema_decay: float = 0.999
    """Decay of the averaged encoder and decoder that sample and are exported (0: no averaging)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` takes bf16 where `accelerate launch` was told so or the hardware has instructions for it, else fp32; losses,
    statistics and weights stay float32. fp16 is refused: its loss scale is shared by the players, and an overflow of one
    would change the other's steps."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` takes the accelerator of this machine, if there is one."""
    threads: int = 0
    """CPU threads of a process (0: the cores of this machine, shared among its processes)."""
    channels_last: bool | None = None
    """Memory layout of convolutional tensors. Default: the faster one, which is this on a GPU, for `model.network` conv,
    and for networks without a norm, and not for the others on a CPU, where group normalisation is slow in it."""
    compile: bool = False
    """Compile the networks with torch.compile: a minute to start, and on a CPU slower after; not measured on a GPU."""
    log_every: int = 20
    """Steps between two lines of `metrics.jsonl` and TensorBoard."""
    sample_every: int = 250
    """Steps between two image grids."""
    val_every: int = 500
    """Steps between two validations."""
    val_images: int = 1024
    """Images of the validation set that are used each time (0: all)."""
    save_every: int = 500
    """Steps between two checkpoints."""
    keep_last: int = 2
    """Checkpoints that are kept beside the best one."""
    on_non_finite: Literal["stop", "rollback"] = "stop"
    """What follows a loss or gradient that is NaN or infinite: the run stops, or goes back to its last checkpoint and
    leaves that batch out (ten batches at most). `rollback` looks at every step, for which a GPU has to be waited for."""
    compare_every: int = 100
    """Steps between two comparisons of the weights of several processes, which must be equal to the bit (0: never)."""
    monitor: str = "auto"
    """Figure that chooses the best checkpoint and stops early. `auto`: the Fréchet distance of samples if
    `evaluation.every` measures it, else val/bits_per_dim, or val/psnr where nothing is variational. PSNR, active units
    and ELBO are to be high, all others low."""
    patience: int = 0
    """Early stopping: measurements without a better `monitor` before the run ends (0: never)."""
    profile: int = 0
    """Steps to profile after a warm-up of ten: `profile/trace.json`, for chrome://tracing, and `profile/operators.txt`, a
    table of what takes most time, in the run's folder (0: none)."""

    def __post_init__(self):
        p = _Problems()
        p.sound("train", self)
        p.at_least(
            "train", self, batch_size=1, accumulate=1, ema_decay=0, threads=0, log_every=1, sample_every=1,
            val_every=1, val_images=0, save_every=1, keep_last=1, compare_every=0, patience=0, profile=0,
        )  # fmt: skip
        for name in ("steps", "epochs"):
            value = getattr(self, name)
            p.require(value is None or value > 0, f"train.{name} must be above 0, got {value}")
        p.require(self.ema_decay < 1, f"train.ema_decay must be below 1, got {self.ema_decay}")
        p.require(
            self.precision != "fp16",
            "train.precision fp16 is refused: the players would share one loss scale, and an overflow of one would "
            "change the other's steps (choose bf16)",
        )
        p.require(
            self.accumulate < 1 or self.batch_size % self.accumulate == 0,
            f"train.batch_size must be a multiple of train.accumulate ({self.accumulate}), got {self.batch_size}",
        )
        p.raise_all()


@dataclass(frozen=True)
class EvaluationConfig:
    """Fréchet distances while training, of few images: a proxy by which the checkpoints of a run are compared."""

    every: int = 0
    """Steps between two measurements of the averaged weights (0: never)."""
    extractor: str = "efficientnet-lite0"
    """Feature network: `inception`, `efficientnet-lite0`, `dinov2`, a TorchScript file or `module:function`."""
    weights: str | None = None
    """File of the extractor's weights. Default: its package, its cache or a download."""
    resizer: Literal["tf1", "pytorch-fid", "torchmetrics", "clean"] | None = None
    """How images are enlarged for the extractor. Default: tf1 for Inception, else clean."""
    num_samples: int = 2048
    """Prior samples and, where there is an encoder, reconstructions of at most so many images; named in the figures."""
    reference_images: int = 10000
    """Validation images (training images where there are none) to compare with, spread over the set (0: all)."""
    batch_size: int = 64
    """Images that go through the extractor at a time."""
    cache: str = "~/.cache/vaegan/statistics"
    """Folder in which the statistics of the reference are kept for later runs."""

    def __post_init__(self):
        p = _Problems()
        p.sound("evaluation", self)
        p.at_least("evaluation", self, every=0, num_samples=2, reference_images=0, batch_size=1)
        p.raise_all()


@dataclass(frozen=True)
class Config:
    """A VAE-GAN training run."""

    name: str = "vaegan"
    """Name of the run: its folder is `runs_dir`/`name`, with -2, -3, … added if that is taken."""
    runs_dir: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Seed of initialisation, data order, augmentation and noise."""
    resume: str = "no"
    """`no` starts a new run; `auto` goes on with the newest run of this name, or starts one; or a run's folder."""
    allow_changed_data: bool = False
    """Go on with a run although its images are not those that it was trained on."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Networks."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Losses."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizers."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The run."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Fréchet distances while training."""

    def __post_init__(self):
        p = _Problems()
        p.sound("", self)
        size, objective, model = self.data.image_size, self.objective, self.model
        if model.network != "mlp":
            sizes = (8, 16, 32, 64, 128, 256, 512)
            near = [s for s in sizes if s <= size][-1:] + [s for s in sizes if s > size][:1]
            p.require(
                size in sizes,
                f"data.image_size must be a power of two times 4 from 8 to 512 for model.network {model.network}, got "
                f"{size} (choose {' or '.join(map(str, near))}; model.network mlp takes any size)",
            )
        is_folder = self.name not in ("", ".", "..") and not set(self.name) & set("/\\")
        is_folder = is_folder and self.name.isprintable() and len(self.name.encode()) <= 200
        p.require(is_folder, f"name must be a folder name of at most 200 bytes, got {self.name!r:.80}")
        p.require(self.seed >= 0, f"seed must be at least 0, got {self.seed}")
        p.require(
            model.variational or objective.kl_weight == 0,
            f"objective.kl_weight must be 0 for model.variational false, got {objective.kl_weight}",
        )
        p.require(
            (self.train.steps is None) != (self.train.epochs is None),
            f"train.steps and train.epochs: give exactly one, got {self.train.steps} and {self.train.epochs}",
        )
        share, every = self.train.batch_size // self.train.accumulate, objective.reconstruct_every
        p.require(
            share % every == 0,
            f"train.batch_size / train.accumulate must be a multiple of objective.reconstruct_every ({every}), got {share}",
        )
        if objective.uses_discriminator:
            blocks = self.discriminator_blocks
            p.require(
                -blocks <= model.feature_layer < blocks,
                f"model.feature_layer must lie in -{blocks} … {blocks - 1} for this discriminator, got {model.feature_layer}",
            )
        p.raise_all()

    @property
    def discriminator_blocks(self) -> int:
        """Blocks of the discriminator that a feature vector can be taken from."""
        if self.model.network == "mlp":
            return len(self.model.discriminator_hidden)
        return max(1, self.data.image_size.bit_length() - 3)

    def as_dict(self) -> dict:
        """Nested plain values, as YAML and JSON hold them."""
        return {k: _plain(v) for k, v in asdict(self).items()}


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value
