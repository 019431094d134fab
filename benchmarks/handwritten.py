"""The same algorithm as a training script by hand would have it, on the same networks of plain torch layers.

The decoder and the discriminator are called once for each kind of image, the generator's turn leaves the discriminator
unfrozen, as most such scripts do, Adam is the plain one, and every step logs its losses by `.item()`. Terms and weights
are those of a recipe like configs/cifar10.yaml: KL, pixels, learned similarity, a relativistic adversary on prior
samples, weighed by the ratio of gradient norms at the decoder's last layer (Esser et al. 2021, equation 7), and R1 and
R2 every few steps.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F

from vaegan.config import Config
from vaegan.model import build_discriminator, build_model
from vaegan.networks.strided import StridedConv2d, StridedConvTranspose2d
from vaegan.objectives.augment import COLUMNS, differentiable_augment


def loop(config: Config, pixels: torch.Tensor, steps: int) -> Callable[[], None]:
    """A function that takes so many steps on uint8 images (N, C, H, W)."""
    torch.manual_seed(config.seed)
    c, o = config.objective, config.optimizer
    model, discriminator = plain(build_model(config)), plain(build_discriminator(config))
    ema = copy.deepcopy(model)
    optimizer_ae = torch.optim.Adam(model.parameters(), lr=o.lr, betas=o.betas)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=o.discriminator_lr, betas=o.discriminator_betas)
    dataset = torch.utils.data.TensorDataset(pixels.float() / 127.5 - 1)
    loader = torch.utils.data.DataLoader(dataset, config.train.batch_size, shuffle=True, drop_last=True)
    last_layer = list(model.decoder.parameters())[-2]
    history, batches = [], endless(loader)
    taken = 0

    def augmented(x: torch.Tensor) -> torch.Tensor:
        return differentiable_augment(x, torch.rand(len(x), COLUMNS), c.augment)

    def step() -> None:
        nonlocal taken
        x = next(batches)
        if config.data.horizontal_flip:
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
        x_part = x[:: c.reconstruct_every]
        mu, logvar = model.encoder(x_part)
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
        x_rec = model.decoder(z).tanh()
        x_prior = model.decoder(torch.randn(len(x), z.shape[1])).tanh()

        real, fake = augmented(x), augmented(x_prior.detach())
        penalised = taken % c.penalty_interval == 0 and c.r1_weight > 0
        if penalised:
            real.requires_grad_()
            fake.requires_grad_()
        d_real, _ = discriminator(real)
        d_fake, _ = discriminator(fake)
        loss_d = F.softplus(d_fake - d_real).mean()
        if penalised:
            r1 = torch.autograd.grad(d_real.sum(), real, create_graph=True)[0].square().sum((1, 2, 3)).mean()
            r2 = torch.autograd.grad(d_fake.sum(), fake, create_graph=True)[0].square().sum((1, 2, 3)).mean()
            loss_d = loss_d + c.penalty_interval / 2 * (c.r1_weight * r1 + c.r2_weight * r2)
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()

        d_real, f_real = discriminator(augmented(x))
        _, f_rec = discriminator(augmented(x_rec))
        d_fake, _ = discriminator(augmented(x_prior))
        pixel = (x_rec - x_part).square().sum((1, 2, 3)).mean() / (2 * c.pixel_scale**2)
        feature = 0.5 * (f_rec - f_real.detach()[:: c.reconstruct_every]).square().flatten(1).sum(1).mean()
        reconstruction = c.pixel_weight * pixel + c.feature_weight * feature
        adversarial = F.softplus(d_real.detach() - d_fake).mean()
        g_rec = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0].norm()
        g_adv = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0].norm()
        weight = c.adversarial_weight * (g_rec / (g_adv + 1e-8)).clamp(max=c.balance_max).detach()
        kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1).mean()
        loss_ae = c.kl_weight * kl + reconstruction + weight * adversarial
        optimizer_ae.zero_grad()
        loss_ae.backward()
        optimizer_ae.step()

        with torch.no_grad():
            for mine, theirs in zip(ema.parameters(), model.parameters()):
                mine.mul_(config.train.ema_decay).add_(theirs, alpha=1 - config.train.ema_decay)
        history.append((loss_d.item(), loss_ae.item(), kl.item(), pixel.item(), feature.item(), adversarial.item()))
        taken += 1

    def run() -> None:
        for _ in range(steps):
            step()

    return run


def plain(module: torch.nn.Module) -> torch.nn.Module:
    """The same module with torch's own convolutions in place of ours, which are made from them."""
    for layer in module.modules():
        if isinstance(layer, StridedConv2d):
            layer.__class__ = torch.nn.Conv2d
        elif isinstance(layer, StridedConvTranspose2d):
            layer.__class__ = torch.nn.ConvTranspose2d
    return module


def endless(loader):
    while True:
        for (x,) in loader:
            yield x
