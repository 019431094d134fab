"""A second VAE on the latents of a first: its own latents do follow N(0, I) closely (Dai & Wipf 2019, section 4)."""

import hashlib
import math

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import silu

from vaegan import counter, exported, stop
from vaegan.config import ConfigError

_BLOCK = 64  # latents computed at a time, always from a multiple of it on
_BATCH = 256
_LEARNING_RATE = 5e-3
_FIRST_LOG_GAMMA = -1.0


class SecondStage(nn.Module):
    """u ~ N(0, I), z ~ N(Dec(u), gamma^2 I) in coordinates in which the latents are white: a sampler of latents.

    Dense networks, u of as many dimensions as z, and a learned gamma, as in the paper. There z is taken as it is; but a
    deterministic encoder's latents have any scale, and one gamma would not serve them all.
    """

    name = "second_stage"

    def __init__(self, latent_dim: int, width: int = 256, depth: int = 3):
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = Dense(latent_dim, width, depth, 2 * latent_dim)
        self.decoder = Dense(latent_dim, width, depth, latent_dim)
        self.log_gamma = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("factor", torch.eye(latent_dim))  # Cholesky factor of the latents' covariance

    @torch.no_grad()
    def forward(self, n: int, seed: int = 0, start: int = 0, device: torch.device | str = "cpu") -> Tensor:
        """n latents (n, latent_dim) float32 on that device; row i depends on seed and start + i alone."""
        self.to(device)
        first = start - start % _BLOCK
        # Whole blocks, for the last bit of a matrix product may depend on the number of rows.
        blocks = [self._block(place, seed, device) for place in range(first, start + n, _BLOCK)]
        return torch.cat(blocks)[start - first :][:n] if n else self.mean.new_empty(0, self.latent_dim)

    def _block(self, start: int, seed: int, device: torch.device | str) -> Tensor:
        rows = torch.arange(start, start + _BLOCK, device=device)
        u = counter.normal(rows, self.latent_dim, counter.key(seed, "sample", "second stage"))
        eps = counter.normal(rows, self.latent_dim, counter.key(seed, "sample", "second stage", "gamma"))
        return (self.decoder(u) + self.log_gamma.exp() * eps) @ self.factor.T + self.mean

    def white(self, z: Tensor) -> Tensor:
        """Latents (B, latent_dim) in the coordinates of the networks."""
        return torch.linalg.solve_triangular(self.factor, (z - self.mean).T, upper=False).T

    def bound(self, x: Tensor, eps: Tensor) -> Tensor:
        """Evidence lower bound in nats of white latents (B, latent_dim), with noise of that shape: (B,)."""
        mu, logvar = self.encoder(x).chunk(2, 1)
        u = mu + (0.5 * logvar).exp() * eps
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)
        return self._log_likelihood(x, u) - kl

    def _log_likelihood(self, x: Tensor, u: Tensor) -> Tensor:
        squares = (x - self.decoder(u)).square().sum(-1) * (-2 * self.log_gamma).exp()
        return -0.5 * squares - self.latent_dim * (self.log_gamma + 0.5 * math.log(2 * math.pi))

    @property
    def manifest(self) -> str:
        """SHA-256 of its tensors."""
        return hashlib.sha256(save(self.tensors())).hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}

    @classmethod
    def of(cls, tensors: dict[str, Tensor], latent_dim: int) -> "SecondStage":
        """From its `tensors`. ValueError unless they are a second stage over so many latents."""
        depth = sum(name.startswith("encoder.layers.") for name in tensors) // 2
        last = tensors.get("encoder.last.weight", torch.empty(0, 0))
        if last.ndim != 2 or last.shape[1] <= latent_dim:
            raise ValueError(f"it holds no second stage over {latent_dim} latents")
        with torch.device("meta"):
            model = cls(latent_dim, last.shape[1] - latent_dim, depth)
        exported.require_same(tensors, model.state_dict())
        if any(t.dtype != torch.float32 or not t.isfinite().all() for t in tensors.values()):
            raise ValueError("numbers that are not finite float32")
        if tensors["factor"].diagonal().min() <= 0 or tensors["factor"].triu(1).any():
            raise ValueError("a factor that is no lower triangle with a positive diagonal")
        model.to_empty(device="cpu").load_state_dict(tensors)
        return model.requires_grad_(False).eval()

    @torch.no_grad()
    def log_density(self, z: Tensor, draws: int = 32, seed: int = 0) -> Tensor:
        """log p(z) in nats of latents (N, latent_dim): (N,), from below, by importance sampling (Burda et al. 2016,
        equation 8)."""
        volume = self.factor.diagonal().log().sum()
        parts, starts = z.to(self.mean).split(1024), range(0, len(z), 1024)
        return torch.cat([self._importance(part, at, draws, seed) for part, at in zip(parts, starts)]) - volume

    def _importance(self, z: Tensor, start: int, draws: int, seed: int) -> Tensor:
        x, d = self.white(z), self.latent_dim
        mu, logvar = self.encoder(x).chunk(2, 1)
        rows = torch.arange(start * draws, (start + len(z)) * draws, device=z.device)
        eps = counter.normal(rows, d, counter.key(seed, "second stage", "density")).view(-1, draws, d)
        u = mu[:, None] + (0.5 * logvar).exp()[:, None] * eps  # (B, draws, d)
        log_ratio = 0.5 * (eps.square() - u.square() + logvar[:, None]).sum(2)  # log p(u) - log q(u|x)
        return (self._log_likelihood(x[:, None], u) + log_ratio).logsumexp(1) - math.log(draws)


