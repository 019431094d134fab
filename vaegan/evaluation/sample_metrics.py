"""Figures that need the features of every image: kernel distance, Inception Score, and how sure a Fréchet distance is.

Random choices depend on a seed alone; no global generator is drawn from.
"""

import numpy as np
import torch
from torch import Tensor

from vaegan import counter
from vaegan.config import ConfigError
from vaegan.evaluation.distances import (
    FeatureStatistics,
    centred_rows,
    distance_from_factor,
    float64_device,
    frechet_distance,
    statistics_of,
)

SPLITS = 10  # parts of a set that the Inception Score is the mean over
_BLOCK = 1024  # rows brought to float64 at a time


def kernel_distance(
    real: Tensor, fake: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Kernel distance of features (n, d) and (m, d): mean and standard deviation of the unbiased squared MMD over
    random subsets (Bińkowski et al. 2018, section 4), with the kernel (x·y / d + 1)³.

    The same subsets as torch-fidelity draws when `real` is its first input and `fake` its second. Subsets are no larger
    than the smaller set. Raises ConfigError for fewer than 2 images or features of different kinds.
    """
    size = min(subset_size, len(real), len(fake))
    if size < 2:
        raise ConfigError(f"a kernel distance needs at least 2 images a set, got {size} (give more images)")
    if real.shape[1] != fake.shape[1]:
        widths = f"{real.shape[1]} and {fake.shape[1]}"
        raise ConfigError(f"features of {widths} dimensions have no distance; use one extractor")
    real, fake = (x.to(float64_device(real)) for x in (real, fake))
    random = np.random.RandomState(seed)
    rows = [torch.from_numpy(random.choice(len(x), size, replace=False)) for _ in range(subsets) for x in (real, fake)]
    rows_real, rows_fake = (torch.stack(part).to(real.device) for part in (rows[0::2], rows[1::2]))  # (subsets, size)
    whole = len(real) ** 2 / 2 + len(real) * len(fake) + len(fake) ** 2 / 2
    if whole <= 2.5 * subsets * size**2:  # one kernel matrix of all images costs less than one a subset
        values = _squared_mmd(real, fake, _members(rows_real, len(real)), _members(rows_fake, len(fake)))
    else:
        ones = torch.ones(1, size, dtype=torch.float64, device=real.device)
        values = torch.cat([_squared_mmd(real[i], fake[j], ones, ones) for i, j in zip(rows_real, rows_fake)])
    return values.mean().item(), values.std(correction=0).item()


def _members(rows: Tensor, n: int) -> Tensor:
    """Subsets as lists of rows (s, size) to float64 (s, n), 1 where a row is in the subset."""
    return torch.zeros(len(rows), n, dtype=torch.float64, device=rows.device).scatter_(1, rows, 1.0)


def _squared_mmd(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """(s,) of the subsets that in_x (s, n) and in_y (s, m) mark; all of one size."""
    size = in_x[0].sum()
    within = _sum_within(x, in_x) + _sum_within(y, in_y)
    return within / (size * (size - 1)) - 2 * _sum_between(x, y, in_x, in_y) / size**2


def _sum_within(x: Tensor, member: Tensor) -> Tensor:
    """(s,): the kernel summed over all pairs of two different rows of a subset. Each pair is computed once."""
    x = x.double()
    sums = torch.zeros(len(member), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), _BLOCK):
        block, later = slice(start, start + _BLOCK), slice(start + _BLOCK, None)
        kernel = (x[block] @ x[start:].T / x.shape[1] + 1) ** 3
        kernel.fill_diagonal_(0)
        partners = torch.cat([member[:, block], 2 * member[:, later]], 1)
        sums += (member[:, block] @ kernel * partners).sum(1)
    return sums


def _sum_between(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """(s,): the kernel summed over all pairs of a row of one set and a row of the other."""
    y = y.double()
    sums = torch.zeros(len(in_x), dtype=torch.float64, device=x.device)
    for block, member in zip(x.split(_BLOCK), in_x.split(_BLOCK, 1)):
        kernel = (block.double() @ y.T / y.shape[1] + 1) ** 3
        sums += (member @ kernel * in_y).sum(1)
    return sums


def inception_score(logits: Tensor, splits: int = SPLITS, seed: int = 2020) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)), Salimans et al. 2016, section 4: mean and standard deviation over `splits` parts.

    logits: (n, classes). The order is shuffled by the seed, as torch-fidelity does. Raises ConfigError if n < splits.
    """
    n = len(logits)
    if n < splits:
        raise ConfigError(f"an Inception Score over {splits} splits needs at least {splits} images, got {n}")
    order = torch.from_numpy(np.random.RandomState(seed).permutation(n)).to(logits.device)
    log_p = logits[order].to(float64_device(logits)).double().log_softmax(1)
    scores = []
    for i in range(splits):
        part = log_p[i * n // splits : (i + 1) * n // splits]
        p = part.exp()
        scores.append((p * (part - p.mean(0).log())).sum(1).mean().exp())
    scores = torch.stack(scores)
    return scores.mean().item(), scores.std(correction=0).item()


def frechet_infinity(real: FeatureStatistics, fake: Tensor, points: int = 15, seed: int = 0) -> float:
    """The Fréchet distance at infinitely many generated images (Chong & Forsyth 2020): the intercept of a
    straight line through the distances of random subsets of N rows of `fake` (n, d) against 1/N.

    The sizes N lie evenly from max(n/10, min(5000, n/2)) to n; the paper has 5000 and n = 50 000. The bias that comes
    from few real images stays, and so may a little noise: the result can be below 0. Raises ConfigError if n is less
    than twice `points`.
    """
    n = len(fake)
    if n < 2 * points:
        raise ConfigError(f"extrapolation over {points} sizes needs at least {2 * points} images, got {n}")
    sizes = torch.linspace(max(n / 10, min(5000, n / 2)), n, points, dtype=torch.float64).round()
    distances = []
    for i, size in enumerate(sizes.long().tolist()):
        rows = counter.permutation(n, counter.key(seed, "extrapolation", i))[:size].to(fake.device)
        distances.append(frechet_distance(real, statistics_of(fake[rows])))
    x, y = 1 / sizes, torch.tensor(distances, dtype=torch.float64)
    step = x - x.mean()
    slope = step @ y / (step @ step)
    return (y.mean() - slope * x.mean()).item()


def frechet_interval(
    real: FeatureStatistics, fake: Tensor, resamples: int = 20, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Confidence interval of the Fréchet distance to infinitely many generated images, by the bootstrap over `fake`
    (n, d); `real` is taken as it is.

    A distance of resampled rows is biased upwards once more, by about as much as the distance itself. So the interval
    is the basic one (Davison & Hinkley 1997, eq. 5.6), which turns the quantiles over: [2 D - q_upper, 2 D - q_lower].
    It thus corrects the bias, and may lie below D. Not below 0. Raises ConfigError as `statistics_of` does.
    """
    n = len(fake)
    distance = frechet_distance(real, statistics_of(fake))
    resampled = []
    for i in range(resamples):
        uniform = counter.uniform(torch.arange(n), 1, counter.key(seed, "bootstrap", i))[:, 0]
        counts = (uniform.double() * n).long().bincount(minlength=n)
        resampled.append(_weighted_distance(real, fake, counts.to(fake.device)))
    tail = torch.tensor([(1 + level) / 2, (1 - level) / 2], dtype=torch.float64)
    low, high = (2 * distance - torch.tensor(resampled, dtype=torch.float64).quantile(tail)).clamp(min=0).tolist()
    return low, high


def _weighted_distance(real: FeatureStatistics, fake: Tensor, counts: Tensor) -> float:
    """The Fréchet distance of the rows of `fake`, each taken `counts` times."""
    drawn = counts.nonzero()[:, 0]
    device = float64_device(fake)
    weights, n = counts[drawn].to(device).double(), int(counts.sum())
    blocks = list(zip(drawn.split(_BLOCK), weights.split(_BLOCK)))
    mean = sum(w @ fake[rows].to(device).double() for rows, w in blocks) / n
    d = len(mean)
    if len(drawn) <= d:
        return distance_from_factor(mean, centred_rows(fake[drawn].to(device).double(), mean, weights), real)
    scatter = torch.zeros(d, d, dtype=torch.float64, device=device)
    for rows, w in blocks:
        x = (fake[rows].to(device).double() - mean) * w.sqrt()[:, None]
        scatter.addmm_(x.T, x)
    return frechet_distance(FeatureStatistics(n, mean, scatter / (n - 1)), real)
