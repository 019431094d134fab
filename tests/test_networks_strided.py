"""The convolutions of stride 2 against torch's own, gradients and their gradients included."""

import contextlib

import pytest
import torch
from torch import nn

from vaegan.networks import strided
from vaegan.networks.strided import StridedConv2d, StridedConvTranspose2d, _weight_gradient

BFLOAT16 = torch.autocast("cpu", torch.bfloat16)
PAIRS = {"down": (StridedConv2d, nn.Conv2d, 8), "up": (StridedConvTranspose2d, nn.ConvTranspose2d, 4)}


def pair(direction: str, channels: tuple[int, int], bias: bool):
    """Our layer and torch's, with the same weights, and an input."""
    torch.manual_seed(0)
    mine, theirs, size = PAIRS[direction]
    mine, theirs = mine(*channels, bias), theirs(*channels, 4, 2, 1, bias=bias)
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs, torch.randn(6, channels[0], size, size, requires_grad=True)


def derivatives(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, first derivatives, and the second ones that a gradient penalty takes."""
    y = layer(x)
    weights = torch.arange(y.numel()).view(y.shape).remainder(5).sub(2) / 4
    (g_x,) = torch.autograd.grad((y.float() * weights).sum() + (y.float() ** 3).mean(), x, create_graph=True)
    penalty = torch.autograd.grad(g_x.square().sum(), [layer.weight, x], retain_graph=True)
    return [y, g_x, *torch.autograd.grad((y * weights).sum(), list(layer.parameters())), *penalty]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("direction, channels", [
    ("down", (1, 8)), ("down", (3, 8)), ("down", (8, 16)), ("up", (8, 1)), ("up", (8, 3)), ("up", (16, 8)),
])  # fmt: skip
@pytest.mark.parametrize("precision, tolerance", [(contextlib.nullcontext(), 1e-5), (BFLOAT16, 3e-2)])
def test_same_as_torch(direction, channels, bias, precision, tolerance):
    mine, theirs, x = pair(direction, channels, bias)
    with precision:
        found = derivatives(mine, x)
    expected = derivatives(theirs, x)  # in float32
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("direction, channels", [("down", (1, 8)), ("down", (8, 16)), ("up", (8, 1)), ("up", (16, 8))])
def test_bfloat16_is_as_close_as_torchs_own(direction, channels):
    mine, theirs, x = pair(direction, channels, False)
    exact = derivatives(theirs, x)
    with BFLOAT16:
        found, usual = derivatives(mine, x), derivatives(theirs, x)
    for a, b, c in zip(found, usual, exact, strict=True):
        assert (a - c).norm() <= 1.5 * (b - c).norm() + 1e-6 * c.norm()


def test_frozen_weights_get_no_gradient():
    mine, _, x = pair("down", (8, 16), True)
    mine.requires_grad_(False)
    with BFLOAT16:
        mine(x).sum().backward()
    assert x.grad is not None and mine.weight.grad is None


def test_a_gradient_penalty_computes_no_gradient_of_the_weights_that_it_throws_away(monkeypatch):
    calls = []
    monkeypatch.setattr(strided, "_weight_gradient", lambda *of: calls.append(1) or _weight_gradient(*of))
    mine, _, x = pair("down", (8, 16), True)
    with BFLOAT16:
        y = mine(x).float()
    (g_x,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    assert not calls
    (g_x.square().sum() + y.sum()).backward()  # the penalty's and the output's
    assert calls == [1, 1] and mine.weight.grad.isfinite().all()
