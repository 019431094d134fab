"""The torchmetrics: equal to the functions, to torchmetrics' own, and to themselves over processes."""

import itertools
import math

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance

from vaegan.config import ConfigError
from vaegan.evaluation.distances import frechet_distance, statistics_of
from vaegan.evaluation.metrics import FrechetDistance, KernelDistance, PrecisionRecall
from vaegan.evaluation.precision_recall import precision_recall
from vaegan.evaluation.sample_metrics import kernel_distance

D = 12
pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
KINDS = {
    "frechet": FrechetDistance,
    "kernel": lambda extractor, **kwargs: KernelDistance(extractor, subsets=3, subset_size=20, **kwargs),
    "precision": PrecisionRecall,
}


class Network(nn.Module):
    """A small feature network: uint8 images to (B, 12), far from 0 as activations are."""

    num_features = D

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(D, 3, 4, 4, generator=generator) / 4)
        self.calls = 0

    @torch.no_grad()
    def forward(self, images):
        self.calls += 1
        return nn.functional.conv2d(images.float() / 127.5, self.weight, stride=4).relu().mean((2, 3)) + 3


@pytest.fixture
def network():
    return Network()


def pictures(n: int, seed: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


REAL, FAKE = pictures(90, 0), pictures(70, 1, 30, 200)


def fed(metric, real=REAL, fake=FAKE, batch: int = 32):
    for images, is_real in ((real, True), (fake, False)):
        for part in images.split(batch):
            metric.update(part, real=is_real)
    return metric


def values(result) -> list[float]:
    if isinstance(result, dict):
        return [value.item() for value in result.values()]
    return [value.item() for value in (result if isinstance(result, tuple) else (result,))]


def by_function(kind: str, real, fake) -> list[float]:
    if kind == "frechet":
        return [frechet_distance(statistics_of(real), statistics_of(fake))]
    if kind == "kernel":
        return list(kernel_distance(real, fake, subsets=3, subset_size=20))
    return list(precision_recall(real, fake).values())


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_function_of_the_features(kind, network):
    metric = fed(KINDS[kind](network))
    assert values(metric.compute()) == pytest.approx(by_function(kind, network(REAL), network(FAKE)), rel=1e-6)


def test_frechet_distance_equals_that_of_torchmetrics(network):
    theirs = FrechetInceptionDistance(network)
    ours = FrechetDistance(network)
    assert fed(ours).compute().item() == pytest.approx(fed(theirs).compute().item(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_floats_are_rounded_and_clamped(kind, network):
    metric, as_float = KINDS[kind](network), KINDS[kind](network)
    exact = (REAL.float() / 127.5 - 1, FAKE.float() / 127.5 - 1)
    noisy = [(x + (torch.rand(x.shape) - 0.5) / 160).half().double() for x in exact]
    noisy[0][:, 0, 0, 0], noisy[1][:, 0, 0, 0] = 1.5, -7.0
    clamped = REAL.clone(), FAKE.clone()
    clamped[0][:, 0, 0, 0], clamped[1][:, 0, 0, 0] = 255, 0
    assert values(fed(as_float, *noisy).compute()) == values(fed(metric, *clamped).compute())
    with pytest.raises(ConfigError, match=r"must be uint8, or floating-point in \[-1, 1\], got torch.int64"):
        metric.update(REAL.long(), real=True)


def on_processes(metrics):
    """The first metric, for which `sync` finds the others on other processes."""
    names = itertools.cycle(["real", "fake"])

    def gather(tensor, group=None):
        name = next(names)
        states = [getattr(metric, name) for metric in metrics]
        return [state if isinstance(state, torch.Tensor) else torch.cat(state) for state in states]

    metrics[0].dist_sync_fn, metrics[0].distributed_available_fn = gather, lambda: True
    return metrics[0]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(kind, network):
    parts = [fed(KINDS[kind](network), real, fake, 7) for real, fake in zip(REAL.split([60, 30]), FAKE.split([1, 69]))]
    alone = parts[0]._copy_state_dict()
    whole = fed(KINDS[kind](network), batch=100)
    assert values(on_processes(parts).compute()) == pytest.approx(values(whole.compute()), rel=1e-6)
    for name, state in alone.items():  # its own are back
        assert torch.equal(torch.cat(list(getattr(parts[0], name))), torch.cat(list(state)))


def test_moments_merge_exactly_even_where_a_process_has_none(network):
    def far(images):
        return network(images) + 1e4

    parts = [FrechetDistance(far, dim=D), fed(FrechetDistance(far, dim=D))]
    whole = fed(FrechetDistance(far, dim=D), batch=9)
    merged = on_processes(parts)
    merged.sync(dist_sync_fn=merged.dist_sync_fn)
    for name in ("real", "fake"):
        one, other = getattr(whole, name), getattr(merged, name)
        assert one[0, 0] == other[0, 0] and torch.allclose(one[0], other[0], rtol=1e-14)
        assert (one[1:, 1:] - other[1:, 1:]).abs().max() < 1e-11 * one[1:, 1:].abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_extractor_stays_outside(kind, network):
    metric = fed(KINDS[kind](network))
    assert metric.state_dict() == {} and not list(metric.parameters()) and len(list(metric.modules())) == 1
    calls = network.calls
    copy = metric.clone()
    fed(copy)
    assert network.calls > calls  # of the same network, not a copy of it
    assert values(metric.compute()) == values(fed(KINDS[kind](network)).compute())  # and the copy's states are its own


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [False, True])
def test_reset_forgets_the_generated_images_and_the_real_ones_if_asked(kind, keep, network):
    metric = fed(KINDS[kind](network, reset_real_features=not keep))
    expected = values(metric.compute())
    metric.reset()
    with pytest.raises(ConfigError, match="at least"):
        metric.compute()
    if not keep:
        fed(metric, fake=FAKE[:0])
    for part in FAKE.split(32):
        metric.update(part, real=False)
    assert values(metric.compute()) == expected


def test_a_collection_gives_every_figure(network):
    collection = MetricCollection({kind: build(network) for kind, build in KINDS.items()}).to("cpu")
    for _ in range(2):
        fed(collection)
        figures = collection.compute()
        assert set(figures) == {"frechet", "kernel", "precision", "recall", "f1", "density", "coverage"}
        assert figures["frechet"].item() == pytest.approx(by_function("frechet", network(REAL), network(FAKE))[0])
        assert values(figures["kernel"]) == pytest.approx(by_function("kernel", network(REAL), network(FAKE)))
        collection.reset()


def test_a_bad_feature_names_its_batch(network):
    def bad(images):
        return network(images) * (math.nan if len(images) == 10 else 1)

    for build in KINDS.values():
        metric = fed(build(bad))  # 6 updates
        with pytest.raises(ConfigError, match="features of batch 6 are not finite in 10 of 10 images"):
            metric.update(REAL[:10], real=True)


def test_a_figure_needs_images_of_both_kinds(network):
    metric = FrechetDistance(network)
    with pytest.raises(ConfigError, match="at least 2 images, got 0"):
        metric.compute()
    with pytest.raises(ConfigError, match=r"must be \(images, 5\), got \(32, 12\)"):
        fed(FrechetDistance(network, dim=5))
    nowhere = on_processes([FrechetDistance(network), FrechetDistance(network)])
    nowhere.sync(dist_sync_fn=nowhere.dist_sync_fn)
    assert nowhere.real.isfinite().all()


def test_metrics_tell_what_is_better():
    assert (FrechetDistance.higher_is_better, KernelDistance.higher_is_better) == (False, False)
    assert PrecisionRecall.higher_is_better
    for metric in (FrechetDistance, KernelDistance, PrecisionRecall):
        assert metric.is_differentiable is False and metric.full_state_update is False
