"""Moments and distances against closed forms and the reference packages, where sets are small, singular or far off."""

import math
import threading

import numpy as np
import pytest
import scipy.linalg
import torch

from vaegan.config import ConfigError
from vaegan.evaluation import sample_metrics
from vaegan.evaluation.distances import (
    FeatureStatistics,
    Moments,
    centred_rows,
    few_images_warning,
    frechet_distance,
    statistics_of,
)
from vaegan.evaluation.sample_metrics import frechet_infinity, frechet_interval, inception_score, kernel_distance

D = 24


def normal(n: int, d: int = D, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def correlated(n: int, d: int = D, seed: int = 0, decay: float = 1.0) -> torch.Tensor:
    """Features with standard deviations 1, 2^-decay, 3^-decay, … along directions of no axis, and some mean."""
    directions = torch.linalg.qr(normal(d, d, 1000 + seed)).Q
    return normal(n, d, seed) * torch.arange(1, d + 1) ** -decay @ directions + normal(1, d, seed + 1) * 0.3


def without_features(statistics: FeatureStatistics) -> FeatureStatistics:
    return FeatureStatistics(statistics.n, statistics.mean, statistics.covariance)


def by_scipy(a: FeatureStatistics, b: FeatureStatistics) -> float:
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real.trace()
    traces = (a.covariance.trace() + b.covariance.trace()).item()
    return (a.mean - b.mean).square().sum().item() + traces - 2 * root


def moments_of(batches) -> Moments:
    moments = Moments()
    for batch in batches:
        moments.update(batch)
    return moments


# Moments


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [7, 0, 60, 1, 32]])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_equal_those_of_all_features_at_once(sizes, offset):
    x = (correlated(100).double() + offset).float()
    statistics = moments_of(x.split(sizes)).statistics()
    covariance = torch.cov(x.double().T)
    assert statistics.n == 100 and statistics.features is None
    assert torch.allclose(statistics.mean, x.double().mean(0), rtol=1e-14, atol=1e-14)
    assert (statistics.covariance - covariance).abs().max() < 1e-10 * covariance.abs().max()


def test_low_precision_features_are_summed_in_float64():
    x = correlated(50).bfloat16()
    assert torch.equal(moments_of([x]).scatter, moments_of([x.double()]).scatter)


def test_statistics_do_not_change_with_later_updates():
    moments = moments_of([normal(10)])
    before = moments.statistics()
    mean, covariance = before.mean.clone(), before.covariance.clone()
    moments.update(normal(10, seed=1))
    assert torch.equal(before.mean, mean) and torch.equal(before.covariance, covariance)


