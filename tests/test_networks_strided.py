"""The convolutions of stride 2 against torch's own, gradients and their gradients included."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from vaegan.networks import strided
from vaegan.networks.strided import StridedConv2d, StridedConvTranspose2d

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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("direction, channels", [
    ("down", (1, 8)), ("down", (3, 8)), ("down", (8, 16)), ("up", (8, 1)), ("up", (8, 3)), ("up", (16, 8)),
])  # fmt: skip
@pytest.mark.parametrize("precision, tolerance", [(contextlib.nullcontext(), 1e-5), (BFLOAT16, 3e-2)])
def test_same_as_torch(direction, channels, bias, precision, tolerance, layout):
    mine, theirs, x = pair(direction, channels, bias)
    with precision:
        found = derivatives(mine.to(memory_format=layout), x)
    with torch.no_grad(), precision:
        torch.testing.assert_close(mine(x), found[0].detach(), rtol=tolerance, atol=tolerance)
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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("precision", [contextlib.nullcontext(), BFLOAT16])
def test_maps_and_gradients_lie_in_memory_as_the_weights_do(precision, layout):
    """A change of layout costs as much as an activation; of gradients, DistributedDataParallel warns of it."""
    mine = nn.Sequential(StridedConv2d(1, 8), nn.LeakyReLU(0.2, inplace=True), StridedConv2d(8, 16))
    mine.to(memory_format=layout)
    x = torch.randn(4, 1, 16, 16, requires_grad=True)
    with precision:
        mine(x).float().sum().backward()
        for layer in (mine[0], mine[2]):
            assert layer.weight.grad.stride() == layer.weight.stride()
        maps, seen = mine[0](x), []
        maps.register_hook(lambda g: seen.append(g.stride()))
        y = mine[1:](maps)
    assert y.is_contiguous(memory_format=layout)
    (g_x,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    g_x.square().sum().backward()
    assert len(seen) == 2 and set(seen) == {torch.empty(maps.shape).to(memory_format=layout).stride()}


def test_the_weights_layout_outlives_copies_and_loading():
    """For one channel both layouts are contiguous to torch, which could write either."""
    layer = nn.Sequential(StridedConv2d(1, 8)).to(memory_format=torch.channels_last)
    layer.load_state_dict(nn.Sequential(StridedConv2d(1, 8)).state_dict())
    for one in (layer, copy.deepcopy(layer)):
        assert not one(torch.randn(2, 1, 8, 8)).is_contiguous()


@pytest.mark.parametrize("channels", [(8, 16), (1, 8)])
def test_frozen_weights_get_no_gradient(channels):
    mine, _, x = pair("down", channels, True)
    mine.requires_grad_(False)
    with BFLOAT16:
        mine(x).sum().backward()
    assert x.grad is not None and mine.weight.grad is None


@pytest.mark.parametrize("channels, name", [((8, 16), "_weight_gradient"), ((1, 8), "_product_weight_gradient")])
def test_a_gradient_penalty_computes_no_gradient_of_the_weights_that_it_throws_away(monkeypatch, channels, name):
    calls, usual = [], getattr(strided, name)
    monkeypatch.setattr(strided, name, lambda *of: calls.append(1) or usual(*of))
    mine, _, x = pair("down", channels, True)
    with BFLOAT16:
        y = mine(x).float()
    (g_x,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    assert not calls
    (g_x.square().sum() + y.sum()).backward()  # the penalty's and the output's
    assert calls == [1, 1] and mine.weight.grad.isfinite().all()
