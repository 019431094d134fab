"""Adversarial losses against the papers' formulas written out, their directions, accuracies and the ramp."""

import pytest
import torch

from vaegan.objectives.adversarial import LOSSES, THRESHOLDS, accuracy, ramp

KINDS = ["nonsaturating", "hinge", "least_squares", "wasserstein", "relativistic"]


def sigmoid(t):
    return 1 / (1 + torch.exp(-t))


PAPERS = {
    "nonsaturating": (lambda r, f: -sigmoid(r).log() - (1 - sigmoid(f)).log(), lambda r, f: -sigmoid(f).log()),
    "hinge": (
        lambda r, f: -torch.minimum(torch.zeros(()), r - 1) - torch.minimum(torch.zeros(()), -1 - f),
        lambda r, f: -f,
    ),
    "least_squares": (lambda r, f: (r - 1) ** 2 / 2 + f**2 / 2, lambda r, f: (f - 1) ** 2 / 2),
    "wasserstein": (lambda r, f: -(r - f), lambda r, f: -f),
    "relativistic": (lambda r, f: -sigmoid(r - f).log(), lambda r, f: -sigmoid(f - r).log()),
}


def logits(n=50):
    torch.manual_seed(0)
    return (torch.randn(n, dtype=torch.float64) * 3).requires_grad_(), (
        torch.randn(n, dtype=torch.float64) * 3
    ).requires_grad_()


def test_every_kind_is_tested_and_has_a_threshold():
    assert set(LOSSES) == set(KINDS) == set(THRESHOLDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("player", [0, 1])
def test_losses_are_those_of_the_papers_an_image(kind, player):
    real, fake = logits()
    value = LOSSES[kind][player](real, fake)
    assert value.shape == real.shape  # pairs, not every real with every fake
    torch.testing.assert_close(value, PAPERS[kind][player](real, fake))


@pytest.mark.parametrize("kind", KINDS)
def test_the_discriminator_raises_real_logits_and_lowers_fake_ones(kind):
    real, fake = logits()
    loss = LOSSES[kind].discriminator(real, fake).sum()
    g_real, g_fake = torch.autograd.grad(loss, [real, fake])
    if kind == "least_squares":  # aims at 1 and at 0 from either side
        assert torch.equal(g_real.sign(), (real - 1).sign()) and torch.equal(g_fake.sign(), fake.sign())
    elif kind == "hinge":  # no more beyond the margin
        assert torch.equal(g_real, -(real < 1).double()) and torch.equal(g_fake, (fake > -1).double())
    else:
        assert (g_real < 0).all() and (g_fake > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_raises_fake_logits(kind):
    real, fake = logits()
    g_real, g_fake = torch.autograd.grad(LOSSES[kind].generator(real, fake).sum(), [real, fake], allow_unused=True)
    if kind == "least_squares":
        assert torch.equal(g_fake.sign(), (fake - 1).sign())
    else:
        assert (g_fake < 0).all()
    assert (g_real is not None) == (kind == "relativistic")


def test_relativistic_losses_are_each_others_mirror_and_know_differences_only():
    real, fake = logits()
    d, g = LOSSES["relativistic"]
    torch.testing.assert_close(g(real, fake), d(fake, real))
    for loss in (d, g):
        torch.testing.assert_close(loss(real + 5, fake + 5), loss(real, fake))


@pytest.mark.parametrize("kind", KINDS)
def test_huge_logits_stay_finite(kind):
    real, fake = (
        torch.tensor([-1e4, 1e4, -1e4], requires_grad=True),
        torch.tensor([1e4, -1e4, -1e4], requires_grad=True),
    )
    for loss in LOSSES[kind]:
        value = loss(real, fake).sum()
        assert value.isfinite()
        (gradient,) = torch.autograd.grad(value, fake)
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "real", "fake", "expected"),
    [
        ("nonsaturating", [1.0, -1.0, 0.3, 2.0], [-1.0, 0.2, -3.0, -0.1], (0.75, 0.75)),
        ("hinge", [0.1, -0.1], [0.1, -0.1], (0.5, 0.5)),
        ("least_squares", [0.6, 0.4, 1.2, 0.9], [0.4, 0.1, 0.7, -1.0], (0.75, 0.75)),
        ("wasserstein", [5.0, 7.0, 9.0, 3.0], [1.0, 2.0, 8.0, -3.0], (0.75, 0.75)),  # midpoint 4
        ("relativistic", [-5.0, -4.0], [-9.0, -8.0], (1.0, 1.0)),
    ],
)
def test_accuracy_counts_images_on_their_side(kind, real, fake, expected):
    got = accuracy(kind, torch.tensor(real), torch.tensor(fake))
    assert tuple(share.item() for share in got) == expected
    swapped = accuracy(kind, torch.tensor(fake), torch.tensor(real))
    assert swapped[0] < 0.5 or expected[0] == 0.5


@pytest.mark.parametrize("kind", ["wasserstein", "relativistic"])
def test_accuracy_without_a_threshold_ignores_a_shift(kind):
    real, fake = (t.detach() for t in logits())
    assert accuracy(kind, real, fake) == accuracy(kind, real + 100, fake + 100)


def test_ramp_at_chosen_steps():
    assert [ramp(step, 3, 4) for step in range(9)] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [ramp(step, 2, 0) for step in range(4)] == [0, 0, 1, 1]
    assert ramp(0, 0, 0) == 1
