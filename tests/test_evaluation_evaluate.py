"""One pass over a source, and what its features give."""

import pytest
import torch
from torch import nn

from vaegan.config import ConfigError
from vaegan.evaluation import evaluate
from vaegan.evaluation.distances import frechet_distance, statistics_of
from vaegan.evaluation.features import Extractor, load_extractor
from vaegan.evaluation.precision_recall import precision_recall
from vaegan.evaluation.sample_metrics import inception_score, kernel_distance
from vaegan.evaluation.shares import Shares
from vaegan.evaluation.sources import ArraySource


def features(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_every_figure_is_its_functions():
    real, fake, classifier = (
        features(40, 0),
        features(30, 1),
        torch.randn(7, 5, generator=torch.Generator().manual_seed(2)),
    )
    figures = evaluate.compare(statistics_of(real), statistics_of(fake), "FD", classifier)
    score = inception_score(fake @ classifier.T)
    expected = {"FD": frechet_distance(statistics_of(real), statistics_of(fake)), **precision_recall(real, fake)}
    expected |= dict(zip(("inception_score", "inception_score_std"), score, strict=True))
    expected |= dict(zip(("kid", "kid_std"), kernel_distance(real, fake, subset_size=15), strict=True))
    assert figures == expected


@pytest.mark.parametrize(
    ("n", "left_out"),
    [(3, {"kid", "precision", "inception_score"}), (5, {"precision", "inception_score"}), (9, {"inception_score"}), (10, set())],
)  # fmt: skip
def test_what_a_set_is_too_small_for_is_left_out(n, left_out):
    figures = evaluate.compare(statistics_of(features(50, 0)), statistics_of(features(n, 1)), "FD", torch.eye(5))
    assert {"FD", "kid", "precision", "inception_score"} - figures.keys() == left_out


def test_features_that_are_not_finite_are_told_by_batch():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.where(x.mean((2, 3)) > 254, torch.nan, x.mean((2, 3)))

    extractor = Extractor(
        "broken", Broken(), weights="0", label="FD[broken]", resizer="none", input_size=None, device=torch.device("cpu")
    )
    x = images(40)
    x[25] = 255
    with pytest.raises(ConfigError, match="batch 2 are not finite in 1 of 10 images"):
        evaluate.extract(ArraySource(x), extractor, batch_size=10)


def test_large_sets_keep_some_features_and_the_moments_of_all():
    extractor, x = load_extractor("tiny_extractor:build"), images(37)
    whole = evaluate.extract(ArraySource(x), extractor, batch_size=8)
    thinned = evaluate.extract(ArraySource(x), extractor, batch_size=8, kept=10)
    assert whole.n == thinned.n == 37 and torch.equal(whole.covariance, thinned.covariance)
    assert torch.equal(thinned.features, whole.features[::4])


def test_progress_counts_each_image_once():
    extractor, seen = load_extractor("tiny_extractor:build"), []
    for rank in range(3):
        shares = Shares(rank, 3, lambda tensor: tensor)  # each process by itself
        evaluate.extract(ArraySource(images(37)), extractor, shares, batch_size=5, progress=seen.append)
    assert sum(seen) == 37 and seen.count(2) == 1
