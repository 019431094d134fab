"""The distances as torchmetrics, for other people's training loops: images come in, features are kept.

`update(images, real)` takes uint8 images (B, C, H, W), or floating-point ones in [-1, 1], which are rounded to uint8 and
clamped. An extractor is any callable from uint8 images to features (B, d). It never enters a state dict.

A figure needs both sets, so use `update` and `compute`, not `forward`. The metrics are kept on any device that has
float64 (not MPS); the extractor may be elsewhere.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from vaegan.config import ConfigError
from vaegan.evaluation.distances import Moments, frechet_distance, require_finite
from vaegan.evaluation.precision_recall import K_DENSITY, K, precision_recall
from vaegan.evaluation.sample_metrics import kernel_distance
from vaegan.sampling import to_uint8

FeatureFunction = Callable[[Tensor], Tensor]


class _FeatureMetric(Metric):
    """Two states, `real` and `fake`."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, extractor: FeatureFunction, reset_real_features: bool, **kwargs):
        super().__init__(**kwargs)
        self.reset_real_features = reset_real_features
        # A closure: the extractor is neither registered as a submodule nor copied with the metric.
        self._extract = lambda images: extractor(images)

    def _features(self, images: Tensor) -> Tensor:
        if not images.is_floating_point() and images.dtype != torch.uint8:
            raise ConfigError(f"images must be uint8, or floating-point in [-1, 1], got {images.dtype}")
        return self._extract(to_uint8(images) if images.is_floating_point() else images).to(self.device)

    def reset(self) -> None:
        """Forget all images, or only the generated ones if `reset_real_features` is False."""
        real = copy.copy(self.real)  # a list would be emptied in place
        super().reset()
        if not self.reset_real_features:
            self.real = real


class FrechetDistance(_FeatureMetric):
    """The Fréchet distance; its states hold moments only, in float64, and merge exactly over processes.

    `dim` is the number of features; without it, the extractor is asked once with a black image of 32 x 32 x 3.
    """

    higher_is_better = False

    def __init__(
        self, extractor: FeatureFunction, *, dim: int | None = None, reset_real_features: bool = True, **kwargs
    ):
        super().__init__(extractor, reset_real_features, **kwargs)
        if dim is None:
            dim = extractor(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape[1]
        empty = torch.zeros(dim + 1, dim + 1, dtype=torch.float64)
        self.add_state("real", empty, dist_reduce_fx=_merge)
        self.add_state("fake", empty.clone(), dist_reduce_fx=_merge)

    def update(self, images: Tensor, real: bool) -> None:
        """Add images. Raises ConfigError if their features are not finite or not of `dim` dimensions."""
        state = self.real if real else self.fake
        moments = _moments(state, self.update_count - 1)
        moments.update(self._features(images))  # in place
        state[0, 0] = moments.n

    def compute(self) -> Tensor:
        """The distance. Raises ConfigError unless there are two images of each kind."""
        real, fake = (_moments(state).statistics() for state in (self.real, self.fake))
        return torch.tensor(frechet_distance(real, fake), device=self.device)


class _SampleMetric(_FeatureMetric):
    """Keeps the features of all images. Before processes are synced, each must have seen images of both kinds."""

    def __init__(self, extractor: FeatureFunction, reset_real_features: bool, options: dict[str, int], **kwargs):
        super().__init__(extractor, reset_real_features, **kwargs)
        self.options = options
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool) -> None:
        """Add images. Raises ConfigError if their features are not finite."""
        features = self._features(images)
        require_finite(features, self.update_count - 1)
        (self.real if real else self.fake).append(features)

    def _sets(self) -> list[Tensor]:
        """Real and fake features; syncing has joined them already."""
        empty = torch.empty(0, 0)
        return [state if isinstance(state, Tensor) else torch.cat(state or [empty]) for state in (self.real, self.fake)]


class KernelDistance(_SampleMetric):
    """The kernel distance (KID): mean and standard deviation over subsets."""

    higher_is_better = False

    def __init__(
        self,
        extractor: FeatureFunction,
        *,
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 2020,
        reset_real_features: bool = True,
        **kwargs,
    ):
        options = {"subsets": subsets, "subset_size": subset_size, "seed": seed}
        super().__init__(extractor, reset_real_features, options, **kwargs)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation. Raises ConfigError unless there are two images of each kind."""
        mean, deviation = kernel_distance(*self._sets(), **self.options)
        return torch.tensor(mean, device=self.device), torch.tensor(deviation, device=self.device)


class PrecisionRecall(_SampleMetric):
    """`precision`, `recall`, `f1`, `density` and `coverage`."""

    higher_is_better = True

    def __init__(
        self,
        extractor: FeatureFunction,
        *,
        k: int = K,
        k_density: int = K_DENSITY,
        reset_real_features: bool = True,
        **kwargs,
    ):
        super().__init__(extractor, reset_real_features, {"k": k, "k_density": k_density}, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """The figures. Raises ConfigError unless there are more images of each kind than neighbours."""
        figures = precision_recall(*self._sets(), **self.options)
        return {name: torch.tensor(figure, device=self.device) for name, figure in figures.items()}


def _moments(state: Tensor, batches: int = 0) -> Moments:
    """A view of a state (d+1, d+1): the number of images in its corner, the mean in its first row, the scatter."""
    return Moments(int(state[0, 0]), state[0, 1:], state[1:, 1:], batches)


def _merge(states: Tensor) -> Tensor:
    """The states (processes, d+1, d+1) of several processes as one; see `Moments`."""
    counts, means = states[:, 0, 0], states[:, 0, 1:]
    merged = states.sum(0)
    merged[0, 1:] = counts / counts.sum().clamp(min=1) @ means
    steps = means - merged[0, 1:]
    merged[1:, 1:].addmm_(steps.T * counts, steps)
    return merged
