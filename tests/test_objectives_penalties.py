"""Gradient penalties against closed forms, finite differences and double-precision gradient checks."""

import pytest
import torch
from torch import nn

from vaegan.networks import Discriminator
from vaegan.objectives import penalties

SHAPE = (5, 2, 3, 3)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def test_a_linear_discriminator_has_its_weight_as_gradient():
    w, x = double(2, 3, 3), double(*SHAPE)
    g = penalties.input_gradients((x * w).sum((1, 2, 3)), x)
    torch.testing.assert_close(g, w.expand(SHAPE))
    norm2 = w.square().sum()
    torch.testing.assert_close(penalties.zero_centred(g), (norm2 / 2).expand(5))
    torch.testing.assert_close(penalties.one_centred(g), ((norm2.sqrt() - 1) ** 2).expand(5))
    (step,) = torch.autograd.grad(penalties.zero_centred(g).mean(), w, retain_graph=True)
    torch.testing.assert_close(step, w)  # d/dw of ||w||^2 / 2
    (step,) = torch.autograd.grad(penalties.one_centred(g).mean(), w)
    torch.testing.assert_close(step, 2 * (norm2.sqrt() - 1) * w / norm2.sqrt())


def test_a_quadratic_discriminator_has_a_penalty_an_image():
    a, x = double(18, 18), double(*SHAPE)
    flat = x.flatten(1)
    g = penalties.input_gradients(0.5 * (flat @ a * flat).sum(1), x)
    expected = flat @ (a + a.T) / 2
    torch.testing.assert_close(g.flatten(1), expected)
    torch.testing.assert_close(penalties.zero_centred(g), expected.square().sum(1) / 2)
    torch.testing.assert_close(penalties.one_centred(g), (expected.norm(dim=1) - 1) ** 2)


def test_gradients_of_a_dense_network_are_its_finite_differences():
    network = nn.Sequential(nn.Flatten(), nn.Linear(18, 7), nn.Softplus(), nn.Linear(7, 1)).double()
    x = double(*SHAPE)
    g = penalties.input_gradients(network(x)[:, 0], x)
    h = 1e-5
    with torch.no_grad():
        for position in range(18):
            shift = torch.zeros(18, dtype=torch.float64)
            shift[position] = h
            shift = shift.reshape(SHAPE[1:])
            difference = (network(x + shift) - network(x - shift))[:, 0] / (2 * h)
            torch.testing.assert_close(g.flatten(1)[:, position], difference, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("penalty", [penalties.zero_centred, penalties.one_centred])
def test_penalties_are_differentiable_to_the_weights(penalty):
    x, w, v = double(3, 1, 2, 2), double(4, 5), double(5)

    def of_weights(w, v):
        return penalty(penalties.input_gradients((x.flatten(1) @ w).tanh() @ v, x))

    assert torch.autograd.gradcheck(of_weights, (w, v))


@pytest.mark.parametrize("penalty", [penalties.zero_centred, penalties.one_centred])
def test_a_flat_discriminator_is_no_trouble(penalty):
    x, w = double(*SHAPE), torch.zeros(2, 3, 3, dtype=torch.float64, requires_grad=True)
    value = penalty(penalties.input_gradients((x * w).sum((1, 2, 3)), x)).mean()
    (step,) = torch.autograd.grad(value, w)
    assert value.item() == pytest.approx(0 if penalty is penalties.zero_centred else 1, abs=1e-5)
    assert step.isfinite().all()


@pytest.mark.parametrize("settings", [{"network": "light"}, {"network": "conv"}, {"network": "mlp"},
                                      {"network": "light", "norm": "group"},
                                      {"network": "light", "spectral_norm": True}])  # fmt: skip
def test_one_batch_gives_the_gradients_of_each_image_alone(settings):
    discriminator = Discriminator(8, 1, width=4, hidden=(8, 6), **settings).double().eval()
    x = double(4, 1, 8, 8)
    together = penalties.input_gradients(discriminator(x)[0], x)
    for i in range(4):
        one = x[i : i + 1].detach().requires_grad_()
        torch.testing.assert_close(penalties.input_gradients(discriminator(one)[0], one), together[i : i + 1])
