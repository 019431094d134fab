"""Images a second from disk and memory to the device, flipped and cropped: ours, and torchvision's ImageFolder with a
DataLoader. And what a training step needs of them."""

import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from timing import Table, in_turn, rows
from torch import Tensor

from vaegan import cli
from vaegan.config import Config, DataConfig
from vaegan.data import ImageSet, load_data, spread_rows, to_float, training_batches
from vaegan.data.named import ArrayImages
from vaegan.objectives.noise import draw_noise

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SIZE, BATCH, WORKERS, CLASSES = 32, 128, 2, 10
AUGMENTATION = {"horizontal_flip": True, "crop_padding": 4}
WARM_UP, BATCHES = 12, 64  # batches before and in a measurement
STEPS = 8  # training steps in a measurement: a multiple of every penalty_interval
TORCHVISION = "torchvision, folder"
STEP = "its training step"


def tables(repeats: int, root: str) -> list[Table]:
    """From memory, zip and folder against torchvision's folder, as PNG and as JPEG; decoding into memory; the step's need.

    Images are those of `root`, an archive or a folder of images; if it is empty, they are generated.
    """
    pixels = some_images(root, WARM_UP * BATCH + BATCHES * BATCH)
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: write(pixels, Path(folder) / kind, kind) for kind in ("jpeg", "png")}
        found = [delivery(kind, *places, repeats) for kind, places in paths.items()]
        found.append(decoding(paths, repeats))
    return found + [need(name, pixels, repeats) for name in ("mnist", "cifar10")]


def delivery(kind: str, folder: Path, archive: Path, repeats: int) -> Table:
    configs = {
        "vaegan, memory": data_config(folder, "memory"),
        "vaegan, zip": data_config(archive, "stream"),
        "vaegan, folder": data_config(folder, "stream"),
    }
    contestants = {name: partial(ours, load_data(config)[0], config, BATCH) for name, config in configs.items()}
    contestants[TORCHVISION] = partial(torchvision_folder, folder)
    found = rows(in_turn(contestants, repeats), "images/s", TORCHVISION)
    size = sum(file.stat().st_size for file in folder.rglob("*.*")) / sum(1 for _ in folder.rglob("*.*"))
    text = (
        f"{SIZE} x {SIZE} colour {kind.upper()} files of {size:.0f} bytes, batches of {BATCH} on the {device().type}, "
        f"{WORKERS} workers, random mirroring and crops of 4 reflected pixels; {BATCHES * BATCH} images a measurement."
    )
    return Table(f"Data path: {kind.upper()}", found, TORCHVISION, text)


def ours(images: ImageSet, config: DataConfig, batch_size: int) -> float:
    """Images/s of our batches. There are more than are taken, so that workers are as busy at the end as at the start."""
    batches = training_batches(
        images, config, start_step=0, stop_step=2 * WARM_UP + BATCHES, batch_size=batch_size, accumulate=1, rank=0,
        world_size=1, seed=0, device=device(),
    )  # fmt: skip
    return rate(batch for (batch,) in batches)