class Processes:
    """As many threads as there are `Moments`; `total` sums over them, as a collective does."""

    def __init__(self, parts: list[Moments]):
        self.parts, self.given = parts, [None] * len(parts)
        self.barrier = threading.Barrier(len(parts), timeout=10)
        self.results = [None] * len(parts)

    def total(self, rank: int):
        def total(tensor):
            assert tensor.dtype == torch.float64
            self.given[rank] = tensor
            self.barrier.wait()
            summed = sum(self.given)
            self.barrier.wait()
            return summed

        return total

    def merged(self) -> list[Moments]:
        def run(rank):
            self.results[rank] = self.parts[rank].merged(self.total(rank))

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(self.parts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.results


@pytest.mark.parametrize("sizes", [[50, 50], [99, 0, 1], [0, 100]])
def test_processes_merge_to_the_moments_of_all_images_even_if_one_has_none(sizes):
    x = correlated(100) + 1e3
    parts = [moments_of(part.split(8) if len(part) else []) for part in x.split(sizes)]
    before = [part.n for part in parts]
    expected = statistics_of(x)
    for merged in Processes(parts).merged():
        statistics = merged.statistics()
        assert statistics.n == 100
        assert torch.allclose(statistics.mean, expected.mean, rtol=1e-13)
        assert (statistics.covariance - expected.covariance).abs().max() < 1e-11
    assert [part.n for part in parts] == before


def test_one_process_merges_to_itself_and_none_has_images_to_nothing():
    moments = moments_of(normal(20).split(6))
    merged = moments.merged(lambda tensor: tensor)
    assert torch.equal(merged.mean, moments.mean) and torch.equal(merged.scatter, moments.scatter)
    assert all(empty.n == 0 for empty in Processes([Moments(), Moments()]).merged())


def test_errors_name_the_batch_and_the_remedy():
    moments = moments_of([normal(8), normal(8)])
    bad = normal(8)
    bad[2, 0], bad[5, 3] = math.nan, math.inf
    with pytest.raises(ConfigError, match="features of batch 2 are not finite in 2 of 8 images"):
        moments.update(bad)
    with pytest.raises(ConfigError, match=r"features of batch 2 must be \(images, 24\), got \(8, 23\)"):
        moments.update(normal(8, 23))
    with pytest.raises(ConfigError, match=r"\(images, d\), got \(24,\)"):
        Moments().update(normal(1)[0])
    with pytest.raises(ConfigError, match="needs at least 2 images, got 1"):
        moments_of([normal(1)]).statistics()
    with pytest.raises(ConfigError, match="needs at least 2 images, got 0"):
        Moments().statistics()
    assert moments.n == 16


def test_a_warning_where_images_are_too_few():
    assert few_images_warning(2049, 2048) is None
    assert few_images_warning(600, 2048).startswith("600 images for 2048 features: the covariance is singular")


# Fréchet distance


def test_diagonal_gaussians_in_closed_form():
    deviations = [torch.linspace(0.1, 2, D).double(), torch.linspace(3, 0, D).double()]
    means = [torch.zeros(D).double(), torch.linspace(-1, 1, D).double()]
    a, b = (FeatureStatistics(1000, mean, deviation.square().diag()) for mean, deviation in zip(means, deviations))
    expected = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("n", [8, 15, 24, 25, 200])
def test_exactly_constructed_samples_in_closed_form(n):
    """Two sets in the same subspace, whitened to have exactly the deviations asked for."""
    rank = min(n - 1, D)
    whitened, _ = torch.linalg.qr(normal(n, rank).double() - normal(n, rank).double().mean(0))
    basis = torch.linalg.qr(normal(D, rank, 1).double()).Q
    s, t = torch.linspace(0.5, 2, rank).double(), torch.linspace(1, 0.1, rank).double()
    a, b = (whitened * math.sqrt(n - 1) * deviation @ basis.T for deviation in (s, t))
    expected = (s - t).square().sum().item() + D * 0.25
    sides = statistics_of(a), statistics_of(b + 0.5)
    assert frechet_distance(*sides) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(*map(without_features, sides)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n_a", [5, 12, 18, 24, 25, 300])
@pytest.mark.parametrize("n_b", [7, 20, 25, 400])
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_all_routes_equal_scipy(n_a, n_b, decay):
    a, b = statistics_of(correlated(n_a, decay=decay)), statistics_of(correlated(n_b, seed=5, decay=decay))
    expected = by_scipy(a, b)
    for first in (a, without_features(a)):
        for second in (b, without_features(b)):
            assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
            assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [600, 60])
def test_equals_torch_fidelity(n):
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = correlated(n, 100).double(), correlated(n + 50, 100, 9).double()
    one, two = (fid.fid_features_to_statistics(x) for x in (a, b))
    expected = fid.fid_statistics_to_metric(one, two, False)["frechet_inception_distance"]
    assert frechet_distance(statistics_of(a), statistics_of(b)) == pytest.approx(expected, rel=1e-6)


SINGULAR = {
    "full rank": correlated(500, 64),
    "one more than features": correlated(65, 64),
    "as many as features": correlated(64, 64),
    "few": correlated(20, 64),
    "steep": correlated(60, 64, decay=4.0),
    "two": correlated(2, 64),
    "duplicated": correlated(15, 64).repeat(4, 1),
    "duplicated, many": correlated(15, 64).repeat(20, 1),
    "dead features": correlated(500, 64) * (torch.arange(64) % 3 > 0),
    "proportional features": correlated(500, 32).repeat(1, 2),
    "constant": torch.ones(100, 64) * 0.7,
    "constant, few": torch.ones(10, 64) * 0.7,
}


@pytest.mark.parametrize("kind", SINGULAR)
def test_distance_to_itself_is_zero(kind):
    x = SINGULAR[kind]
    a, b = statistics_of(x), statistics_of(x.flip(0))
    for first in (a, without_features(a)):
        for second in (b, without_features(b)):
            assert 0 <= frechet_distance(first, second) < 1e-6


@pytest.mark.parametrize("kind", SINGULAR)
def test_singular_sets_equal_scipy(kind):
    d = SINGULAR[kind].shape[1]
    a, b = statistics_of(SINGULAR[kind]), statistics_of(correlated(300, d, 3))
    regular = FeatureStatistics(a.n, a.mean, a.covariance + 1e-14 * torch.eye(d))  # scipy's root of a singular product
    expected = by_scipy(regular, b)
    for first in (a, without_features(a)):
        assert frechet_distance(first, b) == pytest.approx(expected, rel=1e-6)


def test_null_directions_add_no_roots_of_rounding_errors():
    a, b = statistics_of(normal(60, 256).repeat(4, 1)), statistics_of(correlated(300, 256, 3, decay=0))
    values = torch.linalg.svdvals(centred_rows(a.features[:60].double(), a.mean) @ torch.linalg.cholesky(b.covariance))
    root = values.sum().item() * math.sqrt(4 * 59 / 239)
    expected = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-12)