class Dense(nn.Module):
    """Dense layers; the last one also sees the input, as in the authors' code."""

    def __init__(self, inputs: int, width: int, depth: int, outputs: int):
        super().__init__()
        sizes = [inputs, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, sizes[1:]))
        self.last = nn.Linear(width + inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.layers:
            h = silu(layer(h))
        return self.last(torch.cat([h, x], -1))


def fit_second_stage(
    z: Tensor, seed: int = 0, steps: int | None = None, width: int | None = None, depth: int = 3
) -> SecondStage:
    """The second VAE, trained on latents (N, latent_dim) by Adam, its learning rate falling to zero along a cosine.

    steps: of 256 latents; by default 400 epochs, but from 1000 to 10 000. width: of the hidden layers; by default four
    times latent_dim, but from 128 to 1024 (the paper's). Weights, order and noise are counted by `seed`. Raises
    ConfigError for fewer than 2 latents, or if one is not finite.
    """
    z = z.detach().float()
    if len(z) < 2 or not z.isfinite().all():
        raise ConfigError(f"a second stage is fitted to 2 latents or more, all of them finite, got {len(z)}")
    d, batch_size = z.shape[1], min(_BATCH, len(z))
    model = SecondStage(d, width or min(max(4 * d, 128), 1024), depth).to(z.device)
    _initialise(model, seed)
    model.mean.copy_(z.mean(0))
    model.factor.copy_(_factor(z))
    x, per_epoch = model.white(z), len(z) // batch_size
    steps = steps or min(max(400 * per_epoch, 1000), 10_000)
    optimizer = torch.optim.Adam(model.parameters(), _LEARNING_RATE)
    for step in range(steps):
        stop.check()
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = counter.permutation(len(z), counter.key(seed, "second stage", "order", epoch)).to(z.device)
        part = order[place * batch_size :][:batch_size]
        eps = counter.normal(part, d, counter.key(seed, "second stage", "noise", epoch))
        optimizer.param_groups[0]["lr"] = 0.5 * _LEARNING_RATE * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        model.bound(x[part], eps).mean().neg().backward()
        optimizer.step()
    return model.requires_grad_(False).eval()


def _factor(z: Tensor) -> Tensor:
    """Cholesky factor of the covariance, its variances a millionth larger, for some may be zero."""
    covariance = z.double().cpu().T.cov(correction=0).reshape(z.shape[1], z.shape[1])
    variances = covariance.diagonal()
    return torch.linalg.cholesky(covariance + torch.diag(1e-6 * variances + 1e-12 * (1 + variances.max()))).float()


@torch.no_grad()
def _initialise(model: SecondStage, seed: int) -> None:
    """He's normal weights (He et al. 2015, equation 10), those of the last layers a tenth of that, and no biases.

    gamma starts low: from 1, which is the scale of white latents, the decoder learns to ignore u and stays with that.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            rows = torch.arange(len(parameter), device=parameter.device)
            drawn = counter.normal(rows, parameter.shape[1], counter.key(seed, "second stage", name))
            parameter.copy_(drawn * math.sqrt(2 / parameter.shape[1]) * (0.1 if ".last." in name else 1))
        else:
            parameter.zero_()
    model.log_gamma.fill_(_FIRST_LOG_GAMMA)
