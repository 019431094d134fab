"""From images to figures: one pass of the extractor feeds every metric, on one process or many.

Batches are cut from the whole set, batch b belongs to process b modulo the number of processes, and every image is
in one of them. So a feature does not depend on how many processes there are, and the figures differ only by the order in
which float64 sums are added.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from vaegan import stop
from vaegan.config import ConfigError
from vaegan.evaluation import precision_recall, protocol, statistics_file
from vaegan.evaluation.distances import FeatureStatistics, Moments, frechet_distance
from vaegan.evaluation.features import Extractor
from vaegan.evaluation.sample_metrics import SPLITS, inception_score, kernel_distance
from vaegan.evaluation.shares import ALONE, Shares
from vaegan.evaluation.sources import Source
from vaegan.sampling import batch_starts

KEPT = 50_000  # features that are kept of a set, for the metrics of single images; 400 MB where d is 2048
log = logging.getLogger("vaegan")


def extract(
    source: Source,
    extractor: Extractor,
    shares: Shares = ALONE,
    *,
    batch_size: int = 64,
    kept: int = KEPT,
    progress: Callable[[int], object] = lambda images: None,
) -> FeatureStatistics:
    """Statistics of the features of all images of a source, on every process; all processes call it together.

    Mean and covariance are of all images. Of a set of more than `kept` images, every second, third, … feature is kept,
    so many that `kept` suffices. `progress` is told of images done here. Raises ConfigError if an image is damaged, if
    a feature is not finite, or if fewer than two images are left.
    """
    moments, features_kept = Moments(), _Kept(len(source), -(-len(source) // kept))
    for start, images in _batches(
        source, batch_starts(len(source), batch_size, shares.rank, shares.processes), batch_size
    ):
        stop.check()
        if len(images):
            features = extractor(images)
            moments.update(features)
            features_kept.add(start, features)
        progress(min(batch_size, len(source) - start))
    moments = moments.merged(shares.total)
    _report_skipped(source, shares)
    if moments.n < 2:
        raise ConfigError(f"{source.name}: a distance needs at least 2 images, got {moments.n}")
    return moments.statistics(features_kept.of_all(len(moments.mean), shares))


def reference(
    source: Source,
    extractor: Extractor,
    shares: Shares = ALONE,
    *,
    cache: Path | None,
    batch_size: int = 64,
    progress: Callable[[int], object] = lambda images: None,
) -> tuple[FeatureStatistics, dict[str, str]]:
    """`extract`, its result kept in the folder `cache` under its whole protocol but for the source's name; and that
    protocol.

    If it is found there, the other processes get an empty placeholder: the first one alone compares.
    """
    described = protocol.describe(extractor, source)
    file = None
    if cache is not None:
        file = statistics_file.cached(cache, {**described, "source": "", "written": source.written})
        found = _from_cache(file) if shares.rank == 0 else None
        if shares.total(torch.tensor([float(found is not None)])).item() > 0:
            nothing = torch.empty(0, dtype=torch.float64)
            statistics = found or FeatureStatistics(0, nothing, nothing[:, None])
            return statistics, described | {"n": str(statistics.n)}
    statistics = extract(source, extractor, shares, batch_size=batch_size, progress=progress)
    complete = statistics.n == len(source)  # what is skipped should be told each time
    if file is not None and shares.rank == 0 and complete:
        try:
            statistics_file.save_statistics(file, statistics, described)
        except ConfigError as error:  # a full disk should not cost what was computed
            log.warning("not kept for the next time: %s", error)
    return statistics, described | {"n": str(statistics.n)}


def compare(
    real: FeatureStatistics,
    fake: FeatureStatistics,
    label: str,
    classifier: Tensor | None = None,
    seed: int = 2020,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Every figure that two sets' features give: the Fréchet distance under `label` and, where features are kept, `kid`,
    `kid_std` (over subsets of 1000, or of half the images if that is fewer), `precision`, `recall`, `f1`, `density`,
    `coverage`; with Inception's `classifier` (classes, d) also `inception_score` and `inception_score_std`. What a set
    is too small for is left out. Features are compared on `device`, which must have float64."""
    figures = {label: frechet_distance(real, fake)}
    if real.features is None or fake.features is None:
        return figures
    x, y = real.features.to(device), fake.features.to(device)
    smaller = min(len(x), len(y))
    if smaller >= 4:
        figures["kid"], figures["kid_std"] = kernel_distance(x, y, subset_size=min(1000, smaller // 2), seed=seed)
    if classifier is not None and len(y) >= SPLITS:
        score = inception_score(y @ classifier.T.to(device), seed=seed)
        figures["inception_score"], figures["inception_score_std"] = score
    if smaller > precision_recall.K_DENSITY:
        figures |= precision_recall.precision_recall(x, y)
    return figures


def _batches(source: Source, starts: range, batch_size: int) -> Iterator[tuple[int, Tensor | list[Tensor]]]:
    """(first index, images) of this process's batches. A thread decodes files while the network works on others."""
    spans = [(start, min(start + batch_size, len(source))) for start in starts]
    if not source.decodes:
        yield from ((start, source.batch(start, stop)) for start, stop in spans)
        return
    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(source.batch, *span) for span in spans[:1]]
        for i, (start, _) in enumerate(spans):
            images = ahead.pop().result()
            ahead = [pool.submit(source.batch, *span) for span in spans[i + 1 : i + 2]]
            yield start, images


class _Kept:
    """Every `stride`-th of n images' features, in the order of the images. Each process adds those of its batches."""

    def __init__(self, n: int, stride: int):
        self._stride = stride
        self._rows: Tensor | None = None  # (m, d)
        self._filled = torch.zeros(-(-n // stride))  # (m,), 1 or 0

    def add(self, start: int, features: Tensor) -> None:
        """Features (B, d) of the images from `start` on."""
        if self._rows is None:  # at once: a piece a batch would lie between what is freed, and leave gaps in memory
            self._rows = torch.zeros(len(self._filled), features.shape[1])
        first = -start % self._stride  # the first of this batch whose place in the set is a multiple of the stride
        part, place = features[first :: self._stride], (start + first) // self._stride
        self._rows[place : place + len(part)], self._filled[place : place + len(part)] = part, 1

    def of_all(self, d: int, shares: Shares) -> Tensor:
        """All processes' features, (m, d), without the places of images that were skipped.

        Each process filled its own rows among zeros, and they are added up, which is exact.
        """
        rows = torch.zeros(len(self._filled), d) if self._rows is None else self._rows
        rows, filled = shares.total(rows), shares.total(self._filled)
        return rows if filled.all() else rows[filled > 0]


def _report_skipped(source: Source, shares: Shares) -> None:
    skipped = getattr(source, "skipped", [])
    total = int(shares.total(torch.tensor([float(len(skipped))])).item())
    if total and shares.rank == 0:
        log.warning("%s: %d of %d images are damaged and were skipped", source.name, total, len(source))
    for line in skipped[:5]:
        log.warning("skipped %s", line)


def _from_cache(file: Path) -> FeatureStatistics | None:
    if not file.is_file():
        return None
    try:
        return statistics_file.load_statistics(file)[0]
    except ConfigError as error:
        log.warning("made anew: %s", error)
        return None
