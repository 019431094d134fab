"""What can be measured: sets of images, the images of a run, arrays, samples and reconstructions of a model.

Images are uint8. A source's `manifest` says which they are, whatever the source is called and wherever it lies.
"""

import hashlib
from dataclasses import astuple, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from vaegan.config import NAMED_SOURCES, ConfigError, DataConfig
from vaegan.data import spread_rows, to_float
from vaegan.data.files import FileImages
from vaegan.data.images import Form, decode_each, open_images, open_splits
from vaegan.data.labels import aligned
from vaegan.data.named import ArrayImages
from vaegan.evaluation.reconstruction import evaluating
from vaegan.latents import proportional
from vaegan.model import VAEGAN, Sampler
from vaegan.sampling import prior_batches, to_uint8


class Source(Protocol):
    """Images by their place, 0 … len - 1."""

    name: str  # as the user wrote it, or a short label
    manifest: str  # SHA-256
    written: str  # when its files were last written, hashed, in case the manifest does not show a change
    form: str  # "native", or what they were fitted to, as in "32x32x1 pad"
    decodes: bool  # whether `batch` reads files, which a thread may do while a network works

    def __len__(self) -> int: ...

    def batch(self, start: int, stop: int) -> Tensor | list[Tensor]:
        """uint8 (B, 1 or 3, H, W), or B images (1 or 3, H, W) of their own sizes; fewer where some are skipped."""


class ImageSource:
    """Images of a data set; `open_source` and `run_source` open it.

    form: what to fit all images to, None for native sizes. limit: so many images, spread evenly over the set; None, or
    more than there are, for all. on_bad_image: `skip` leaves damaged images out and lists them in `skipped`.
    """

    def __init__(
        self, images: FileImages | ArrayImages, name: str, form: Form | None = None, limit: int | None = None,
        on_bad_image: str = "error",
    ):  # fmt: skip
        if limit is not None and limit < 1:
            raise ConfigError(f"limit must be at least 1 image, got {limit}")
        if on_bad_image not in ("error", "skip"):
            raise ConfigError(f"on_bad_image must be error or skip, got {on_bad_image!r}")
        self.name, self.form, self.skipped = name, str(form or "native"), []
        self.written = images.written
        self.decodes = isinstance(images, FileImages)
        self._images, self._form, self._on_bad_image = images, form, on_bad_image
        rows = spread_rows(len(images), limit or len(images))
        self._rows = rows.tolist()
        self.labels = None if images.labels is None else images.labels[rows]  # (len(self),) int64
        self.classes = images.classes

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def manifest(self) -> str:
        """Of a folder or tar archive, names and sizes of the files are hashed, not what is in them."""
        return _sha256(self._images.digest, self._rows)

    def batch(self, start: int, stop: int) -> Tensor | list[Tensor]:
        """Fitted images and those of arrays as (B, C, H, W), files at native sizes as a list of (C, H, W).

        Raises ConfigError naming a damaged file, or leaves it out.
        """
        rows, form = self._rows[start:stop], self._form
        if not self.decodes:
            return self._images.images(rows, *astuple(form)) if form else self._images.pixels[rows]
        decoded = decode_each(self._images, rows, form, skip=self._on_bad_image == "skip")
        bad = [self._images.names[row] for row, image in zip(rows, decoded, strict=True) if image is None]
        self.skipped += [name for name in bad if name not in self.skipped]  # a batch may be asked for again
        images = [image for image in decoded if image is not None]
        if form is None:
            return images
        return torch.stack(images) if images else self._images.images([], *astuple(form))

    def places(self, start: int, stop: int) -> list[int]:
        """Places of the images that `batch(start, stop)` has given: those skipped are missing."""
        if not self.skipped:
            return list(range(start, min(stop, len(self))))
        return [i for i in range(start, min(stop, len(self))) if self._images.names[self._rows[i]] not in self.skipped]


class ArraySource(ImageSource):
    """Images of an array (N, 1 or 3, H, W): uint8, or floats in [-1, 1], which are quantised; else ConfigError."""

    def __init__(self, images: Tensor | np.ndarray, name: str = "array", form: Form | None = None):
        images = torch.as_tensor(np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images).cpu()
        if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
            raise ConfigError(f"{name} must be (N, 1 or 3, H, W), got shape {tuple(images.shape)}: permute or fill it")
        if images.is_floating_point():
            low, high = (end.item() for end in images.aminmax())
            if not -1.001 <= low <= high <= 1.001:  # rounding is forgiven, NaN is not
                raise ConfigError(f"{name} must lie in [-1, 1] or be uint8, got {low:.4g} … {high:.4g}: scale it")
            images = torch.cat([to_uint8(part) for part in images.split(1024)])
        if images.dtype != torch.uint8:
            raise ConfigError(f"{name} must be uint8, or floats in [-1, 1], got {images.dtype}: convert it")
        super().__init__(ArrayImages(images, None, None), name, form)


def open_source(
    source: str, *, split: str | None = None, root: str = "~/.cache/vaegan", form: Form | None = None,
    limit: int | None = None, on_bad_image: str = "error",
) -> ImageSource:  # fmt: skip
    """Images of a named set, a folder, a zip or tar archive, or a folder of such archives.

    split: `train` or `val` of a named set, by default `val`; the others have none. root: where named sets lie. The rest
    is that of ImageSource. Raises ConfigError if there are no such images.
    """
    named = source in NAMED_SOURCES
    split = split or ("val" if named else "all")
    if named and split not in ("train", "val"):
        raise ConfigError(f"split of {source} must be train or val, got {split!r}")
    images = open_images("source", source, root, train=split == "train")
    if not named and split != "all":
        raise ConfigError(f"split {split} is of named sets and runs, but {source} is a folder or archive: leave it out")
    return ImageSource(images, f"{source} {split}" if named else source, form, limit, on_bad_image)


