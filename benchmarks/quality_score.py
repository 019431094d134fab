"""The figures of a contestant by the project's own evaluation, the same for all: one extractor, one reference, as many
samples."""

import io
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from contestants import config_of, named
from quality_records import Job
from torch import Tensor

from vaegan.data.images import Form
from vaegan.evaluation import protocol
from vaegan.evaluation.distances import frechet_distance
from vaegan.evaluation.features import load_extractor
from vaegan.evaluation.reconstruction import reconstruction_figures
from vaegan.evaluation.setting import Setting
from vaegan.evaluation.shares import ALONE
from vaegan.evaluation.sources import ModelSource, ReconstructionSource, Source
from vaegan.model import VAEGAN, Sampler
from vaegan.sampling import as_pil, batch_starts, beside

BATCH, GRID, COLUMNS = 64, 64, 8
CACHE = Path("~/.cache/vaegan/statistics")


@dataclass
class Score:
    """What is known of a contestant."""

    figures: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    grids: dict[str, Tensor] = field(default_factory=dict)
    """uint8 (64, C, H, W) by kind: `samples`, and `reconstructions` beside their originals."""


def score(model: VAEGAN, job: Job, sampler: Sampler | None = None) -> Score:
    """Figures of samples and, where there is an encoder, of reconstructions.

    The reference of the samples is the whole validation set, the floor's other side as many training images as there
    are samples. Reconstructions are of as many validation images, and compared with these. The bound is that of a
    Gaussian of optimal scale for all, whatever they were trained with. `sampler` draws the latents of models without a
    prior.
    """
    setting = setting_of(job, model.device)
    images = partial(images_of, setting, job)
    real, described = setting.measured(images("val"), keep=True)
    other, _ = setting.measured(images("train", limit=job.samples), keep=True)
    samples = ModelSource(model, job.samples, batch_size=BATCH, sampler=sampler)
    fake, drawn = setting.measured(samples, keep=False)
    label = setting.extractor.label
    found = Score(setting.compared(real, fake, label) | {"floor": frechet_distance(real, other)})
    found.protocol = _described(described, drawn)
    found.grids["samples"] = samples.batch(0, min(GRID, job.samples))
    if model.encoder is not None:
        _add_reconstructions(found, model, images("val", limit=job.samples), setting)
    return found


def setting_of(job: Job, device: torch.device) -> Setting:
    load = partial(load_extractor, job.extractor, device=device)
    return Setting(load, ALONE, device, job.samples, BATCH, root=job.root, cache=CACHE.expanduser())


def picture(images: Tensor) -> bytes:
    """Images (B, C, H, W) uint8 in rows of 8, at their own size and a pixel apart, as WebP."""
    channels, height, width = images.shape[1:]
    canvas = torch.full(
        (channels, -(-len(images) // COLUMNS) * (height + 1) + 1, COLUMNS * (width + 1) + 1), 255, dtype=torch.uint8
    )
    for i, image in enumerate(images):
        top, left = 1 + i // COLUMNS * (height + 1), 1 + i % COLUMNS * (width + 1)
        canvas[:, top : top + height, left : left + width] = image
    buffer = io.BytesIO()
    as_pil(canvas).save(buffer, "webp", quality=75, method=6)
    return buffer.getvalue()


def _add_reconstructions(found: Score, model: VAEGAN, real: Source, setting: Setting) -> None:
    statistics, _ = setting.measured(real, keep=True)
    decoded = ReconstructionSource(model, real)
    again, _ = setting.measured(decoded, keep=False)
    batches = ((start, real.batch(start, min(start + BATCH, len(real)))) for start in batch_starts(len(real), BATCH))
    figures, found.notes = reconstruction_figures(model, batches)
    distance = {f"reconstruction {setting.extractor.label}": frechet_distance(statistics, again)}
    found.figures |= distance | figures
    half = min(GRID // 2, len(real))
    found.grids["reconstructions"] = beside(real.batch(0, half), decoded.batch(0, half))


def images_of(setting: Setting, job: Job, split: str, limit: int | None = None) -> Source:
    """Images of the benchmark's data in the form of the recipe."""
    data = config_of(named("vaegan"), job).data
    form = Form(data.image_size, data.channels, data.fit)
    if job.images:
        return setting.images(job.images[split == "val"], form, limit=limit)
    return setting.images(job.data, form, split, limit)


def _described(real: dict[str, str], drawn: dict[str, str]) -> dict[str, str]:
    """How the figures came about, without places on this machine."""
    kept = ("label", *protocol.COMPARED, "vaegan", "torch", "numpy", "pillow")
    sides = {
        f"{side} {name}": of[name] for side, of in (("reference", real), ("samples", drawn)) for name in ("images", "n")
    }
    return {name: drawn[name] for name in kept if name in drawn} | sides | {"samples seed": drawn["seed"]}
