"""Images out of a model, grids of them, and files. Images are (B, C, H, W), in [-1, 1] or uint8 where it says so."""

import contextlib
import io
import itertools
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vaegan.config import ConfigError
from vaegan.data import decode_file, to_float
from vaegan.data.shards import open_files
from vaegan.model import VAEGAN, Sampler

_PARTS = ".partial"
_BUNCH = 1 << 16  # values of the images that a thread encodes at a time


def batch_starts(n: int, batch_size: int, rank: int = 0, processes: int = 1) -> range:
    """First indices of the batches of n images that are one process's share."""
    return range(rank * batch_size, n, processes * batch_size)


def prior_batches(
    model: VAEGAN,
    starts: Iterable[int],
    n: int,
    seed: int,
    batch_size: int,
    sampler: Sampler | None = None,
    labels: Tensor | int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield each of `starts` with the uint8 samples from there on, n in all. The last batch is decoded whole and cut: a
    convolution's last bit may depend on the batch's size, and image i would depend on n.

    sampler, labels: those of `VAEGAN.sample`, labels (n,) those of all images.
    """
    given = {} if sampler is None else {"sampler": sampler}
    for start in starts:
        if labels is not None:
            given["labels"] = (
                labels if isinstance(labels, int) else _whole(labels[start : start + batch_size], batch_size)
            )
        yield start, to_uint8(model.sample(batch_size, seed, start, **given)[: n - start])


def _whole(labels: Tensor, batch_size: int) -> Tensor:
    """The labels of a last batch filled up with its first one, for images that are cut off."""
    return torch.cat([labels, labels[:1].expand(batch_size - len(labels))])


@torch.no_grad()
def decode(model: VAEGAN, z: Tensor, batch_size: int, labels: Tensor | int | None = None) -> Tensor:
    """Latents (N, latent_dim) to uint8 images; `labels` (N,) as in `VAEGAN.decode`."""
    if labels is None or isinstance(labels, int):
        given = itertools.repeat(labels)
    else:
        given = labels.split(batch_size)
    return torch.cat([to_uint8(model.decode(part, of)) for part, of in zip(z.split(batch_size), given)])


@torch.no_grad()
def encode(model: VAEGAN, images: Tensor, batch_size: int) -> Tensor:
    """uint8 images to their posterior means (N, latent_dim), on the model's device."""
    return torch.cat([model.encode(to_float(part.to(model.device)))[0] for part in images.split(batch_size)])


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to 0 … 255, rounded and clamped, on the CPU."""
    return ((images.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def grid(images: Tensor, columns: int, margin: int = 2) -> Tensor:
    """Tile uint8 images (B, C, H, W) into one (C, H', W'), row by row; small ones are enlarged to 64 pixels a side
    or more, by whole factors, so that single pixels can be seen."""
    zoom = max(1, 64 // images.shape[-1])
    images = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    b, c, h, w = images.shape
    rows = -(-b // columns)
    canvas = torch.full((c, rows * (h + margin) + margin, columns * (w + margin) + margin), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = margin + i // columns * (h + margin), margin + i % columns * (w + margin)
        canvas[:, top : top + h, left : left + w] = image
    return canvas


def row_labels(rows: int, columns: int, classes: int) -> Tensor:
    """Labels (rows * columns,) of a grid with a row a class, in turn."""
    return (torch.arange(rows) % classes).repeat_interleave(columns)


def beside(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Interleave two batches, so that each reconstruction stands right of its original: (2B, C, H, W)."""
    return torch.stack([originals, reconstructions], 1).flatten(0, 1)


def as_pil(image: Tensor) -> Image.Image:
    """uint8 (1 or 3, H, W) as a PIL image."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def png(image: Tensor, compress_level: int = 6) -> bytes:
    """A uint8 image (C, H, W) as the bytes of a PNG file."""
    buffer = io.BytesIO()
    as_pil(image).save(buffer, "png", compress_level=compress_level)
    return buffer.getvalue()


def save_png(image: Tensor, path: str | Path) -> None:
    """Write a uint8 image (C, H, W) as PNG; the file appears whole or not at all."""
    write_whole(Path(path), png(image))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, which appears whole or not at all, and its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_images(paths: list[Path], image_shape: tuple[int, int, int], fit: str, limit: int) -> tuple[Tensor, int]:
    """The first `limit` images of files, folders and archives as uint8 (B, *image_shape), and how many there are
    in all. Raises ConfigError naming the file that cannot be read."""
    channels, size, _ = image_shape
    images, total = [], 0
    for path in paths:
        left = limit - len(images)
        if path.is_dir() or path.suffix.lower() in (".zip", ".tar"):
            found = open_files("images", path)
            images += found.images(range(len(found))[:left], size, channels, fit)
            total += len(found)
        else:
            if left:
                images.append(decode_file(path, size, channels, fit))
            total += 1
    return torch.stack(images), total


def require_new(target: Path) -> None:
    """Raises ConfigError unless `write_images` may write there: a new or empty folder, or a new .zip."""
    if target.is_dir() and not _is_zip(target):
        if any(entry.name != _PARTS for entry in target.iterdir()):
            raise ConfigError(f"{target} is not empty: give a new or empty folder, or a new FILE.zip")
    elif target.exists():
        raise ConfigError(f"{target} exists: remove it or give another name")
    elif not (_is_zip(target) or target.suffix[1:].isdigit() or not target.suffix):  # results-v1.5 is a folder
        raise ConfigError(f"{target} must be a folder or end in .zip, got {target.suffix}")


def write_images(
    batches: Iterable[tuple[int, Tensor]], target: Path, rank: int = 0, wait: Callable[[], None] = lambda: None
) -> None:
    """Write pairs (first index, uint8 images) as 00000000.png, … into a folder, or a .zip as StyleGAN and EDM read it.

    Every process calls this with its own batches, and `wait` as their barrier. The images appear under the final name
    together, once all are written. Raises ConfigError if the disk does not take them.
    """
    target = target.resolve()  # "." has no name
    parts = target / _PARTS if target.is_dir() else target.with_name(f".{target.name}{_PARTS}")
    try:
        if rank == 0:
            shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed
            parts.mkdir(parents=True)
        wait()
        if _is_zip(target):
            with zipfile.ZipFile(parts / f"{rank}.zip", "w") as archive:
                _encode(batches, lambda name, data: archive.writestr(_entry(name), data))
        else:
            _encode(batches, lambda name, data: (parts / name).write_bytes(data))
        wait()
        if rank == 0:
            _publish(parts, target)
        wait()
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def _encode(batches: Iterable[tuple[int, Tensor]], write: Callable[[str, bytes], object]) -> None:
    """Hand over each image as PNG. Threads encode a batch while the model computes the next."""
    jobs: list[tuple[int, Future]] = []

    def finish() -> None:
        for first, job in jobs:
            for i, data in enumerate(job.result()):
                write(f"{first + i:08d}.png", data)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start, images in batches:
            finish()
            # Small images go in bunches: threads that take one at a time spend theirs in handing Python's lock around.
            size = max(1, _BUNCH // images.shape[1:].numel())
            jobs = [(start + i, pool.submit(_pngs, images[i : i + size])) for i in range(0, len(images), size)]
        finish()


def _pngs(images: Tensor) -> list[bytes]:
    return [png(image, 1) for image in images]  # level 1 is twice as fast as 6, and the files are a tenth larger


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # dated 1980: the same images make the same archive
    entry.external_attr = 0o644 << 16
    return entry


def _is_zip(target: Path) -> bool:
    return target.suffix.lower() == ".zip"


def _publish(parts: Path, target: Path) -> None:
    if _is_zip(target):
        os.replace(_merged(sorted(parts.iterdir())), target)
    elif target.is_dir():  # may be the working directory or a mount, which cannot be replaced
        for file in sorted(parts.iterdir()):
            os.replace(file, target / file.name)
    else:
        os.replace(parts, target)


def _merged(archives: list[Path]) -> Path:
    """The parts of a zip archive as one, in the order of their entries."""
    if len(archives) == 1:
        return archives[0]
    merged = archives[0].with_name("all.zip")
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(zipfile.ZipFile(file)) for file in archives]
        whole = stack.enter_context(zipfile.ZipFile(merged, "w"))
        for name, archive in sorted(((n, a) for a in opened for n in a.namelist()), key=lambda pair: pair[0]):
            whole.writestr(_entry(name), archive.read(name))
    return merged
