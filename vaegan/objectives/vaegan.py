"""The one composition of all terms: two methods, one a player."""

from collections.abc import Callable

import torch
from torch import Tensor

from vaegan.config import ObjectiveConfig
from vaegan.model import TrainingPass, of_rows
from vaegan.networks.layers import flat_as
from vaegan.objectives import augment, elbo, penalties
from vaegan.objectives.adversarial import LOSSES, accuracy, ramp
from vaegan.objectives.likelihoods import feature_nll, pixel_nll
from vaegan.objectives.noise import Noise
from vaegan.objectives.routing import gradients_at_output, surrogate_loss
from vaegan.objectives.statistics import Statistics

DiscriminatorFn = Callable[..., tuple[Tensor, Tensor]]  # of images, and of labels where the run is conditional


class Objective:
    """Losses of both players, from the tensors of one micro-batch.

    Gradients reach the networks so ("-" is nothing):

    | term                              | encoder              | prior means m_y | decoder       | discriminator |
    |-----------------------------------|----------------------|-----------------|---------------|---------------|
    | KL                                | yes                  | yes             | -             | -             |
    | pixel likelihood                  | yes                  | -               | yes, weighted | -             |
    | feature likelihood                | yes                  | -               | yes, weighted | -             |
    | generator adversarial, on x_p     | -                    | -, detached     | yes           | -             |
    | generator adversarial, on x~      | - unless configured  | -               | yes           | -             |
    | discriminator loss and penalties  | -                    | -               | -             | yes           |

    "weighted" is `reconstruction_gamma`. The reconstruction's and the adversarial gradients meet at the decoder's
    output, where they are weighed against each other, and go through the decoder once from there. The table is exact
    unless the decoder has batch normalisation, whose statistics tie the images of a batch together. Prior means are
    those of conditional models, in the model's optimizer and average: they follow the posteriors of their class, and
    not an adversary, who would have them where the decoder deceives it best.
    """

    def __init__(self, config: ObjectiveConfig):
        self.config = config
        self.adversarial = LOSSES[config.adversarial_loss]

    def kl_weight(self, step: int) -> float:
        c = self.config
        return c.kl_weight * elbo.kl_schedule(step, c.kl_schedule, c.kl_warmup_steps)

    def adversarial_weight(self, step: int) -> float:
        c = self.config
        return c.adversarial_weight * ramp(step, c.adversarial_start, c.adversarial_ramp)

    def penalises(self, step: int) -> bool:
        """Whether a gradient penalty is due, for which gradients are differentiated once more."""
        c = self.config
        return step % c.penalty_interval == 0 and c.r1_weight + c.r2_weight + c.gradient_penalty_weight > 0

    # ------------------------------------------------------------------ the discriminator's turn

    def discriminator(
        self,
        discriminator: DiscriminatorFn,
        x: Tensor,
        raw: Tensor,
        noise: Noise,
        step: int,
        y: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the discriminator, and its terms (means over the micro-batch).

        x: (B, C, H, W) real images; raw: the decoder's output of the training pass, which gets no gradient. Real and
        fake images share one forward. With both kinds of fakes each image counts the same, and real and fake weigh
        the same (Larsen et al. sum them). y: (B,) labels of a conditional run, of x and of the fakes beside them.
        """
        c, n = self.config, len(x)
        fakes = {"prior": raw[-n:], "reconstruction": raw[:n], "both": raw}[c.fakes].detach().tanh()
        # Of both kinds, the m reconstructions go in front, where `of_rows` looks for a part of the images; the real ones
        # stay before the other n fakes, so that runs without the m go on to the bit.
        m = len(fakes) - n
        images = torch.cat([fakes[:m], x, fakes[m:]])
        penalise = self.penalises(step)
        if c.gradient_penalty_weight > 0 and penalise:
            images = torch.cat([images, torch.lerp(x, fakes[-n:], noise.mix)])
        images.requires_grad_(penalise)
        logits, _ = _judged(discriminator, self._augment(images, noise.augment[0]), y)
        real, fake = logits[m : m + n], torch.cat([logits[:m], logits[m + n : m + 2 * n]])
        loss = self.adversarial.discriminator(of_rows(real, len(fake)), fake).mean()
        acc_real, acc_fake = accuracy(c.adversarial_loss, real.detach(), fake.detach())
        terms = {"discriminator": loss, "accuracy_real": acc_real, "accuracy_fake": acc_fake}
        if c.equilibrium_gate:
            terms["loss_real"], terms["loss_fake"] = _cross_entropies(real.detach(), fake.detach())
        if penalise:
            penalty, penalty_terms = self._penalties(logits, images, m, n)
            loss = loss + penalty
            terms |= penalty_terms
        return loss, {name: term.detach() for name, term in terms.items()}

    def _penalties(self, logits: Tensor, images: Tensor, m: int, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the penalties, scaled up for the steps between, and each one's plain value. The images are m
        fakes, n real ones, n fakes, and the interpolations."""
        c = self.config
        slopes = penalties.input_gradients(logits, images)
        real, fake, mixed = slopes[m : m + n], torch.cat([slopes[:m], slopes[m + n : m + 2 * n]]), slopes[m + 2 * n :]
        terms, total = {}, 0.0
        for name, weight, penalty, rows in (
            ("r1", c.r1_weight, penalties.zero_centred, real),
            ("r2", c.r2_weight, penalties.zero_centred, fake),
            ("gradient_penalty", c.gradient_penalty_weight, penalties.one_centred, mixed),
        ):
            if weight > 0:
                terms[name] = penalty(rows).mean()
                total = total + weight * c.penalty_interval * terms[name]
        return total, terms

    def gate(self, terms: dict[str, Tensor]) -> tuple[bool, bool]:
        """Whether (decoder, discriminator) are to be updated, from the terms of the whole batch (the authors' code
        of Larsen et al. 2016): a player that is ahead by more than the margin pauses, never both."""
        c = self.config
        if not c.equilibrium_gate:
            return True, True
        real, fake = terms["loss_real"].item(), terms["loss_fake"].item()
        train_discriminator = min(real, fake) >= c.equilibrium - c.equilibrium_margin
        train_decoder = max(real, fake) <= c.equilibrium + c.equilibrium_margin
        return (train_decoder, train_discriminator) if train_decoder or train_discriminator else (True, True)

    # ------------------------------------------------------------------ the autoencoder's turn

    def autoencoder(
        self,
        discriminator: DiscriminatorFn | None,
        x: Tensor,
        out: TrainingPass,
        noise: Noise,
        step: int,
        statistics: Statistics,
        y: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Loss of encoder and decoder, its terms, and the batch's statistics (all means over the micro-batch).

        The first is a scalar whose gradient is the one that the table describes, not the sum of the terms. The
        discriminator must be frozen. y: (B,) labels of a conditional run.
        """
        c, n = self.config, len(x)
        terms: dict[str, Tensor] = {}
        batch: dict[str, Tensor] = {}
        raw = out.raw.detach().requires_grad_()  # (B to 2B, C, H, W), a leaf: gradients stop at the decoder's output
        scale = None if out.log_scale is None else out.log_scale.detach().requires_grad_()
        reconstruction, adversarial = self._image_terms(
            discriminator, x, raw, scale, noise, step, statistics, y, terms, batch
        )
        disjoint = len(raw) - n if c.fakes == "prior" else None
        others = [] if scale is None else [scale]
        g_rec, g_adv, g_scale = gradients_at_output(reconstruction, adversarial, raw, others, disjoint)
        if g_adv is not None:
            if c.balance:
                batch["reconstruction_norm2"], batch["adversarial_norm2"] = g_rec.square().sum(), g_adv.square().sum()
            g_adv = g_adv * self._adversarial_factor(step, statistics, terms)
        loss = surrogate_loss(
            out.raw, out.z, out.z_decoded, g_rec, g_adv, c.reconstruction_gamma,
            adversary_touches_x=c.fakes != "prior", adversary_to_encoder=c.adversarial_to_encoder,
        )  # fmt: skip
        if out.logvar is not None and c.kl_weight > 0:
            loss = loss + self._kl(out, step, statistics, terms, batch)
        elif out.prior_mean is not None:
            loss = loss + 0 * out.prior_mean.sum()  # several processes wait for a gradient of every parameter
        for g in g_scale:
            loss = loss + out.log_scale * g
            terms["pixel_scale"] = out.log_scale.exp()
        if "pixel" in terms and "kl" in terms:
            terms["elbo"] = -terms["pixel"] - terms["kl"]
            discrete = c.pixel_likelihood == "bernoulli"
            terms["bits_per_dim"] = elbo.bits_per_dim(-terms["elbo"], x[0].numel(), discrete)
        return loss, {name: term.detach() for name, term in terms.items()}, batch

    def _kl(self, out: TrainingPass, step: int, statistics: Statistics, terms: dict, batch: dict) -> Tensor:
        kl = elbo.kl_divergence(out.mu, out.logvar, out.prior_mean)  # (B, L)
        terms["kl"] = kl.sum(1).mean()
        weight = self.kl_weight(step)
        terms["kl_weight"] = terms["kl"].new_tensor(weight)
        if self.config.free_bits > 0:
            batch["kl_per_dim"] = kl.detach().mean(0)
            kl = elbo.apply_free_bits(kl, statistics.get("kl_per_dim"), self.config.free_bits)
        return weight * kl.sum(1).mean()

    def _image_terms(
        self, discriminator, x, raw, scale, noise, step, statistics, y, terms, batch
    ) -> tuple[Tensor | None, Tensor | None]:
        """The weighted reconstruction terms and the plain adversarial term as functions of `raw`; None where the
        weights are zero."""
        c, n = self.config, len(x)
        decoded = slice(None, None, c.reconstruct_every)  # the images whose reconstructions come first in `raw`
        m = len(x[decoded])
        reconstruction = adversarial = None
        if c.pixel_weight > 0:
            terms["pixel"] = pixel_nll(c, x[decoded], raw[:m], scale, statistics, batch).mean()
            reconstruction = c.pixel_weight * terms["pixel"]
        hears_adversary = self.adversarial_weight(step) > 0
        rows = _rows_for_discriminator(c, hears_adversary, len(raw), n, m)
        if rows is None:
            return reconstruction, adversarial
        images = raw[rows].tanh()
        logits, features = _judged(discriminator, self._augment(images, noise.augment[1]), y)
        real_logits = real_features = None
        if c.feature_weight > 0 or (hears_adversary and c.adversarial_loss == "relativistic"):
            with torch.no_grad():
                real_logits, real_features = _judged(discriminator, self._augment(x, noise.augment[1]), y)
        if c.feature_weight > 0:
            real_flat, flat = flat_as(real_features, features), flat_as(features, features)
            terms["feature"] = feature_nll(c, real_flat[decoded], flat[:m], statistics, batch).mean()
            weighted = c.feature_weight * terms["feature"]
            reconstruction = weighted if reconstruction is None else reconstruction + weighted
        if hears_adversary:
            fake = {"prior": logits[-n:], "reconstruction": logits[:n], "both": logits}[c.fakes]
            real = None if real_logits is None else of_rows(real_logits, len(fake))
            adversarial = terms["adversarial"] = self.adversarial.generator(real, fake).mean()
        return reconstruction, adversarial

    def _adversarial_factor(self, step: int, statistics: Statistics, terms: dict) -> Tensor | float:
        """Factor of the adversarial gradient: the weight, and with `balance` the ratio of the two gradients' norms
        at the decoder's output over the steps before (after Esser et al. 2021, equation 7, who take the last layer).
        In the first step, when no norm is known, it is 0."""
        weight = self.adversarial_weight(step)
        if self.config.balance:
            adversarial = statistics.get("adversarial_norm2")
            if adversarial is None:
                weight = 0.0
            else:
                ratio = (statistics.get("reconstruction_norm2") / adversarial.clamp_min(1e-24)).sqrt()
                weight = weight * ratio.clamp(max=self.config.balance_max)
        terms["adversarial_weight"] = torch.as_tensor(weight, device=terms["adversarial"].device)
        return weight

    def _augment(self, images: Tensor, u: Tensor) -> Tensor:
        """The same augmentation for an image, its reconstruction and the prior sample beside it."""
        if not self.config.augment:
            return images
        return augment.differentiable_augment(images, of_rows(u, len(images)), self.config.augment)


def _judged(discriminator: DiscriminatorFn, images: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits and features of images, with the labels (B,) of a conditional run."""
    return discriminator(images) if y is None else discriminator(images, of_rows(y, len(images)))


def _rows_for_discriminator(c: ObjectiveConfig, hears_adversary: bool, total: int, n: int, m: int) -> slice | None:
    """Rows of the decoder's output, m reconstructions before n prior samples, that the autoencoder's terms look at
    through the discriminator."""
    reconstruction = c.feature_weight > 0 or (hears_adversary and c.fakes != "prior")
    prior = hears_adversary and c.fakes != "reconstruction"
    if not (reconstruction or prior):
        return None
    return slice(0 if reconstruction else total - n, total if prior else m)


def _cross_entropies(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """-log D(x) and -log(1 - D(x~)), means in nats."""
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    return bce(real, torch.ones_like(real)), bce(fake, torch.zeros_like(fake))
