"""Networks: shapes, sizes that are refused, living parameters, independent images, features, spectral norm, scales."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vaegan.networks import Decoder, Discriminator, Encoder
from vaegan.networks.layers import (
    ResidualBlock,
    channel_plan,
    flat_as,
    initialise,
    light_down,
    light_up,
    norm_layer,
)

SMALL = {"width": 4, "max_width": 16, "hidden": (16, 12)}
LATENT = 5
VARIANTS = [("light", 1), ("conv", 1), ("conv", 2), ("mlp", 1)]
PYRAMIDS = [v for v in VARIANTS if v[0] != "mlp"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def smooth_images(n, channels, size):
    """Images whose neighbouring pixels agree, as those of photographs do."""
    return F.interpolate(torch.randn(n, channels, 4, 4), size=size, mode="bicubic").clamp(-1, 1)


def settings(network, depth=1, norm="group"):
    return {"network": network, "depth": depth, "norm": norm, **SMALL}


@pytest.mark.parametrize(("network", "depth"), VARIANTS)
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3), (32, 1), (64, 3), (128, 1)])
def test_shapes_and_no_dead_parameter(network, depth, norm, size, channels):
    """Every parameter has a finite gradient other than zero, once layers that start at zero have moved."""
    kind = settings(network, depth, norm)
    x, w = smooth_images(4, channels, size), torch.randn(4, LATENT)
    encoder = Encoder(size, channels, LATENT, **kind)
    mu, logvar = encoder(x)
    assert mu.shape == logvar.shape == (4, LATENT) and mu.dtype == logvar.dtype == torch.float32
    require_alive(encoder, lambda: sum((part * w).sum() for part in encoder(x)))
    decoder = Decoder(size, channels, LATENT, **kind)
    assert decoder(w).shape == x.shape and decoder(w).dtype == torch.float32
    require_alive(decoder, lambda: (decoder(w) * x).sum())
    if norm == "batch":
        return
    for spectral_norm in (False, True):
        discriminator = Discriminator(size, channels, **kind, spectral_norm=spectral_norm)
        logits, features = discriminator(x)
        assert logits.shape == (4,) and len(features) == 4 and logits.dtype == features.dtype == torch.float32
        require_alive(discriminator, lambda: (discriminator(x)[0] * w[:, 0]).sum())


def require_alive(module, loss):
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    loss().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    optimizer.step()
    optimizer.zero_grad()
    loss().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("size", [0, 2, 4, 7, 12, 28, 33, 48, 100])
@pytest.mark.parametrize("network", ["light", "conv"])
def test_sizes_that_are_no_pyramid_are_refused(network, size):
    for build in (lambda: Encoder(size, 1, LATENT, network), lambda: Decoder(size, 1, LATENT, network),
                  lambda: Discriminator(size, 1, network)):  # fmt: skip
        with pytest.raises(ValueError, match=f"got {size} "):
            build()


@pytest.mark.parametrize("size", [5, 28])
def test_the_dense_network_takes_any_size(size):
    x = torch.rand(3, 1, size, size)
    mu, _ = Encoder(size, 1, LATENT, "mlp", hidden=(6,))(x)
    assert Decoder(size, 1, LATENT, "mlp", hidden=(6,))(mu).shape == x.shape
    assert Discriminator(size, 1, "mlp", hidden=(6,))(x)[0].shape == (3,)


@pytest.mark.parametrize("wrong", [{"network": "resnet"}, {"norm": "layer"}, {"network": "mlp", "norm": "layer"}])
def test_unknown_names_are_refused_rather_than_read_as_another(wrong):
    for build in (lambda: Encoder(8, 1, LATENT, **wrong), lambda: Decoder(8, 1, LATENT, **wrong),
                  lambda: Discriminator(8, 1, **wrong)):  # fmt: skip
        with pytest.raises(ValueError):
            build()


@pytest.mark.parametrize("network", ["light", "conv", "mlp"])
def test_a_discriminator_with_batch_statistics_is_refused(network):
    with pytest.raises(ValueError):
        Discriminator(8, 1, network, norm="batch")


@pytest.mark.parametrize(("network", "depth"), VARIANTS)
def test_without_variance_the_encoder_has_no_layer_for_it(network, depth):
    encoder = Encoder(8, 1, LATENT, **settings(network, depth), variational=False)
    mu, logvar = encoder(torch.rand(3, 1, 8, 8))
    assert logvar is None and mu.shape == (3, LATENT)
    assert not [name for name, _ in encoder.named_parameters() if "logvar" in name]


@pytest.mark.parametrize(("network", "depth"), VARIANTS)
def test_the_encoder_starts_at_unit_variance_and_shares_nothing_with_it(network, depth):
    encoder = Encoder(16, 3, LATENT, **settings(network, depth))
    mu, logvar = encoder(torch.rand(3, 3, 16, 16))
    assert torch.equal(logvar, torch.zeros_like(logvar)) and mu.std() > 0.1
    assert encoder.mu.weight.data_ptr() != encoder.logvar.weight.data_ptr()


@pytest.mark.parametrize(("network", "depth"), VARIANTS)
@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_an_image_is_judged_by_itself(network, depth, norm, spectral_norm):
    discriminator = Discriminator(16, 3, **settings(network, depth, norm), spectral_norm=spectral_norm).eval()
    x = torch.rand(5, 3, 16, 16) * 2 - 1
    logits, features = discriminator(x)
    for mates in (torch.zeros(4, 3, 16, 16), 5 * torch.randn(4, 3, 16, 16)):
        alone, its_features = discriminator(torch.cat([x[:1], mates]))
        torch.testing.assert_close(alone[:1], logits[:1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(its_features[:1], features[:1], atol=1e-5, rtol=1e-4)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(discriminator(x[order])[0], logits[order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("network", "depth"), VARIANTS)
def test_feature_layer_counts_blocks_and_never_reaches_the_logit(network, depth):
    x = torch.rand(3, 1, 32, 32)
    blocks = len(Discriminator(32, 1, **settings(network, depth)).blocks)
    assert blocks == (2 if network == "mlp" else 3)
    for layer in range(-blocks, blocks):
        torch.manual_seed(1)
        discriminator = Discriminator(32, 1, **settings(network, depth), feature_layer=layer)
        expected = []
        for block in discriminator.blocks:
            expected.append(block(x if not expected else expected[-1]).clone())
        logits, features = discriminator(x)
        torch.testing.assert_close(features, expected[layer])
        assert features[0].numel() > 1
        if layer in (-1, blocks - 1):  # the last block's features are what the logit is made of
            torch.testing.assert_close(F.linear(features.flatten(1), *discriminator.logit.parameters())[:, 0], logits)
        elif network != "mlp":
            assert features.shape[-1] == 32 // 2 ** (layer % blocks + 1)
    for layer in (blocks, -blocks - 1):
        with pytest.raises(ValueError, match=f"got {layer}"):
            Discriminator(32, 1, **settings(network, depth), feature_layer=layer)


@pytest.mark.parametrize(("network", "depth"), VARIANTS)
def test_features_have_gradients_of_their_own(network, depth):
    """No later block writes into the features in place."""
    discriminator = Discriminator(16, 1, **settings(network, depth), feature_layer=0)
    x = torch.rand(2, 1, 16, 16, requires_grad=True)
    logits, features = discriminator(x)
    before = features.detach().clone()
    (logits.sum() + features.square().sum()).backward()
    assert (
        torch.equal(features, before) and torch.equal(features, discriminator.blocks[0](x)) and x.grad.abs().max() > 0
    )


@pytest.mark.parametrize(("network", "depth"), VARIANTS)
def test_spectral_norm_brings_every_weight_to_one(network, depth):
    discriminator = Discriminator(16, 3, **settings(network, depth, "none"), spectral_norm=True)
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        for _ in range(40):
            assert discriminator(x)[0].isfinite().all()
    layers = [m for m in discriminator.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert layers and discriminator.logit in layers
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() == pytest.approx(1, abs=0.02)
    discriminator.eval()
    state = {name: value.clone() for name, value in discriminator.state_dict().items()}
    logits = discriminator(x)[0]
    assert torch.equal(discriminator(x)[0], logits)  # evaluation does not move the estimate
    assert all(torch.equal(state[name], value) for name, value in discriminator.state_dict().items())


@pytest.mark.parametrize(("network", "depth"), VARIANTS)
def test_spectral_norm_survives_a_second_gradient(network, depth):
    discriminator = Discriminator(8, 1, **settings(network, depth, "none"), spectral_norm=True)
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    (g,) = torch.autograd.grad(discriminator(x)[0].sum(), x, create_graph=True)
    g.square().sum().backward()
    gradients = [p.grad for p in discriminator.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients) and max(g.abs().max() for g in gradients) > 0


@pytest.mark.parametrize(("network", "depth"), VARIANTS)
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_activations_neither_explode_nor_vanish_at_64_pixels(network, depth, norm):
    wide = {**settings(network, depth, norm), "width": 8, "max_width": 64, "hidden": (64, 32)}
    x = smooth_images(16, 3, 64)
    activations = []
    encoder = Encoder(64, 3, 8, **wide)
    for block in encoder.blocks:
        block.register_forward_hook(lambda module, inputs, out: activations.append(out.square().mean().sqrt().item()))
    mu, _ = encoder(x)
    image = Decoder(64, 3, 8, **wide)(torch.randn(16, 8)).tanh()
    assert all(0.2 < a < 5 for a in activations), activations
    assert 0.2 < mu.std(0).mean() < 5  # images are told apart
    assert 0.05 < image.std(0).mean() < 0.8 and image.abs().mean() < 0.6  # and latents, near grey
    if norm != "batch":
        x.requires_grad_()
        logits, features = Discriminator(64, 3, **wide)(x)
        (g,) = torch.autograd.grad(logits.sum(), x)
        assert 0.1 < logits.std() < 5 and 0.1 < features.square().mean().sqrt() < 5
        assert 0.01 < g.flatten(1).norm(dim=1).mean() < 20


def test_transposed_convolutions_and_convolutions_keep_the_variance():
    """He initialisation: the second moment of leaky-ReLU activations stays near that of the input."""
    x = torch.randn(4, 64, 16, 16)
    for block in (light_down(64, 64, "none"), light_up(64, 64, "none")):
        initialise(block)
        inside = block(x)[:, :, 2:-2, 2:-2]
        assert inside.square().mean().item() == pytest.approx(1, rel=0.15)


def test_residual_blocks_start_as_their_shortcuts():
    for resample, same in itertools.product(("down", "none", "up"), (True, False)):
        block = ResidualBlock(4, 4 if same else 6, "group", resample)
        initialise(block)
        x = torch.randn(2, 4, 8, 8)
        out = block(x)
        side = {"down": 4, "none": 8, "up": 16}[resample]
        assert out.shape == (2, 4 if same else 6, side, side)
        assert torch.equal(out, block.shortcut(x))
        if same:
            expected = {"down": lambda: F.avg_pool2d(x, 2), "none": lambda: x,
                        "up": lambda: x.repeat_interleave(2, 2).repeat_interleave(2, 3)}[resample]()  # fmt: skip
            torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 8, 12, 20, 32, 48, 96, 128, 256, 512])
def test_groups_divide_the_channels_and_are_not_too_small(channels):
    layer = norm_layer("group", channels)
    assert channels % layer.num_groups == 0 and layer.num_groups <= 32
    assert channels // layer.num_groups >= min(4, channels)


def test_channels_double_up_to_the_bound():
    assert channel_plan(8, 40, 64) == [8, 16, 32, 40, 40]
    assert channel_plan(8, 512, 8) == [8, 16]


@pytest.mark.parametrize(("network", "depth"), PYRAMIDS)
def test_memory_layout_does_not_change_the_result(network, depth):
    x, z = smooth_images(2, 3, 16), torch.randn(2, LATENT)
    encoder, decoder = (kind(16, 3, LATENT, **settings(network, depth)) for kind in (Encoder, Decoder))
    mu, image = encoder(x)[0], decoder(z)
    encoder, decoder = (m.to(memory_format=torch.channels_last) for m in (encoder, decoder))
    torch.testing.assert_close(encoder(x.to(memory_format=torch.channels_last))[0], mu, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(decoder(z), image, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("network", "depth"), PYRAMIDS)
def test_memory_layout_does_not_change_the_discriminator(network, depth, channels, classes):
    """Logits, features, their gradients, and those of the weights; gradients keep the layout on their way back."""
    x, y = smooth_images(4, channels, 16), torch.arange(4) % 3
    discriminator = Discriminator(16, channels, **settings(network, depth, "none"), feature_layer=1, classes=classes)
    if classes:
        nn.init.normal_(discriminator.projection.weight)

    def outcome(layout: torch.memory_format) -> list[torch.Tensor]:
        inputs = x.clone().requires_grad_()
        strides = []
        handle = discriminator.blocks[-1].register_forward_hook(
            lambda *call: call[2].register_hook(lambda g: strides.append((g.stride(), call[2].stride()))) and None
        )
        logits, features = discriminator.to(memory_format=layout)(inputs, *([y] if classes else []))
        handle.remove()
        assert flat_as(features, features).is_contiguous()  # a view of them, and no copy
        distance = (flat_as(features, features)[:2] - flat_as(features.detach(), features)[2:]).square().sum()
        outputs = logits.sum() + distance
        gradients = torch.autograd.grad(outputs, [inputs, *discriminator.parameters()])
        assert strides and all(found == kept for found, kept in strides)
        return [logits, features, outputs, *gradients]

    for a, b in zip(outcome(torch.contiguous_format), outcome(torch.channels_last), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("network", "depth"), VARIANTS)
def test_outputs_stay_float32_under_autocast(network, depth):
    x = smooth_images(2, 1, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mu, logvar = Encoder(8, 1, LATENT, **settings(network, depth))(x)
        outputs = mu, logvar, Decoder(8, 1, LATENT, **settings(network, depth))(mu)
        outputs += Discriminator(8, 1, **settings(network, depth))(x)[:1]
    assert {out.dtype for out in outputs} == {torch.float32}
