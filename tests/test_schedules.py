"""Learning rates in closed form."""

import math

import pytest

from vaegan.training.schedules import learning_rate_factor

KINDS = ["constant", "linear", "cosine"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_warm_up_is_linear_and_ends_at_one(kind):
    factors = [learning_rate_factor(step, 100, kind, 5) for step in range(6)]
    assert factors == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]


@pytest.mark.parametrize("warmup", [0, 4, 20])
def test_courses_in_closed_form(warmup):
    total = 100
    for step in range(warmup, total + 30):
        share = min(1, (step - warmup) / (total - warmup))
        assert learning_rate_factor(step, total, "constant", warmup) == 1
        assert learning_rate_factor(step, total, "linear", warmup) == pytest.approx(1 - share)
        assert learning_rate_factor(step, total, "cosine", warmup) == pytest.approx(
            math.cos(math.pi * share / 2) ** 2, abs=1e-12
        )


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_courses_fall_to_zero_at_the_end_and_halve_in_the_middle(kind):
    factors = [learning_rate_factor(step, 80, kind, 0) for step in range(81)]
    assert factors[0] == 1 and factors[40] == pytest.approx(0.5) and factors[80] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in zip(factors, factors[1:])) and factors[79] > 0  # the last step still learns


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (5, 5), (5, 9), (3, 2)])
def test_short_runs_stay_in_range(kind, total, warmup):
    factors = [learning_rate_factor(step, total, kind, warmup) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
