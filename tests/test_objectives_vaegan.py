"""The composition of the losses: every cell of the gradient-routing table, and against a hand-made reference."""

import dataclasses

import pytest
import torch

from vaegan.config import ObjectiveConfig
from vaegan.model import VAEGAN, TrainingPass
from vaegan.networks import Discriminator
from vaegan.objectives import elbo
from vaegan.objectives.noise import draw_noise
from vaegan.objectives.statistics import Statistics
from vaegan.objectives.vaegan import Objective

OFF = dict(kl_weight=0.0, pixel_weight=0.0, feature_weight=0.0, adversarial_weight=0.0)
NETWORKS = ("encoder", "decoder", "discriminator")


def networks(norm="none"):
    torch.manual_seed(0)
    model = VAEGAN(image_size=8, channels=1, latent_dim=3, width=4, norm=norm)
    discriminator = Discriminator(8, 1, width=4)
    with torch.no_grad():
        model.encoder.logvar.weight.normal_(0, 0.1)  # away from the zero start, so that gradients pass
    return model, discriminator


def images(n=6):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def gradients(objective: ObjectiveConfig, turn: str, step: int = 0, statistics: Statistics | None = None):
    """Gradients of one turn, flat, by network; None where a network has none at all."""
    model, discriminator = networks()
    x, noise = images(), draw_noise(torch.arange(6), 3, 0, step)
    o = Objective(objective)
    every = objective.reconstruct_every
    out = model(x[::every], noise.eps[::every], noise.z_prior if objective.fakes != "reconstruction" else None)
    if turn == "discriminator":
        loss, _ = o.discriminator(discriminator, x, out.raw, noise, step)
    else:
        discriminator.requires_grad_(False)
        loss, _, _ = o.autoencoder(discriminator, x, out, noise, step, statistics or Statistics(0.9))
    loss.backward()
    players = {"encoder": model.encoder, "decoder": model.decoder, "discriminator": discriminator}
    return {name: flat_gradient(player) for name, player in players.items()}


def flat_gradient(module):
    found = [p.grad for p in module.parameters() if p.grad is not None]
    return torch.cat([g.flatten() for g in found]) if found else None


KL = {**OFF, "kl_weight": 1.0}
PIXEL = {**OFF, "pixel_weight": 1.0}
FEATURE = {**OFF, "feature_weight": 1.0}
PRIOR = {**OFF, "adversarial_weight": 1.0, "kl_weight": 1e-30}
RECON = {**PRIOR, "fakes": "reconstruction"}
BOTH = {**PRIOR, "fakes": "both"}

TABLE = [
    ("KL", KL, "autoencoder", (True, False, False)),
    ("pixel likelihood", PIXEL, "autoencoder", (True, True, False)),
    ("feature likelihood", FEATURE, "autoencoder", (True, True, False)),
    ("adversarial on prior samples", PRIOR, "autoencoder", (False, True, False)),
    ("adversarial on reconstructions", RECON, "autoencoder", (False, True, False)),
    ("adversarial on both", BOTH, "autoencoder", (False, True, False)),
    ("adversarial on reconstructions, configured", {**RECON, "adversarial_to_encoder": True}, "autoencoder", (True, True, False)),
    ("discriminator loss on prior samples", PRIOR, "discriminator", (False, False, True)),
    ("discriminator loss on reconstructions", RECON, "discriminator", (False, False, True)),
    ("discriminator loss on both", {**BOTH, "r1_weight": 1.0, "r2_weight": 1.0, "gradient_penalty_weight": 1.0}, "discriminator", (False, False, True)),
]  # fmt: skip


@pytest.mark.parametrize("adversarial_loss", ["nonsaturating", "relativistic", "hinge"])
@pytest.mark.parametrize("term, fields, turn, expected", TABLE, ids=[row[0] for row in TABLE])
def test_gradient_routing(term, fields, turn, expected, adversarial_loss):
    found = gradients(ObjectiveConfig(**fields, adversarial_loss=adversarial_loss), turn)
    for network, gradient, wanted in zip(NETWORKS, found.values(), expected):
        # The KL of weight 1e-30 keeps the encoder in the graph; its own gradient is below 1e-25.
        got = gradient is not None and gradient.abs().max().item() > 1e-20
        assert got == wanted, f"{term} {'does not reach' if wanted else 'reaches'} the {network}"


