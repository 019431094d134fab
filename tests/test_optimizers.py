"""The players' optimizers: decay and L1 on matrices alone, and a state whose resumption shows in no bit."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vaegan.training.optimizers import (
    add_l1_gradient,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    parameters_of,
    set_learning_rate,
)


class Network(nn.Module):
    """A kernel, a normalisation, a matrix and a scale."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 36, 4))
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.layers(x) * self.scale.exp()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def step(module, optimizer, i):
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(i))
    optimizer.zero_grad(set_to_none=True)
    module(x).square().sum().backward()
    optimizer.step()


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.0, 0.99)])
def test_a_resumed_optimizer_takes_the_same_steps_to_the_bit(tmp_path, layout, betas):
    module = Network().to(memory_format=layout)
    optimizer = build_optimizer(module, 1e-2, betas, 0.1)
    for i in range(3):
        step(module, optimizer, i)
    weights = {name: value.contiguous() for name, value in module.state_dict().items()}
    save_file(weights, tmp_path / "weights")
    save_file({k: v.contiguous() for k, v in optimizer_tensors(optimizer).items()}, tmp_path / "state")

    torch.manual_seed(5)
    resumed = Network().to(memory_format=layout)
    resumed.load_state_dict(load_file(tmp_path / "weights"))
    again = build_optimizer(resumed, 1e-2, betas, 0.1)
    load_optimizer_tensors(again, load_file(tmp_path / "state"))
    for parameter in resumed.parameters():
        for name, value in again.state[parameter].items():
            assert name == "step" or value.stride() == parameter.stride()
    for i in range(3, 7):
        step(module, optimizer, i)
        step(resumed, again, i)
        assert same(module, resumed)
    fresh = copy.deepcopy(resumed)  # a lost state would show
    step(fresh, build_optimizer(fresh, 1e-2, betas, 0.1), 7)
    step(resumed, again, 7)
    assert not same(fresh, resumed)


def test_the_tensors_round_trip():
    module = Network()
    optimizer = build_optimizer(module, 1e-2, (0.9, 0.99), 0.1)
    assert optimizer_tensors(optimizer) == {}
    step(module, optimizer, 0)
    tensors = {name: value.clone() for name, value in optimizer_tensors(optimizer).items()}
    count = len(list(module.parameters()))
    assert set(tensors) == {f"{i}.{field}" for i in range(count) for field in ("step", "exp_avg", "exp_avg_sq")}
    other = build_optimizer(copy.deepcopy(module), 1e-2, (0.9, 0.99), 0.1)
    load_optimizer_tensors(other, tensors)
    loaded = optimizer_tensors(other)
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert other.param_groups[0]["lr"] == 1e-2 and other.param_groups[0]["weight_decay"] == 0.1


def test_parameters_without_a_state_stay_without():
    module = Network()
    optimizer = build_optimizer(module, 1e-2, (0.9, 0.99), 0.0)
    module(torch.randn(2, 3, 8, 8)).sum().backward()
    module.layers[0].weight.grad = None  # as a player that pauses
    optimizer.step()
    other = build_optimizer(module, 1e-2, (0.9, 0.99), 0.0)
    load_optimizer_tensors(other, optimizer_tensors(optimizer))
    assert module.layers[0].weight not in other.state and module.layers[3].weight in other.state


def test_weight_decay_shrinks_matrices_and_kernels_alone():
    module = Network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = build_optimizer(module, 0.1, (0.9, 0.99), 0.5)
    (0 * module(torch.randn(2, 3, 8, 8)).sum()).backward()
    optimizer.step()
    for name, value in module.state_dict().items():
        decayed = name in ("layers.0.weight", "layers.3.weight")
        torch.testing.assert_close(value, before[name] * (1 - 0.1 * 0.5) if decayed else before[name])


def test_every_parameter_is_stepped_once():
    for module in (Network(), nn.GroupNorm(1, 4), nn.Linear(2, 2, bias=False)):
        listed = []
        for weight_decay in (0.5, 0.0):
            listed.append([id(p) for p in parameters_of(build_optimizer(module, 0.1, (0.9, 0.99), weight_decay))])
        assert sorted(listed[0]) == sorted(id(p) for p in module.parameters())
        assert listed[0] == listed[1]  # a checkpoint's numbers count them


def test_the_first_step_is_adams():
    module = nn.Linear(3, 2, bias=False).double()
    before = module.weight.detach().clone()
    optimizer = build_optimizer(module, 0.01, (0.9, 0.99), 0.0)
    module(torch.randn(5, 3, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), before - 0.01 * module.weight.grad.sign(), atol=1e-8, rtol=1e-6)


def test_set_learning_rate_reaches_all_groups():
    module = Network()
    optimizer = build_optimizer(module, 0.1, (0.9, 0.99), 0.5)
    set_learning_rate(optimizer, 0.0)
    before = [p.clone() for p in module.parameters()]
    step(module, optimizer, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_l1_adds_the_gradient_of_the_sum_of_magnitudes(layout):
    module = Network().to(memory_format=layout)
    with torch.no_grad():
        module.layers[3].weight[0] = 0  # where the gradient is 0
    x = torch.randn(2, 3, 8, 8)
    weights = [p for p in module.parameters() if p.ndim > 1]
    whole = module(x).square().sum() + 0.3 * sum(p.abs().sum() for p in weights)
    expected = torch.autograd.grad(whole, list(module.parameters()))
    module(x).square().sum().backward()
    plain = [p.grad.clone() for p in module.parameters()]
    add_l1_gradient(module, 0.3)
    for parameter, before, gradient in zip(module.parameters(), plain, expected):
        torch.testing.assert_close(parameter.grad, gradient)
        assert torch.equal(parameter.grad, before) == (parameter.ndim <= 1)


def test_l1_passes_over_weights_without_gradient():
    module = Network()
    module(torch.randn(2, 3, 8, 8)).sum().backward()
    module.layers[0].weight.grad = None
    add_l1_gradient(module, 0.3)
    assert module.layers[0].weight.grad is None