def torchvision_folder(folder: Path) -> float:
    """Images/s of torchvision. One long pass over permutation after permutation: it never waits between epochs."""
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision import datasets, transforms

    steps = [
        transforms.ToTensor(),
        transforms.RandomCrop(SIZE, padding=4, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ]
    images = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    loader = DataLoader(
        images,
        batch_size=BATCH,
        sampler=RandomSampler(images, num_samples=(2 * WARM_UP + BATCHES) * BATCH),
        num_workers=WORKERS,
        persistent_workers=True,
        drop_last=True,
        pin_memory=device().type == "cuda",
    )
    return rate(batch.to(device(), non_blocking=True) for batch, _ in loader)


def rate(batches: Iterator[Tensor]) -> float:
    """Images/s of BATCHES batches, after some that are left out."""
    for _ in range(WARM_UP):
        next(batches)
    synchronize()
    start, images = time.perf_counter(), 0
    for _ in range(BATCHES):
        images += len(next(batches))
    synchronize()
    return images / (time.perf_counter() - start)


def decoding(paths: dict[str, tuple[Path, Path]], repeats: int) -> Table:
    """What it takes to decode a whole set into memory, once a run."""

    def images_a_second(source: Path) -> float:
        start = time.perf_counter()
        images = load_data(data_config(source, "memory"))[0]
        return len(images) / (time.perf_counter() - start)

    contestants = {
        f"{kind.upper()}, {'zip' if path.suffix else 'folder'}": partial(images_a_second, path)
        for kind, places in paths.items()
        for path in places
    }
    text = "Finding and decoding a set that is kept in memory, once a run; in one process."
    return Table("Data path: into memory", rows(in_turn(contestants, repeats), "images/s"), "", text)


def need(name: str, pixels: Tensor, repeats: int) -> Table:
    """A set in memory and the counted noise of a recipe, beside its training step."""
    config = recipe(name)
    pixels = pixels[:, : config.data.channels].contiguous()
    images = ImageSet(ArrayImages(pixels, None, None), data_config("", "memory", channels=config.data.channels))
    augmented = data_config("", "memory", channels=config.data.channels)
    batch_size = config.train.batch_size
    contestants = {
        "memory, as in the recipe": partial(ours, images, config.data, batch_size),
        "memory, mirrored and cropped": partial(ours, images, augmented, batch_size),
        "counted noise of the step": partial(noise, config.model.latent_dim, batch_size),
        STEP: training_step(config, images),
    }
    text = f"configs/{name}.yaml: batches of {batch_size} of {config.data.channels} x {SIZE} x {SIZE}."
    return Table(f"Data path: need of {name}", rows(in_turn(contestants, repeats), "images/s", STEP), STEP, text)


def noise(latent_dim: int, batch_size: int) -> float:
    positions = torch.arange(batch_size, device=device())
    return rate(draw_noise(positions, latent_dim, 0, step).eps for step in range(WARM_UP + BATCHES))


def training_step(config: Config, images: ImageSet) -> Callable[[], float]:
    """Images/s of the trainer's own step."""
    from accelerate.state import AcceleratorState

    from vaegan.training import Trainer, process

    AcceleratorState._reset_state(True)  # it is one for the process, and remembers its first precision
    trainer = Trainer(config, process.start(config), images, None)
    batch = to_float(images.batch(torch.arange(config.train.batch_size)).to(device()))

    def run() -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(STEPS):
            trainer.train_step([batch])
        synchronize()
        return STEPS * len(batch) / (time.perf_counter() - start)

    return run


def recipe(name: str) -> Config:
    return cli.parse_config(["--config", str(CONFIGS / f"{name}.yaml")], CONFIGS / "mnist.yaml")


def data_config(source: Path | str, storage: str, channels: int = 3) -> DataConfig:
    return DataConfig(
        source=str(source) or "mnist", image_size=SIZE, channels=channels, val_fraction=0, storage=storage,
        workers=WORKERS, **AUGMENTATION,
    )  # fmt: skip


def some_images(root: str, n: int) -> Tensor:
    """uint8 (N, 3, 32, 32) with N at most n."""
    if not root:
        coarse = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 48 + 128
        smooth = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bicubic")
        return smooth.clamp(0, 255).byte()
    config = DataConfig(source=root, image_size=SIZE, channels=3, val_fraction=0, storage="stream")
    images, _ = load_data(config)
    return images.batch(spread_rows(len(images), n))


def write(pixels: Tensor, folder: Path, kind: str) -> tuple[Path, Path]:
    """A folder of class folders and a zip of the same files."""
    from torchvision.transforms.functional import to_pil_image

    for i, image in enumerate(pixels):
        path = folder / f"class{i % CLASSES}" / f"{i:06d}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(path)
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(folder.rglob(f"*.{kind}")):
            packed.write(file, file.relative_to(folder).as_posix())
    return folder, archive


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