def test_an_unknown_number_of_images_changes_nothing():
    for n in (10, 300):  # the statistics of other tools come without it
        a, b = statistics_of(correlated(n)), statistics_of(correlated(200, seed=3))
        unknown = FeatureStatistics(0, a.mean, a.covariance)
        assert frechet_distance(unknown, b) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_a_kept_subset_of_the_features_is_not_taken_for_all():
    a, b = statistics_of(correlated(20)), statistics_of(correlated(22, seed=4))
    subset = FeatureStatistics(20, a.mean, a.covariance, a.features[:5])
    assert frechet_distance(subset, b) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_different_widths_have_no_distance():
    with pytest.raises(ConfigError, match="24 and 23 dimensions have no distance"):
        frechet_distance(statistics_of(normal(30)), statistics_of(normal(30, 23)))


@pytest.mark.parametrize("weighted", [False, True])
def test_centred_rows_are_a_factor_of_full_rank(weighted):
    x = correlated(10).double()
    weights = torch.arange(1, 11) if weighted else torch.ones(10, dtype=torch.int64)
    copies = x.repeat_interleave(weights, 0)
    factor = centred_rows(x, copies.mean(0), weights.double() if weighted else None)
    assert torch.allclose(factor.T @ factor, torch.cov(copies.T), atol=1e-14)
    assert factor.shape == (9, D) and torch.linalg.matrix_rank(factor) == 9


# Kernel distance


@pytest.mark.parametrize(("n", "m"), [(90, 120), (400, 500)])
def test_kernel_distance_equals_torch_fidelity(n, m):
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    real, fake = correlated(n).double() * 3, correlated(m, seed=7).double() * 2
    theirs = kid.kid_features_to_metric(
        real, fake, kid_subsets=7, kid_subset_size=80, kid_kernel="poly", kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1.0, rng_seed=2020, verbose=False,
    )  # fmt: skip
    mean, deviation = kernel_distance(real, fake, subsets=7, subset_size=80)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)