@pytest.mark.parametrize("fakes, every", [("prior", 1), ("prior", 3), ("reconstruction", 1), ("both", 1), ("both", 3)])
@pytest.mark.parametrize("to_encoder", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 0.25])
def test_step_equals_separate_passes(fakes, every, to_encoder, gamma):
    """One pass backwards gives what Larsen's algorithm 1 gives with a pass for each network and term."""
    config = ObjectiveConfig(
        kl_weight=0.7, pixel_weight=0.2, feature_weight=0.3, adversarial_weight=2.0, fakes=fakes,
        adversarial_to_encoder=to_encoder, reconstruction_gamma=gamma, reconstruct_every=every,
    )  # fmt: skip
    found = gradients(config, "autoencoder")

    model, discriminator = networks()
    noise = draw_noise(torch.arange(6), 3, 0, 0)
    x = images()[::every]
    mu, logvar = model.encode(x)
    recon = model.decode(mu + (0.5 * logvar).exp() * noise.eps[::every])
    prior = model.decode(noise.z_prior)
    feature = 0.5 * (discriminator(x)[1].detach() - discriminator(recon)[1]).square().flatten(1).sum(1).mean()
    pixel = 0.5 * (x - recon).square().flatten(1).sum(1).mean()
    reconstruction = 0.2 * pixel + 0.3 * feature
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1).mean()
    fake = {"prior": [prior], "reconstruction": [recon], "both": [prior, recon]}[fakes]
    count = sum(len(f) for f in fake)
    adversarial = 2.0 * sum(-torch.log(torch.sigmoid(discriminator(f)[0])).sum() for f in fake) / count
    on_recon = 0 if fakes == "prior" else 2.0 * -torch.log(torch.sigmoid(discriminator(recon)[0])).sum() / count

    def reference(loss, module):
        grads = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
        return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(grads, module.parameters())])

    for_encoder = 0.7 * kl + reconstruction + (on_recon if to_encoder else 0)
    torch.testing.assert_close(found["encoder"], reference(for_encoder, model.encoder), rtol=1e-4, atol=1e-5)
    expected = reference(gamma * reconstruction + adversarial, model.decoder)
    torch.testing.assert_close(found["decoder"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fakes, every", [("prior", 1), ("prior", 3), ("reconstruction", 1), ("both", 1), ("both", 3)])
def test_the_discriminators_turn_equals_separate_passes(fakes, every):
    """Each fake meets the real image of its own place, and counts as much as any other; R1 is of the real images, R2
    of the fakes, the penalty of interpolations of prior samples where there are some."""
    config = ObjectiveConfig(
        adversarial_weight=1.0, adversarial_loss="relativistic", fakes=fakes, reconstruct_every=every,
        r1_weight=0.3, r2_weight=0.7, gradient_penalty_weight=0.2,
    )  # fmt: skip
    found = gradients(config, "discriminator")["discriminator"]

    model, discriminator = networks()
    noise, x = draw_noise(torch.arange(6), 3, 0, 0), images()
    mu, logvar = model.encode(x[::every])
    recon = model.decode(mu + (0.5 * logvar).exp() * noise.eps[::every]).detach()
    prior = model.decode(noise.z_prior).detach()
    pairs = {"prior": [(x, prior)], "reconstruction": [(x, recon)], "both": [(x[::every], recon), (x, prior)]}[fakes]
    relative = [torch.nn.functional.softplus(discriminator(f)[0] - discriminator(r)[0]) for r, f in pairs]

    def slopes(of):
        of = of.clone().requires_grad_()
        return torch.autograd.grad(discriminator(of)[0].sum(), of, create_graph=True)[0].flatten(1).norm(dim=1)

    mixed = torch.lerp(x, pairs[-1][1], noise.mix)
    r1, r2 = slopes(x).square().mean() / 2, slopes(torch.cat([f for _, f in pairs])).square().mean() / 2
    loss = torch.cat(relative).mean() + 0.3 * r1 + 0.7 * r2 + 0.2 * (slopes(mixed) - 1).square().mean()
    loss.backward()
    torch.testing.assert_close(found, flat_gradient(discriminator), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fakes, every", [("prior", 1), ("prior", 3), ("reconstruction", 1), ("both", 1), ("both", 3)])
def test_every_image_meets_the_discriminator_with_its_own_label(fakes, every):
    config = ObjectiveConfig(
        feature_weight=1.0, adversarial_weight=1.0, adversarial_loss="relativistic", fakes=fakes,
        reconstruct_every=every, gradient_penalty_weight=1.0,
    )  # fmt: skip
    y = torch.arange(6)
    x = (y / 10).view(6, 1, 1, 1).expand(6, 1, 8, 8)  # an image shows its class, and so do the fakes of that class
    shown = torch.cat([x[::every], x] if fakes != "reconstruction" else [x]).atanh()
    _, plain = networks()
    seen = []

    def discriminator(images, labels):
        seen.append(len(images))
        torch.testing.assert_close(images.mean((1, 2, 3)), labels / 10)
        return plain(images)

    noise, z = draw_noise(torch.arange(6), 3, 0, 0), torch.zeros(len(x[::every]), 3)
    Objective(config).discriminator(discriminator, x, shown, noise, 0, y)
    plain.requires_grad_(False)
    out = TrainingPass(z, z, z, z, shown.requires_grad_(), None)
    Objective(config).autoencoder(discriminator, x, out, noise, 0, Statistics(0.9), y)
    counted = {"prior": 6, "reconstruction": 6, "both": len(shown)}[fakes]
    assert seen == [counted + 12, len(shown), 6]  # with the real images and interpolations; by themselves


def test_augmentation_follows_the_images_that_are_reconstructed():
    """A reconstruction is augmented as its original is, so that perfect ones have features of no distance."""
    config = ObjectiveConfig(
        pixel_weight=0.0, feature_weight=1.0, adversarial_weight=1.0, augment=("color", "translation", "cutout"),
        reconstruct_every=2,
    )  # fmt: skip
    _, discriminator = networks()
    discriminator.requires_grad_(False)
    x, noise = images(), draw_noise(torch.arange(6), 3, 0, 0)
    z = torch.zeros(3, 3)
    raw = torch.cat([x[::2], torch.zeros(6, 1, 8, 8)]).atanh().requires_grad_()
    out = TrainingPass(z, z, z, z, raw, None)
    _, terms, _ = Objective(config).autoencoder(discriminator, x, out, noise, 0, Statistics(0.9))
    constant = 0.5 * elbo.LOG_2PI * discriminator(x)[1][0].numel()
    assert terms["feature"].item() == pytest.approx(constant, rel=1e-5)


def test_prior_samples_are_detached_in_the_discriminators_turn():
    """Not so in pythae, where its loss's gradient of the wrong sign reaches the decoder."""
    found = gradients(ObjectiveConfig(**BOTH), "discriminator")
    assert found["encoder"] is None and found["decoder"] is None


@pytest.mark.parametrize("fakes", ["prior", "both"])
def test_balance_sets_the_ratio_of_gradient_norms(fakes):
    """With the norms of the step before, the adversary weighs `adversarial_weight` times the reconstruction."""
    config = ObjectiveConfig(pixel_weight=1.0, adversarial_weight=5.0, balance=True, fakes=fakes)
    model, discriminator = networks()
    discriminator.requires_grad_(False)
    x, noise, o, statistics = images(), draw_noise(torch.arange(6), 3, 0, 0), Objective(config), Statistics(0.9)

    def step():
        out = model(x, noise.eps, noise.z_prior)
        loss, terms, batch = o.autoencoder(discriminator, x, out, noise, 0, statistics)
        return torch.autograd.grad(loss, out.raw)[0], terms, batch

    first, terms, batch = step()
    assert terms["adversarial_weight"].item() == 0  # nothing is known of the norms yet
    statistics.update(batch)
    second, terms, _ = step()
    adversarial = second - first  # the first step held the reconstruction alone
    assert (adversarial.norm() / first.norm()).item() == pytest.approx(5.0, rel=1e-4)
    bounded = Objective(dataclasses.replace(config, balance_max=1e-3))
    out = model(x, noise.eps, noise.z_prior)
    _, terms, _ = bounded.autoencoder(discriminator, x, out, noise, 0, statistics)
    assert terms["adversarial_weight"].item() == pytest.approx(5e-3)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian_learned", "gaussian_optimal", "laplace"])
def test_pixel_likelihoods_reach_the_terms(likelihood):
    torch.manual_seed(0)
    model = VAEGAN(image_size=8, channels=1, latent_dim=3, width=4, learned_scale=likelihood == "gaussian_learned")
    config = ObjectiveConfig(pixel_likelihood=likelihood, pixel_scale=0.5)
    x, noise = images(), draw_noise(torch.arange(6), 3, 0, 0)
    out = model(x, noise.eps, None)
    loss, terms, _ = Objective(config).autoencoder(None, x, out, noise, 0, Statistics(0.9))
    image = out.raw.tanh()
    expected = {
        "bernoulli": lambda: elbo.bernoulli_nll(x, out.raw),
        "gaussian": lambda: elbo.gaussian_nll(x, image, 0.25),
        "gaussian_learned": lambda: elbo.gaussian_nll(x, image, 1.0),
        "gaussian_optimal": lambda: elbo.gaussian_nll(x, image, 1.0),  # of unit size while no error is known
        "laplace": lambda: elbo.laplace_nll(x, image, 0.5),
    }[likelihood]().mean()
    torch.testing.assert_close(terms["pixel"], expected)
    torch.testing.assert_close(terms["elbo"], -expected - terms["kl"])
    loss.backward()
    if likelihood == "gaussian_learned":  # d nll / d log_scale = D - |x - x~|^2 / sigma^2
        wanted = (64 - (x - image).square().flatten(1).sum(1)).mean()
        torch.testing.assert_close(model.log_scale.grad, wanted.detach(), rtol=1e-4, atol=1e-4)


def test_optimal_variance_follows_the_last_steps_error():
    config = ObjectiveConfig(pixel_likelihood="gaussian_optimal")
    model, _ = networks()
    x, noise, statistics = images(), draw_noise(torch.arange(6), 3, 0, 0), Statistics(0.0)
    objective = Objective(config)
    _, _, batch = objective.autoencoder(None, x, model(x, noise.eps, None), noise, 0, statistics)
    statistics.update(batch)
    out = model(x, noise.eps, None)
    _, terms, _ = objective.autoencoder(None, x, out, noise, 1, statistics)
    mse = (x - out.raw.tanh()).square().mean()
    torch.testing.assert_close(terms["pixel"], 32 * (mse.log() + 1 + elbo.LOG_2PI), rtol=1e-5, atol=1e-4)


def test_gradient_penalty_is_at_interpolations_and_lazy_penalties_scale_up():
    model, discriminator = networks()
    x, noise = images(), draw_noise(torch.arange(6), 3, 0, 0)
    raw = model(x, noise.eps, noise.z_prior).raw
    config = ObjectiveConfig(adversarial_weight=1.0, gradient_penalty_weight=2.0, r1_weight=3.0, penalty_interval=4)
    loss, terms = Objective(config).discriminator(discriminator, x, raw, noise, 0)
    fake = raw.detach().tanh()[6:]
    mixed = (x + noise.mix * (fake - x)).requires_grad_()
    norm = torch.autograd.grad(discriminator(mixed)[0].sum(), mixed)[0].flatten(1).norm(dim=1)
    torch.testing.assert_close(terms["gradient_penalty"], (norm - 1).square().mean())
    torch.testing.assert_close(loss, terms["discriminator"] + 4 * (2 * terms["gradient_penalty"] + 3 * terms["r1"]))
    _, between = Objective(config).discriminator(discriminator, x, raw, noise, 1)
    assert "r1" not in between and "gradient_penalty" not in between


@pytest.mark.parametrize(
    "real, fake, decision",
    [(0.7, 0.7, (True, True)), (0.2, 0.7, (True, False)), (1.2, 0.7, (False, True)), (0.2, 1.2, (True, True))],
)
def test_equilibrium_gate(real, fake, decision):
    objective = Objective(ObjectiveConfig(adversarial_weight=1.0, equilibrium_gate=True))
    assert objective.gate({"loss_real": torch.tensor(real), "loss_fake": torch.tensor(fake)}) == decision


def test_augmentation_is_the_same_for_an_image_and_its_reconstruction():
    """So a perfect reconstruction has no feature error, whatever the augmentation."""
    config = ObjectiveConfig(**FEATURE, augment=("color", "translation", "cutout"))
    _, discriminator = networks()
    discriminator.requires_grad_(False)
    x, noise = images().clamp(-0.99, 0.99), draw_noise(torch.arange(6), 3, 0, 0)
    model, _ = networks()
    out = model(x, noise.eps, noise.z_prior)
    perfect = out._replace(raw=torch.cat([torch.atanh(x), out.raw[6:]]) + 0 * out.raw)
    _, terms, _ = Objective(config).autoencoder(discriminator, x, perfect, noise, 0, Statistics(0.9))
    constant = 0.5 * discriminator(x)[1][0].numel() * elbo.LOG_2PI
    assert terms["feature"].item() == pytest.approx(constant, rel=1e-5)


def test_noise_belongs_to_the_place_in_the_whole_batch():
    whole, part = draw_noise(torch.arange(8), 3, 5, 7), draw_noise(torch.arange(4, 8), 3, 5, 7)
    for a, b in zip(whole, part):
        torch.testing.assert_close(a[:, 4:] if a.shape[0] == 2 else a[4:], b, rtol=0, atol=0)
    assert not torch.equal(whole.eps, draw_noise(torch.arange(8), 3, 5, 8).eps)
