"""Fréchet distances of the averaged model while it trains, from few images: a proxy, and named as one."""

import logging
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from vaegan.config import Config
from vaegan.data import ImageSet, spread_rows
from vaegan.evaluation import evaluate
from vaegan.evaluation.distances import frechet_distance
from vaegan.evaluation.features import load_extractor
from vaegan.evaluation.reconstruction import evaluating
from vaegan.evaluation.shares import Shares
from vaegan.evaluation.sources import ModelSource, ReconstructionSource, labels_for
from vaegan.latents import proportional

log = logging.getLogger("vaegan")


def distance_metrics(config: Config) -> list[str]:
    """Names of the figures that are measured, those of samples first. They hold extractor and number of images."""
    e = config.evaluation
    if e.every == 0:
        return []
    extractor = re.sub(r"[^\w.-]", "-", Path(e.extractor).name)
    encodes = config.objective.uses_reconstruction
    kinds = ["samples"] * (config.model.variational or not encodes) + ["reconstructions"] * encodes
    return [f"fd/{kind}_{extractor}_{e.num_samples}" for kind in kinds]


class Measurement:
    """The extractor and the reference, which every measurement of a run shares. No part of the model: its weights
    enter no checkpoint, and nothing is drawn from a random generator."""

    def __init__(self, config: Config, real: ImageSet, shares: Shares, device: torch.device):
        """Loads the extractor, and the reference's statistics or computes them; all processes call this together.
        Raises ConfigError if the extractor cannot be had."""
        e = config.evaluation
        names = distance_metrics(config)
        log.info("measuring %s: of so few images a proxy, to compare the steps of this run by", " and ".join(names))
        if len(real) < e.num_samples and config.objective.uses_reconstruction:
            log.warning("%s is of %d images: there are no more", names[-1], len(real))
        self._config, self._shares = config, shares
        self._extractor = load_extractor(e.extractor, weights=e.weights, resizer=e.resizer, device=device)
        self._real = _SetSource(real, e.reference_images or len(real))
        cache = Path(e.cache).expanduser()
        self._reference, _ = evaluate.reference(
            self._real, self._extractor, shares, cache=cache, batch_size=e.batch_size
        )

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The figures of `distance_metrics`, the same on every process; all of them call this together.

        A conditional model draws its classes in the reference's proportions.
        """
        e = self._config.evaluation
        figures = {}
        with evaluating(model):
            for name in distance_metrics(self._config):
                if name.startswith("fd/samples"):
                    labels = labels_for(model, self._real)
                    source = ModelSource(
                        model, e.num_samples, seed=self._config.seed, batch_size=e.batch_size,
                        labels=None if labels is None else proportional(labels, e.num_samples),
                    )  # fmt: skip
                else:
                    source = ReconstructionSource(model, _SetSource(self._real.images, e.num_samples))
                fake = evaluate.extract(source, self._extractor, self._shares, batch_size=e.batch_size)
                first = self._shares.rank == 0
                value = frechet_distance(self._reference, fake) if first else 0.0
                figures[name] = self._shares.total(torch.tensor([value], dtype=torch.float64)).item()
        return figures


class _SetSource:
    """Some images of a data set of the run, spread over it."""

    name, decodes = "reference", True

    def __init__(self, images: ImageSet, n: int):
        self.images, self._rows = images, spread_rows(len(images), n)
        self.manifest, self.written = f"{images.fingerprint} {len(self)}", images.written
        self.form = "as in training"
        self.labels, self.classes = None if images.labels is None else images.labels[self._rows], images.classes

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, start: int, stop: int) -> Tensor:
        return self.images.batch(self._rows[start:stop])

    def places(self, start: int, stop: int) -> list[int]:
        return list(range(start, min(stop, len(self))))