def test_both_ways_of_the_kernel_distance_agree(monkeypatch):
    monkeypatch.setattr(sample_metrics, "_BLOCK", 32)
    real, fake = correlated(70), correlated(90, seed=2)
    few = kernel_distance(real, fake, subsets=2, subset_size=20)
    many = kernel_distance(real, fake, subsets=40, subset_size=20)
    rows = np.random.RandomState(2020)
    expected = []
    for _ in range(40):
        x, y = (z[rows.choice(len(z), 20, replace=False)].double() for z in (real, fake))
        k_xx, k_yy, k_xy = ((p @ q.T / D + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        off = sum((k.sum() - k.diagonal().sum()) / (20 * 19) for k in (k_xx, k_yy))
        expected.append((off - 2 * k_xy.mean()).item())
    assert many == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-10)
    assert few == pytest.approx((np.mean(expected[:2]), np.std(expected[:2])), rel=1e-10)


def test_kernel_distance_is_unbiased_and_its_subsets_fit():
    same = [kernel_distance(correlated(60, seed=2 * i), correlated(60, seed=2 * i + 1) * 0, 1, 60)[0] for i in range(3)]
    assert min(same) > 0
    null = torch.tensor([kernel_distance(normal(40, seed=i), normal(40, seed=1000 + i), 1)[0] for i in range(200)])
    assert abs(null.mean()) < 4 * null.std() / math.sqrt(200) and null.min() < 0
    mean, deviation = kernel_distance(normal(40), normal(50, seed=1) + 1, subsets=5)  # 1000 are asked for
    assert mean > 0.1 and deviation > 0
    with pytest.raises(ConfigError, match="at least 2 images a set, got 1"):
        kernel_distance(normal(1), normal(10))
    with pytest.raises(ConfigError, match="24 and 23 dimensions"):
        kernel_distance(normal(10), normal(10, 23))


# Inception Score


def test_inception_score_equals_torch_fidelity():
    isc = pytest.importorskip("torch_fidelity.metric_isc")
    logits = normal(237, 10) * 3
    theirs = isc.isc_features_to_metric(logits)
    expected = theirs["inception_score_mean"], theirs["inception_score_std"]
    assert inception_score(logits) == pytest.approx(expected, rel=1e-12)


def test_inception_score_lies_between_one_and_the_number_of_classes():
    assert inception_score(torch.ones(100, 10)) == pytest.approx((1, 0))
    sure = torch.eye(10).repeat(10, 1) * 1000  # p is 0 to the last bit in nine of ten
    assert inception_score(sure, splits=1)[0] == pytest.approx(10)
    with pytest.raises(ConfigError, match="over 10 splits needs at least 10 images, got 9"):
        inception_score(torch.ones(9, 10))


# How sure a distance is


def truth(mean: float, deviation: float, d: int) -> float:
    return d * mean**2 + d * (1 - deviation) ** 2


def standard(d: int) -> FeatureStatistics:
    return FeatureStatistics(10**6, torch.zeros(d).double(), torch.eye(d).double())


def test_extrapolation_comes_closer_to_the_true_distance():
    true = truth(0.1, 1.2, D)
    for seed in range(5):
        fake = normal(1000, seed=seed) * 1.2 + 0.1
        plain = frechet_distance(standard(D), statistics_of(fake))
        infinite = frechet_infinity(standard(D), fake, seed=seed)
        assert plain > true and abs(infinite - true) < 0.6 * abs(plain - true)


def test_extrapolation_takes_even_sizes_from_half_or_5000_or_a_tenth(monkeypatch):
    taken = []
    monkeypatch.setattr(sample_metrics, "statistics_of", lambda features: taken.append(len(features)))
    monkeypatch.setattr(sample_metrics, "frechet_distance", lambda real, fake: 3.0 + 100 / taken[-1])
    for n, first in ((100, 50), (20_000, 5000), (60_000, 6000)):
        taken.clear()
        assert frechet_infinity(None, torch.empty(n, 0)) == pytest.approx(3)
        assert (taken[0], taken[-1], len(taken)) == (first, n, 15)
        assert max(np.diff(taken)) - min(np.diff(taken)) <= 1
    with pytest.raises(ConfigError, match="over 15 sizes needs at least 30 images, got 29"):
        frechet_infinity(None, torch.empty(29, 0))


@pytest.mark.parametrize("n", [20, 200])
def test_resampled_rows_weigh_as_their_copies_do(n):
    real, fake = statistics_of(correlated(300)), correlated(n, seed=1)
    counts = torch.arange(n) % 4
    expected = frechet_distance(real, statistics_of(fake.repeat_interleave(counts, 0)))
    assert sample_metrics._weighted_distance(real, fake, counts) == pytest.approx(expected, rel=1e-9)


def test_interval_covers_the_true_distance_as_often_as_it_says():
    d, true = 4, truth(0.3, 1.3, 4)
    covered = 0
    for seed in range(100):
        fake = normal(200, d, seed) * 1.3 + 0.3
        low, high = frechet_interval(standard(d), fake, resamples=100, level=0.9, seed=seed)
        assert 0 <= low < high
        covered += low <= true <= high
    assert 80 <= covered <= 98


def test_interval_corrects_the_bias_of_few_images():
    fake = normal(60, seed=3)
    plain = frechet_distance(standard(D), statistics_of(fake))
    low, high = frechet_interval(standard(D), fake)
    assert low < high < plain


def test_what_is_random_depends_on_the_seed_alone():
    real, fake = statistics_of(correlated(100)), correlated(80, seed=1)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    figures = {
        "interval": lambda seed: frechet_interval(real, fake, resamples=5, seed=seed),
        "infinity": lambda seed: frechet_infinity(real, fake, points=5, seed=seed),
        "kernel": lambda seed: kernel_distance(fake, real.features, 5, 20, seed=seed),
        "score": lambda seed: inception_score(fake, seed=seed),
    }
    for figure in figures.values():
        assert figure(1) == figure(1) != figure(2)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
