"""The metric of a conditional model class by class: its samples of a class against the real images of that class."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vaegan.config import ConfigError
from vaegan.evaluation.distances import FeatureStatistics, few_images_warning, frechet_distance, statistics_of
from vaegan.evaluation.evaluate import KEPT


def class_distances(
    real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor, names: list[str], label: str
) -> dict[str, dict[str, float]]:
    """By class name: its Fréchet distance under `label`, and how many `reference images` and `samples` it is of.

    real, fake: features (N, d) and (M, d), with labels (N,) and (M,) int64 below len(names). The distance of a class with
    fewer than two images on a side is NaN.
    """
    figures = {}
    for number, name in enumerate(names):
        sides = real[real_labels == number], fake[fake_labels == number]
        measured = min(map(len, sides)) >= 2
        distance = frechet_distance(*map(statistics_of, sides)) if measured else math.nan
        figures[name] = {label: distance, "reference images": len(sides[0]), "samples": len(sides[1])}
    return figures


def mean_distance(figures: Mapping[str, Mapping[str, float]], label: str) -> float:
    """Mean over the classes, each of the same weight: the intra-FID of Miyato & Koyama 2018."""
    measured = [of[label] for of in figures.values() if math.isfinite(of[label])]
    return sum(measured) / len(measured) if measured else math.nan


def notes(figures: Mapping[str, Mapping[str, float]], features: int) -> list[str]:
    """What to know of such figures: classes left out, and too few images."""
    fewest = {name: int(min(of["reference images"], of["samples"])) for name, of in figures.items()}
    left_out = [name for name, n in fewest.items() if n < 2]
    lines = [f"per class: left out with fewer than 2 images a side are {', '.join(left_out)}"] if left_out else []
    measured = [n for n in fewest.values() if n >= 2]
    few = few_images_warning(min(measured), features) if measured else None
    return lines + ([f"per class: {few}"] if few else [])


def labels_of_features(statistics: FeatureStatistics, labels: Tensor, places: list[int], name: str) -> Tensor:
    """Labels of the features that `evaluate.extract` has kept of a source with `labels` (N,), of which `places` were not
    skipped. ConfigError if it is not known which images they are of."""
    stride = -(-len(labels) // KEPT)
    kept = torch.tensor([place for place in places if place % stride == 0], dtype=torch.int64)
    if statistics.features is None or len(statistics.features) != len(kept):
        raise ConfigError(
            f"{name}: --per-class needs the features of every image: remove damaged ones, or measure in one process"
        )
    return labels[kept]
