"""Class-conditional networks, prior and losses: against formulas, loops over classes, and their unconditional twins."""

import pytest
import torch
from torch import nn

from vaegan import latents
from vaegan.config import ConfigError, ModelConfig, ObjectiveConfig
from vaegan.model import VAEGAN
from vaegan.networks import Decoder, Discriminator
from vaegan.networks.layers import ConditionalNorm, norm_layer
from vaegan.objectives import elbo
from vaegan.objectives.noise import draw_noise
from vaegan.objectives.statistics import Statistics
from vaegan.objectives.vaegan import Objective

CLASSES, Y = 3, torch.tensor([2, 0, 1, 0, 2, 2])
NETWORKS = [
    ("light", "group"),
    ("light", "batch"),
    ("conv", "group"),
    ("conv", "batch"),
    ("mlp", "group"),
    ("mlp", "batch"),
]


def randomised(module: nn.Module) -> nn.Module:
    """Away from the zero start, so that classes differ."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Embedding):
                part.weight.normal_(0, 0.5, generator=generator)
    return module


def model_of(**settings) -> VAEGAN:
    torch.manual_seed(0)
    shape = {"image_size": 8, "channels": 1, "latent_dim": 3, "width": 4, "hidden": (12, 9), "classes": CLASSES}
    return VAEGAN(**shape | settings)


def images(n: int = 6) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


# ---------------------------------------------------------------------- networks


@pytest.mark.parametrize("kind", ["group", "batch"])
def test_conditional_norm_is_the_plain_norm_with_gain_and_bias_of_each_class(kind):
    norm = randomised(norm_layer(kind, 8, CLASSES))
    x = torch.randn(6, 8, 5, 5, generator=torch.Generator().manual_seed(2))
    plain = norm_layer(kind, 8)(x)  # gain 1, bias 0
    expected = torch.empty_like(x)
    for c in range(CLASSES):
        for channel in range(8):
            gain, bias = 1 + norm.gain.weight[c, channel], norm.bias.weight[c, channel]
            expected[Y == c, channel] = gain * plain[Y == c, channel] + bias
    torch.testing.assert_close(norm(x, Y), expected)


def test_conditional_norm_keeps_memory_layout_and_type():
    norm = randomised(norm_layer("group", 8, CLASSES))
    x = torch.randn(6, 8, 5, 5).to(memory_format=torch.channels_last)
    assert norm(x, Y).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x.bfloat16(), Y).dtype == norm_layer("group", 8)(x.bfloat16()).dtype


@pytest.mark.parametrize("network, norm", NETWORKS)
def test_a_conditional_model_starts_as_the_unconditional_one(network, norm):
    plain, conditional = (model_of(network=network, norm=norm, classes=classes) for classes in (0, CLASSES))
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(conditional.decode(z, Y), plain.decode(z), rtol=1e-5, atol=1e-6)
    assert torch.equal(conditional.encoder(images())[0], plain.encoder(images())[0])
    shape = {"network": network, "width": 4, "hidden": (12, 9)}
    torch.manual_seed(0)
    one = Discriminator(8, 1, **shape)
    torch.manual_seed(0)
    two = Discriminator(8, 1, **shape, classes=CLASSES)
    torch.testing.assert_close(two(images(), Y)[0], one(images())[0])


@pytest.mark.parametrize("network, norm", NETWORKS)
def test_every_norm_of_the_decoder_hears_the_class(network, norm):
    decoder = randomised(model_of(network=network, norm=norm)).decoder
    with torch.no_grad():
        for parameter in decoder.parameters():  # residual blocks start with zeros after their norms
            parameter.add_(0.1 * torch.randn(parameter.shape))
    norms = [
        m for m in decoder.modules() if isinstance(m, (nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm))
    ]
    conditional = [m for m in decoder.modules() if isinstance(m, ConditionalNorm)]
    assert len(norms) == len(conditional) > 0
    z = torch.randn(6, 3)
    before = decoder(z, Y)
    for part in conditional:
        saved = part.bias.weight.detach().clone()
        with torch.no_grad():
            part.bias.weight[0] += torch.linspace(0.5, 1, part.bias.embedding_dim)
        changed = (decoder(z, Y) - before).abs().flatten(1).amax(1) > 1e-5
        with torch.no_grad():
            part.bias.weight.copy_(saved)
        assert changed[Y == 0].all() and (norm == "batch" or not changed[Y != 0].any())


def test_the_unconditional_model_has_the_parameters_that_it_had():
    names = set(model_of(classes=0).state_dict())
    assert names == {k for k in names if "gain" not in k and "prior" not in k} and "decoder.blocks.2.weight" in names
    added = {k for k in model_of().state_dict() if k not in names}
    gone = names - set(model_of().state_dict())
    assert all(k.endswith(("gain.weight", "bias.weight")) or k == "prior_means.weight" for k in added)
    assert all(k.startswith("decoder.blocks.") and k.endswith((".weight", ".bias")) for k in gone)
    assert "projection.weight" not in Discriminator(8, 1, width=4).state_dict()


@pytest.mark.parametrize("network", ["light", "conv", "mlp"])
def test_projection_is_the_inner_product_with_the_last_features(network):
    discriminator = randomised(Discriminator(8, 1, network, 4, hidden=(12, 9), classes=CLASSES))
    logits, features = discriminator(images(), Y)  # feature_layer -1 gives phi
    phi = features.flatten(1)
    weight, v = discriminator.logit.weight[0], discriminator.projection.weight
    expected = [phi[i] @ weight + phi[i] @ v[Y[i]] for i in range(6)]
    torch.testing.assert_close(logits, torch.stack(expected))


def test_spectral_norm_takes_the_class_embedding_along():
    torch.manual_seed(0)
    discriminator = Discriminator(8, 1, width=4, spectral_norm=True, classes=CLASSES)
    for _ in range(30):  # a power iteration each
        discriminator(images(), Y)
    assert torch.linalg.matrix_norm(discriminator.projection.weight, 2).item() == pytest.approx(1, abs=1e-3)


def test_a_conditional_decoder_needs_a_norm():
    with pytest.raises(ValueError, match="needs a norm"):
        Decoder(8, 1, 3, width=4, norm="none", classes=CLASSES)
    with pytest.raises(ConfigError, match="model.conditional true needs model.norm group or batch.*got none"):
        ModelConfig(norm="none", conditional=True)


# ---------------------------------------------------------------------- prior and losses


def test_conditional_kl_is_that_of_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mu, logvar, mean = (torch.randn(6, 3, generator=generator) for _ in range(3))
    q = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    p = torch.distributions.Normal(mean, torch.ones(6, 3))
    expected = torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(elbo.kl_divergence(mu, logvar, mean), expected, rtol=1e-4, atol=1e-5)


OFF = {"kl_weight": 0.0, "pixel_weight": 0.0, "feature_weight": 0.0, "adversarial_weight": 0.0}
ADVERSARIAL = {**OFF, "adversarial_weight": 1.0, "kl_weight": 1e-30}
TABLE = {  # the turn, and whether the gradient reaches encoder, prior means, decoder, discriminator
    "KL": ({**OFF, "kl_weight": 1.0}, "autoencoder", (True, True, False, False)),
    "pixel": ({**OFF, "pixel_weight": 1.0}, "autoencoder", (True, False, True, False)),
    "feature": ({**OFF, "feature_weight": 1.0}, "autoencoder", (True, False, True, False)),
    "prior samples": (ADVERSARIAL, "autoencoder", (False, False, True, False)),
    "reconstructions": ({**ADVERSARIAL, "fakes": "reconstruction"}, "autoencoder", (False, False, True, False)),
    "both": ({**ADVERSARIAL, "fakes": "both"}, "autoencoder", (False, False, True, False)),
    "discriminator": (
        {**ADVERSARIAL, "fakes": "both", "r1_weight": 1.0, "r2_weight": 1.0, "gradient_penalty_weight": 1.0},
        "discriminator", (False, False, False, True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("adversarial_loss", ["nonsaturating", "relativistic"])
@pytest.mark.parametrize("term", TABLE)
def test_gradient_routing(term, adversarial_loss):
    fields, turn, expected = TABLE[term]
    model = randomised(model_of())
    discriminator = randomised(Discriminator(8, 1, width=4, classes=CLASSES))
    config = ObjectiveConfig(**fields, adversarial_loss=adversarial_loss)
    objective, x, noise = Objective(config), images(), draw_noise(torch.arange(6), 3, 0, 0)
    out = model(x, noise.eps, noise.z_prior if config.uses_prior else None, Y)
    if turn == "discriminator":
        loss, _ = objective.discriminator(discriminator, x, out.raw, noise, 0, Y)
    else:
        discriminator.requires_grad_(False)
        loss, _, _ = objective.autoencoder(discriminator, x, out, noise, 0, Statistics(0.9), Y)
    loss.backward()
    players = (model.encoder, model.prior_means, model.decoder, discriminator)
    found = [
        max((p.grad.abs().max().item() for p in player.parameters() if p.grad is not None), default=0)
        for player in players
    ]
    assert tuple(gradient > 1e-20 for gradient in found) == expected
    if turn == "autoencoder":  # several processes wait for a gradient of each of the prior's means
        assert model.prior_means.weight.grad is not None
    if term == "discriminator":
        assert discriminator.projection.weight.grad.abs().amax(1).gt(0).all()


def test_kl_pulls_the_prior_means_to_the_mean_of_their_posteriors():
    model, x = randomised(model_of()), images()
    noise = draw_noise(torch.arange(6), 3, 0, 0)
    out = model(x, noise.eps, None, Y)
    loss, terms, _ = Objective(ObjectiveConfig(pixel_weight=0)).autoencoder(None, x, out, noise, 0, Statistics(0.9), Y)
    loss.backward()
    for c in range(CLASSES):  # d/dm of the mean over the batch of |mu - m|^2 / 2
        expected = (model.prior_means.weight[c] - out.mu[Y == c]).sum(0) / 6
        torch.testing.assert_close(model.prior_means.weight.grad[c], expected)
    q = torch.distributions.Normal(out.mu, (0.5 * out.logvar).exp())
    p = torch.distributions.Normal(model.prior_means(Y), 1.0)
    torch.testing.assert_close(terms["kl"], torch.distributions.kl_divergence(q, p).sum(1).mean().detach())


@pytest.mark.parametrize("every", [1, 2])
def test_reconstructions_and_prior_samples_carry_the_labels_of_the_batch(every):
    model, x = randomised(model_of()).eval(), images()[::every]
    noise = draw_noise(torch.arange(6), 3, 0, 0)
    out = model(x, noise.eps[::every], noise.z_prior, Y)
    mu, logvar = model.encode(x)
    expected = [
        model.decode(mu + (0.5 * logvar).exp() * noise.eps[::every], Y[::every]),
        model.decode(model.prior_mean(Y) + noise.z_prior, Y),
    ]
    assert torch.equal(out.prior_mean, model.prior_mean(Y[::every]))
    torch.testing.assert_close(out.raw.tanh(), torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_the_discriminator_sees_each_image_with_its_label():
    """Real images, both kinds of fakes and the interpolations between, in each turn."""
    seen = []

    def discriminator(x, y):
        seen.append((len(x), y))
        return x.flatten(1).sum(1) * (1 + y), x

    model, x, noise = model_of(), images(), draw_noise(torch.arange(6), 3, 0, 0)
    out = model(x, noise.eps, noise.z_prior, Y)
    config = ObjectiveConfig(
        adversarial_weight=1.0, adversarial_loss="relativistic", fakes="both", gradient_penalty_weight=1.0
    )
    Objective(config).discriminator(discriminator, x, out.raw, noise, 0, Y)
    Objective(config).autoencoder(discriminator, x, out, noise, 0, Statistics(0.9), Y)
    assert [n for n, _ in seen] == [24, 12, 6] and all(torch.equal(y, Y.repeat(n // 6)) for n, y in seen)


# ---------------------------------------------------------------------- the model in use


def test_samples_are_those_of_the_class_prior_and_depend_on_seed_and_place():
    model = randomised(model_of()).eval()
    whole = model.sample(7, seed=4)
    y = latents.labels(7, CLASSES, 4)
    z = latents.prior(7, 3, 4) + model.prior_means(y)
    torch.testing.assert_close(whole, model.decode(z, y).detach())
    torch.testing.assert_close(model.sample(3, seed=4, start=2), whole[2:5], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.sample(7, seed=4, labels=y), whole)
    assert torch.equal(model.sample(2, labels=1), model.sample(2, labels=torch.tensor([1, 1])))
    assert not torch.allclose(model.sample(2, labels=1), model.sample(2, labels=2))


def test_a_sampler_stands_in_for_the_standard_normal():
    model, seen = randomised(model_of()).eval(), []

    def sampler(n, seed, start, device):
        seen.append((n, seed, start, device))
        return torch.full((n, 3), 0.25)

    drawn = model.sample(4, seed=2, start=8, sampler=sampler, labels=1)
    one = torch.ones(4, dtype=torch.int64)
    torch.testing.assert_close(drawn, model.decode(0.25 + model.prior_means(one), one).detach())
    assert seen == [(4, 2, 8, torch.device("cpu"))]


def test_labels_without_given_ones_are_uniform():
    counts = torch.bincount(latents.labels(30_000, 10, seed=1), minlength=10).float()
    assert len(counts) == 10 and (counts / 30_000 - 0.1).abs().max() < 0.01  # five standard deviations


def test_labels_in_the_proportions_of_a_set():
    of = torch.tensor([0] * 6 + [1] * 3 + [2])
    assert torch.bincount(latents.proportional(of, 1000)).tolist() == [600, 300, 100]
    assert torch.bincount(latents.proportional(of, 10)).tolist() == [6, 3, 1] and len(latents.proportional(of, 3)) == 3


def test_wrong_labels_are_refused():
    model, z = model_of(), torch.zeros(4, 3)
    for labels in (None, 3, -1, torch.zeros(3, dtype=torch.int64), torch.zeros(4)):
        with pytest.raises(ValueError, match="conditional.*give labels 0 … 2, 4 of them as int64 or one for all"):
            model.decode(z, labels)
    with pytest.raises(ValueError, match="give labels"):
        model.reconstruct(images())
    with pytest.raises(ValueError, match="not conditional"):
        model_of(classes=0).decode(z, 1)


@pytest.mark.parametrize(
    "settings", [{}, {"encoder": False}, {"variational": False}, {"network": "conv", "norm": "batch"}]
)
def test_a_saved_model_opens_as_it_was(tmp_path, settings):
    model = randomised(model_of(class_names=["a", "b", "ü"], **settings)).eval()
    assert (model.prior_means is None) == (settings in ({"encoder": False}, {"variational": False}))
    model.save_pretrained(tmp_path)
    opened = VAEGAN.from_pretrained(tmp_path)
    assert (opened.classes, opened.class_names) == (3, ["a", "b", "ü"])
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in opened.state_dict().items())
    z = torch.randn(3, 3)
    torch.testing.assert_close(opened.decode(z, 1), model.decode(z, 1))


@pytest.mark.parametrize("names", [["a"], [1, 2, 3], "abc", ["a", "b", None]])
def test_damaged_class_names_are_refused(tmp_path, names):
    import json

    model_of(class_names=["a", "b", "c"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"class_names": names}))
    with pytest.raises(ConfigError, match="class_names"):
        VAEGAN.from_pretrained(tmp_path)
