"""Precision, recall, density and coverage against the reference packages, cases made by hand, and ties."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vaegan.config import ConfigError
from vaegan.evaluation.precision_recall import precision_recall


def normal(n: int, d: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def by_loops(real, fake, k, k_density):
    """The definitions, in float64, with differences instead of products."""

    def distance(a, b):
        return (a.double() - b.double()).norm().item()

    radii = {}
    for name, x in (("real", real), ("fake", fake)):
        ordered = [sorted(distance(x[i], x[j]) for j in range(len(x)) if j != i) for i in range(len(x))]
        radii[name] = ordered
    cross = [[distance(r, f) for f in fake] for r in real]
    n, m = len(real), len(fake)
    wide = [[cross[i][j] <= radii["real"][i][k_density - 1] for j in range(m)] for i in range(n)]
    precision = sum(any(cross[i][j] <= radii["real"][i][k - 1] for i in range(n)) for j in range(m)) / m
    recall = sum(any(cross[i][j] <= radii["fake"][j][k - 1] for j in range(m)) for i in range(n)) / n
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "density": sum(map(sum, wide)) / (k_density * m),
        "coverage": sum(map(any, wide)) / n,
    }


@pytest.mark.parametrize(("k", "k_density"), [(3, 5), (4, 2), (1, 1)])
def test_equals_the_definitions(k, k_density):
    real, fake = normal(40, 3), normal(30, 3, 1) * 0.8 + 0.3
    assert precision_recall(real, fake, k=k, k_density=k_density) == pytest.approx(by_loops(real, fake, k, k_density))


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_equals_torch_fidelity(offset):
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    real, fake = normal(500, 8), normal(600, 8, 1) * 0.8 + 0.4
    theirs = prc.prc_features_to_metric(
        fake.double(), real.double(), prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=False, verbose=False
    )
    ours = precision_recall(real + offset, fake + offset, block=128)
    assert [ours["precision"], ours["recall"], ours["f1"]] == pytest.approx(
        [theirs["precision"], theirs["recall"], theirs["f_score"]], abs=1e-6 if not offset else 5e-3
    )
    assert 0.2 < ours["recall"] < ours["precision"] < 0.99


@pytest.mark.parametrize("k", [3, 5])
def test_equals_prdc(k):
    prdc = pytest.importorskip("prdc")
    real, fake = normal(400, 8), normal(300, 8, 2) * 0.8 + 0.4  # no pair is as close to a tie as float32 rounds
    theirs = prdc.compute_prdc(real.numpy(), fake.numpy(), k)
    ours = precision_recall(real, fake, k=k, k_density=k)
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-7)


def test_sets_without_anything_in_common_score_zero():
    figures = precision_recall(normal(30), normal(40, seed=1) + 100)
    assert figures == {"precision": 0, "recall": 0, "f1": 0, "density": 0, "coverage": 0}


def test_a_set_and_itself_score_one():
    figures = precision_recall(normal(50), normal(50))
    assert [figures[name] for name in ("precision", "recall", "f1", "coverage")] == [1, 1, 1, 1]
    assert figures["density"] == pytest.approx(6 / 5)  # its own copy and five neighbours


def test_a_collapsed_generator_is_precise_but_recalls_little():
    real = normal(200)
    figures = precision_recall(real, real[:1] + 0.01 * normal(100, seed=1))
    assert figures["precision"] == 1 and figures["recall"] < 0.05 and figures["coverage"] < 0.2


@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_the_block_does_not_matter(block):
    real, fake = normal(90), normal(110, seed=1) + 0.2
    assert precision_recall(real, fake, block=block) == precision_recall(real, fake)


@pytest.mark.parametrize("offset", [0.0, 0.1, 1e3])
@pytest.mark.parametrize("block", [3, 2048])
def test_sets_without_any_difference_are_inside_each_other(offset, block):
    constant = torch.full((20, 100), 1 / 3) + offset
    figures = precision_recall(constant, constant[:12], block=block)
    assert figures == {"precision": 1, "recall": 1, "f1": 1, "density": 4, "coverage": 1}  # all 20 balls hold all


@pytest.mark.parametrize("block", [5, 2048])
def test_duplicates_are_neighbours_and_inside_balls_of_radius_zero(block):
    real = normal(10, 200).repeat_interleave(4, 0) * 5 + 1  # three duplicates each: the radius of precision is 0
    figures = precision_recall(real, real[::2], k=3, k_density=3, block=block)
    assert figures["precision"] == figures["coverage"] == 1
    assert figures["density"] == pytest.approx(4 / 3)
    assert precision_recall(real, real + 1e-1, k=3, k_density=3, block=block)["precision"] == 0


@pytest.mark.parametrize("block", [5, 2048])
def test_ties_at_the_radius_are_inside(block):
    real = torch.eye(60)[:20] * math.pi + 0.37  # all 2^½ π apart
    fake = torch.eye(60)[20:50] * math.pi + 0.37
    assert precision_recall(real, fake, block=block) == {
        "precision": 1, "recall": 1, "f1": 1, "density": 4, "coverage": 1,
    }  # fmt: skip


def test_an_image_is_not_its_own_neighbour():
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    figures = precision_recall(points, torch.tensor([[1.9], [12.1]]), k=1, k_density=1)
    assert figures["precision"] == 0.5 and figures["density"] == 0.5 and figures["coverage"] == 0.25


def test_other_float_types_are_taken():
    real, fake = normal(50), normal(60, seed=1)
    assert precision_recall(real.double(), fake.double()) == precision_recall(real, fake)
    assert 0 < precision_recall(real.bfloat16(), fake.bfloat16())["precision"] <= 1


def test_nothing_larger_than_a_block_is_made():
    """Of 50 000 features of 2048 dimensions, with blocks of 2048, this leaves 16 MiB a tensor."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            made = [
                t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t._base is None and t is not args[0]
            ]
            self.elements = max([self.elements, *(t.numel() for t in made)])
            return result

    real, fake = normal(1500, 100), normal(1200, 100, 1)
    with Largest() as largest:
        precision_recall(real, fake, block=128)
    assert largest.elements == 128 * (128 + 5)  # a block beside the nearest so far


def test_errors_are_clear():
    with pytest.raises(ConfigError, match="5 neighbours need at least 6 generated images, got 5"):
        precision_recall(normal(10), normal(5))
    with pytest.raises(ConfigError, match="at least 6 real images, got 5"):
        precision_recall(normal(5), normal(10))
    with pytest.raises(ConfigError, match="16 and 15 dimensions"):
        precision_recall(normal(10), normal(10, 15))
    bad = normal(10)
    bad[3, 3] = math.nan
    with pytest.raises(ConfigError, match="not finite"):
        precision_recall(normal(10), bad)