def run_source(
    run: str | Path, split: str = "val", *, root: str | None = None, limit: int | None = None,
    on_bad_image: str = "error",
) -> ImageSource:  # fmt: skip
    """Images that a run was trained on (`train`) or validated on (`val`), in its form; ConfigError if there are none.
    root: where named sets lie, None for where the run found them."""
    if split not in ("train", "val"):
        raise ConfigError(f"split of {run} must be train or val, got {split!r}")
    config = _data_config(Path(run).expanduser())
    try:
        train, val = open_splits(config if root is None else replace(config, root=root))
    except ConfigError as error:
        raise ConfigError(f"{run}: {error}") from error
    images = train if split == "train" else val
    if images is None:
        raise ConfigError(f"{run} has no validation images (data.val_fraction {config.val_fraction}): take split train")
    form = Form(config.image_size, config.channels, config.fit)
    return ImageSource(images, f"{run} {split}", form, limit, on_bad_image)


def _data_config(run: Path) -> DataConfig:
    from vaegan import cli

    file = run / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"{run} holds no config.yaml, which would name its images: give a run folder")
    return cli.load_config(file).data


class ModelSource:
    """Prior samples: image i depends on the model's weights, the seed, i and its label.

    sampler, labels: those of `VAEGAN.sample`, labels (n,) those of all images. ConfigError if the model has no prior, and
    no sampler takes its place.
    """

    name, written, decodes = "samples", "", False

    def __init__(
        self, model: VAEGAN, n: int, seed: int = 0, batch_size: int = 64, sampler: Sampler | None = None,
        labels: Tensor | int | None = None,
    ):  # fmt: skip
        if sampler is None and model.encoder is not None and not model.variational:
            raise ConfigError(
                "the model is a deterministic autoencoder, without a prior: measure its reconstructions, or give --sampler "
                "mixture"
            )
        self.form = _form_of(model)
        self.seed = seed
        self.model, self._n, self._batch_size = model, n, batch_size
        self._sampler, self.labels = sampler, labels

    def __len__(self) -> int:
        return self._n

    @property
    def manifest(self) -> str:
        given = [] if self._sampler is None else ["sampler", getattr(self._sampler, "manifest", "")]
        if self.labels is not None:
            given += ["labels", torch.as_tensor(self.labels).tolist()]
        return _sha256(_weights(self.model), self.seed, self._n, *given)

    def batch(self, start: int, stop: int) -> Tensor:
        """uint8 (stop - start, C, H, W). A batch is decoded whole: start is a multiple of the batch size."""
        assert start % self._batch_size == 0 and stop - start <= self._batch_size, f"{start} … {stop} is no batch"
        return self._drawn(start, stop, self.labels)

    def shown(self, n: int) -> Tensor:
        """The first n samples; of a conditional model rather n with labels spread over its classes, in their order."""
        classes = self.model.classes
        return self._drawn(0, n, proportional(torch.arange(classes), n) if classes else None)

    def _drawn(self, start: int, stop: int, labels: Tensor | int | None) -> Tensor:
        with evaluating(self.model):
            drawn = prior_batches(self.model, [start], stop, self.seed, self._batch_size, self._sampler, labels)
            return next(drawn)[1]


class ReconstructionSource:
    """Images of a source, decoded from their posterior means and, of a conditional model, as what their labels say.
    ConfigError if the model has no encoder, or the source no labels that it needs."""

    decodes = False

    def __init__(self, model: VAEGAN, source: Source):
        if model.encoder is None:
            raise ConfigError("the model has no encoder, having been trained as a GAN: it reconstructs nothing")
        self.name, self.form, self.written = f"{source.name} reconstructed", _form_of(model), source.written
        self._model, self._source = model, source
        self._labels = labels_for(model, source)

    def __len__(self) -> int:
        return len(self._source)

    @property
    def manifest(self) -> str:
        return _sha256(_weights(self._model), self._source.manifest)

    def batch(self, start: int, stop: int) -> Tensor:
        """uint8 (B, C, H, W). Raises ConfigError if the source's images are not in the model's form."""
        images = self._source.batch(start, stop)
        if not isinstance(images, Tensor) or images.shape[1:] != self._model.image_shape:
            raise ConfigError(
                f"{self._source.name} ({self._source.form}) must be opened in the model's form {self.form}"
            )
        y = None if self._labels is None else self._labels[self._source.places(start, stop)]
        with evaluating(self._model):
            return to_uint8(self._model.reconstruct(to_float(images.to(self._model.device)), y))


def labels_for(model: VAEGAN, source: Source) -> Tensor | None:
    """Labels (len(source),) of a source in a conditional model's numbering, None for another model. ConfigError if the
    source has none."""
    if not model.classes:
        return None
    labels, classes = getattr(source, "labels", None), getattr(source, "classes", None)
    return aligned(labels, classes, model.classes, model.class_names, source.name)


def _form_of(model: VAEGAN) -> str:
    channels, size, _ = model.image_shape
    return f"{size}x{size}x{channels}"


def _weights(model: VAEGAN) -> str:
    """What `sha256sum` says of the model's exported file."""
    return hashlib.sha256(save({k: v.cpu().contiguous() for k, v in model.state_dict().items()})).hexdigest()


def _sha256(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
