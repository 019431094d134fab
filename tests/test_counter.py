"""Counted random numbers: known answers, uniform and normal statistics, and what a number may depend on."""

import math

import pytest
import torch

from vaegan import counter

KEY = counter.key(0, "test")
N = 100_000
BOUND = 5 / math.sqrt(N)  # five standard deviations of a correlation of independent numbers


def correlation(a, b) -> float:
    return torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1].item()


def distance_to(cdf, sample) -> float:
    """Kolmogorov's statistic."""
    ordered = cdf(sample.double().sort().values)
    steps = torch.arange(len(sample) + 1).double() / len(sample)
    return torch.maximum((ordered - steps[:-1]).abs().max(), (ordered - steps[1:]).abs().max()).item()


def test_numbers_are_those_of_splitmix64():
    published = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)  # the generator's first three from seed 0
    u = counter.uniform(torch.tensor([0]), 4, 0)[0, 1:].double()
    assert u.tolist() == [((word >> 41) + 0.5) * 2.0**-23 for word in published]


def test_uniform_numbers_lie_strictly_inside_and_on_a_symmetric_grid():
    u = counter.uniform(torch.arange(N), 1, KEY)
    assert u.shape == (N, 1) and u.dtype == torch.float32
    numerators = u.double() * 2**24  # odd: neither 0 nor 2^24 can occur
    assert torch.equal(numerators % 2, torch.ones_like(numerators)) and u.min() > 0 and u.max() < 1


