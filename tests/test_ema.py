"""The moving average of the weights in closed form."""

import pytest
import torch
from torch import nn

from vaegan.training.ema import EMA


def set_weights(module, value):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


def test_updates_follow_the_closed_form():
    module = nn.Linear(2, 3).double()
    set_weights(module, 5.0)
    ema, expected = EMA(module, 0.5), 5.0
    values = [1.0, -2.0, 0.5, 3.0, 3.0, 8.0, -1.0, 0.25, 4.0, 2.0, 7.0]
    for t, value in enumerate(values):
        set_weights(module, value)
        ema.update()
        d = min(0.5, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * value
        for parameter in ema.module.parameters():
            torch.testing.assert_close(parameter, torch.full_like(parameter, expected), check_dtype=False)
    assert ema.updates == len(values)


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999])
def test_weights_of_all_updates_add_up_to_one(decay):
    """A constant is kept, and an impulse has the weight (1 - d_s) times the product of the later decays."""
    module = nn.Linear(1, 1, bias=False).double()
    steps, impulse = 300, 40
    set_weights(module, 1.0)
    constant = EMA(module, decay)
    set_weights(module, 0.0)
    pulsed = EMA(module, decay)
    decays = [min(decay, (1 + t) / (10 + t)) for t in range(steps)]
    for t in range(steps):
        set_weights(module, 1.0)
        constant.update()
        set_weights(module, float(t == impulse))
        pulsed.update()
    assert constant.module.weight.item() == pytest.approx(1)
    expected = (1 - decays[impulse]) * torch.tensor(decays[impulse + 1 :], dtype=torch.float64).prod().item()
    assert pulsed.module.weight.item() == pytest.approx(expected, rel=1e-9)


def test_the_random_start_is_soon_forgotten():
    module = nn.Linear(1, 1, bias=False)
    set_weights(module, 100.0)
    ema = EMA(module, 0.9999)
    set_weights(module, 0.0)
    for _ in range(50):
        ema.update()
    assert 0 <= ema.module.weight.item() < 1e-4


def test_buffers_are_copied_and_the_copy_stands_apart():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = EMA(module, 0.9)
    module(torch.randn(8, 2))  # moves the running statistics and counts a batch
    ema.update()
    for mine, theirs in zip(ema.module.buffers(), module.buffers()):
        assert torch.equal(mine, theirs) and mine.data_ptr() != theirs.data_ptr()
    assert not ema.module.training and module.training
    assert not any(p.requires_grad for p in ema.module.parameters()) and all(
        p.requires_grad for p in module.parameters()
    )
    before = [p.clone() for p in module.parameters()]
    set_weights(ema.module, 3.0)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters()))


def test_an_update_leaves_no_gradient_and_keeps_the_memory_layout():
    module = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    ema = EMA(module, 0.9)
    module(torch.randn(1, 4, 8, 8)).sum().backward()
    gradient = module.weight.grad.clone()
    ema.update()
    assert torch.equal(module.weight.grad, gradient) and ema.module.weight.grad is None
    assert ema.module.weight.stride() == module.weight.stride()