@pytest.mark.parametrize("along", ["rows", "columns", "keys"])
def test_uniform_statistics_and_independence(along):
    if along == "rows":
        u = counter.uniform(torch.arange(N), 1, KEY)[:, 0]
    elif along == "columns":
        u = counter.uniform(torch.tensor([7]), N, KEY)[0]
    else:
        u = torch.cat([counter.uniform(torch.tensor([3]), 1, counter.key(0, "x", step))[0] for step in range(4000)])
    n = len(u)
    assert abs(u.double().mean() - 0.5) < 5 / math.sqrt(12 * n)
    assert abs(u.double().var() - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    assert distance_to(lambda x: x, u) < 2 / math.sqrt(n)
    for lag in (1, 2, 3):
        assert abs(correlation(u[:-lag], u[lag:])) < 5 / math.sqrt(n)
    cells = (u[:-1] * 16).long() * 16 + (u[1:] * 16).long()
    expected = (n - 1) / 256
    chi2 = (torch.bincount(cells, minlength=256) - expected).square().sum() / expected
    assert abs(chi2 - 255) < 6 * math.sqrt(2 * 255)


def test_neighbouring_steps_share_nothing():
    rows = torch.arange(N)
    a, b = (counter.uniform(rows, 1, counter.key(0, "noise", step))[:, 0] for step in (0, 1))
    for lag in (0, 1, 1000):
        assert abs(correlation(a[: N - lag], b[lag:])) < BOUND
    raw = counter.uniform(rows, 1, KEY + 1)[:, 0]  # even keys that are neighbours as integers
    assert abs(correlation(counter.uniform(rows, 1, KEY)[:, 0], raw)) < BOUND


@pytest.mark.parametrize("draw", [counter.uniform, counter.normal])
def test_a_number_depends_on_its_row_not_on_the_batch(draw):
    rows = torch.tensor([5, 0, 10**9, 17, 2**40, 3])
    full = draw(rows, 5, KEY)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    assert torch.equal(draw(rows[order], 5, KEY), full[order])
    assert torch.equal(torch.cat([draw(row[None], 5, KEY) for row in rows]), full)
    assert torch.equal(draw(rows, 5, KEY), full)
    torch.manual_seed(1)
    assert torch.equal(draw(rows, 5, KEY), full)
    assert len({tuple(row) for row in full.tolist()}) == len(rows)
    assert draw(rows[:0], 5, KEY).shape == (0, 5)


@pytest.mark.parametrize("draw", [counter.uniform, counter.normal])
def test_a_number_does_not_depend_on_how_many_columns_are_drawn(draw):
    rows = torch.arange(6)
    assert torch.equal(draw(rows, 8, KEY)[:, :3], draw(rows, 3, KEY))


def test_rows_do_not_share_their_columns():
    u = counter.uniform(torch.arange(300), 300, KEY).double()
    pairs = u[:, :-1] + u[:, 1:] * 2**24  # two neighbours identify a place: no row continues another
    assert pairs.unique().numel() == pairs.numel()


def test_normal_moments_and_distribution():
    z = counter.normal(torch.arange(N // 2), 2, KEY).double()
    flat = z.flatten()
    assert z.shape == (N // 2, 2)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(flat.pow(power).mean() - moment) < 5 * math.sqrt(variance / N)
    assert distance_to(lambda x: 0.5 * (1 + torch.erf(x / math.sqrt(2))), flat) < 2 / math.sqrt(N)
    for column in z.unbind(1):
        assert abs(column.mean()) < 5 / math.sqrt(N / 2) and abs(column.var() - 1) < 5 * math.sqrt(2 / (N / 2))


@pytest.mark.parametrize("columns", [2, 3, 8])
def test_normal_columns_are_independent(columns):
    z = counter.normal(torch.arange(N), columns, KEY).double()
    assert z.shape == (N, columns)
    off_diagonal = ~torch.eye(columns, dtype=torch.bool)
    for values in (z, z.square(), z.abs()):  # a pair of Box and Muller's shares its radius
        assert torch.corrcoef(values.T)[off_diagonal].abs().max() < BOUND


@pytest.mark.parametrize("extreme", [2.0**-24, 1 - 2.0**-24])
def test_normal_is_finite_and_bounded_at_the_extremes(monkeypatch, extreme):
    monkeypatch.setattr(counter, "uniform", lambda rows, columns, key: torch.full((len(rows), columns), extreme))
    z = counter.normal(torch.arange(3), 4, KEY)
    assert z.isfinite().all() and z.abs().max() <= 5.77
    if extreme < 0.5:
        assert z.abs().max() > 5.76


def test_keys_differ_wherever_a_part_differs():
    parts = [(), (0,), (1,), (0, 0), ("0",), (0, "a"), ("a", 0), (0, "a", 1), (0, "a", 2), (1, "a", 1), ("ab", "c"),
             ("a", "bc"), ("abc",), (1, 23), (12, 3), (-1,), (0, "b", 1), (2**40,)]  # fmt: skip
    keys = [counter.key(*part) for part in parts]
    assert len(set(keys)) == len(parts)
    assert keys == [counter.key(*part) for part in parts]
    assert all(-(2**63) <= key < 2**63 for key in keys) and min(keys) < 0 < max(keys)
    many = [counter.key(seed, "order", step) for seed in range(20) for step in range(500)]
    assert len(set(many)) == len(many)
    assert len({key & 0xFFFF for key in many}) > 0.85 * 65536 * (1 - math.exp(-len(many) / 65536))


def test_a_key_is_the_same_in_every_version():
    assert counter.key(0, "sample") == 6744385113216751642


def test_a_permutation_is_the_same_in_every_version():
    order = counter.permutation(12, counter.key(0, "order", 0))
    assert order.tolist() == [3, 2, 0, 4, 10, 9, 8, 1, 6, 5, 11, 7]


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_a_permutation_holds_each_index_once(n):
    order = counter.permutation(n, KEY)
    assert order.dtype == torch.int64 and torch.equal(order.sort().values, torch.arange(n))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert torch.equal(counter.permutation(n, KEY), order)
    assert torch.equal(torch.get_rng_state(), state)


def test_permutations_are_uniform_over_keys():
    orders = torch.stack([counter.permutation(3, counter.key(0, "order", epoch)) for epoch in range(3000)])
    counts = torch.bincount(orders @ torch.tensor([9, 3, 1]), minlength=27)
    counts = counts[counts > 0]
    assert len(counts) == 6
    assert ((counts - 500).square().sum() / 500).item() < 25  # chi-squared of 5 degrees: 20.5 at a thousandth
    big = [counter.permutation(1000, counter.key(0, "order", epoch)) for epoch in range(20)]
    assert all((a != b).float().mean() > 0.98 for a, b in zip(big, big[1:]))
