"""A Gaussian mixture over latents, fitted by expectation maximisation."""

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from safetensors.torch import save
from torch import Tensor

from vaegan import counter, stop
from vaegan.config import ConfigError

COMPONENTS = (1, 10, 30, 100)  # numbers that are tried; 100 take most of the time
_STARTS = 4
_ITERATIONS, _GAIN = 200, 1e-4  # at most so many, and until one gains less than that (nats a latent)
_FEWEST, _BUDGET = 10, 2e12  # iterations of a fit at least; operations of it, about a minute of one core
_RIDGE = 1e-6  # added to variances of latents that are scaled to 1: a component on few points stays invertible
_CHUNK = 1 << 18  # numbers in the largest temporary, whatever the number of latents


@dataclass(frozen=True)
class Mixture:
    """Density sum_k w_k N(z; m_k, L_k L_k^T): a sampler of latents.

    weights: (K,) that sum to 1; means: (K, latent_dim); factors: (K, latent_dim, latent_dim) lower triangles with a
    positive diagonal. float64 on the CPU.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor
    name: ClassVar[str] = "mixture"

    @property
    def latent_dim(self) -> int:
        return self.means.shape[1]

    @cached_property
    def _float32(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weights.cumsum(0).float(), self.means.float(), self.factors.float()

    def __call__(self, n: int, seed: int = 0, start: int = 0, device: torch.device | str = "cpu") -> Tensor:
        """n latents (n, latent_dim) float32 on that device; row i depends on seed and start + i alone."""
        upper, means, factors = (t.to(device) for t in self._float32)
        rows = torch.arange(start, start + n, device=device)
        u = counter.uniform(rows, 1, counter.key(seed, "sample", "mixture", "component"))[:, 0]
        chosen = torch.searchsorted(upper, u, right=True).clamp_max(
            len(upper) - 1
        )  # rounding may leave the sum below u
        eps = counter.normal(rows, self.latent_dim, counter.key(seed, "sample", "mixture"))
        at_once = max(1, _CHUNK // self.latent_dim**2)
        # Not a matrix product, whose last bit may depend on the number of rows.
        moved = [(factors[k] * e[:, None]).sum(-1) for k, e in zip(chosen.split(at_once), eps.split(at_once))]
        return means[chosen] + torch.cat(moved) if n else means[:0]

    def log_density(self, z: Tensor) -> Tensor:
        """log p(z) in nats of latents (N, latent_dim): (N,) float64."""
        z = z.to(self.means)
        return torch.cat([self._joint(part).logsumexp(1) for part in z.split(self._rows_at_once)])

    def scaled(self, mean: Tensor, scale: Tensor) -> "Mixture":
        """That of mean + scale * z, both (latent_dim,), on the CPU."""
        return Mixture(self.weights.cpu(), (mean + scale * self.means).cpu(), (scale[:, None] * self.factors).cpu())

    @property
    def _rows_at_once(self) -> int:
        return max(1, _CHUNK // self.means.numel())

    def _joint(self, z: Tensor) -> Tensor:
        """log w_k N(z; m_k, L_k L_k^T) of float64 latents (B, latent_dim): (B, K)."""
        k, d = self.means.shape
        eye = torch.eye(d, dtype=z.dtype, device=z.device).expand(k, d, d)
        whitening = torch.linalg.solve_triangular(self.factors, eye, upper=False)  # (K, d, d)
        white = (z @ whitening.flatten(0, 1).T).view(-1, k, d) - (whitening @ self.means[:, :, None])[:, :, 0]
        constant = self.weights.log() - self.factors.diagonal(0, 1, 2).log().sum(1) - 0.5 * d * math.log(2 * math.pi)
        return constant - 0.5 * white.square().sum(2)

    @cached_property
    def manifest(self) -> str:
        """SHA-256 of its tensors."""
        return hashlib.sha256(save(self.tensors())).hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        tensors = {"weights": self.weights, "means": self.means, "factors": self.factors}
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    @classmethod
    def of(cls, tensors: dict[str, Tensor], latent_dim: int) -> "Mixture":
        """From its `tensors`. ValueError unless they are a mixture over so many latents."""
        if set(tensors) != {"weights", "means", "factors"}:
            raise ValueError(f"it holds {sorted(tensors)[:5]} for weights, means and factors")
        weights, means, factors = (tensors[name] for name in ("weights", "means", "factors"))
        k = weights.numel()
        wanted = ((k,), (k, latent_dim), (k, latent_dim, latent_dim))
        if k == 0 or (weights.shape, means.shape, factors.shape) != wanted:
            raise ValueError(f"shapes {[tuple(t.shape) for t in (weights, means, factors)]} for {list(wanted)}")
        if any(t.dtype != torch.float64 or not t.isfinite().all() for t in (weights, means, factors)):
            raise ValueError("numbers that are not finite float64")
        if weights.min() < 0 or abs(weights.sum().item() - 1) > 1e-6:
            raise ValueError(f"weights from {weights.min():.3g} that sum to {weights.sum():.6g}")
        if factors.diagonal(0, 1, 2).min() <= 0 or factors.triu(1).any():
            raise ValueError("factors that are no lower triangles with a positive diagonal")
        return cls(weights, means, factors)


def fit_mixture(
    z: Tensor, components: int | tuple[int, ...] = COMPONENTS, seed: int = 0, held_out: Tensor | None = None
) -> Mixture:
    """The mixture of full covariances that EM finds for latents (N, latent_dim), in float64, from a k-means++ start.

    components: their number (Ghosh et al. 2020 take 10), or several, of which the one is taken under
    which `held_out` (M, latent_dim) is likeliest, by default every tenth latent, then left out of the fit; those that
    would take many minutes, as in hundreds of dimensions, are not tried. Raises ConfigError for fewer than 2 latents,
    for fewer than components, or if one is not finite.
    """
    z = z.detach().to("cuda" if z.device.type == "cuda" else "cpu", torch.float64)  # others have no float64
    if len(z) < 2 or not z.isfinite().all():
        raise ConfigError(f"a mixture is fitted to 2 latents or more, all of them finite, got {len(z)}")
    numbers = (components,) if isinstance(components, int) else components
    if held_out is None and len(numbers) > 1:
        left = torch.arange(len(z), device=z.device) % 10 == 9
        z, held_out = z[~left], z[left]
    if not numbers or not 1 <= min(numbers) <= len(z):
        raise ConfigError(f"components must be from 1 to the number of latents, {len(z)}, got {components}")
    mean, scale = z.mean(0), z.std(0, correction=0).clamp_min(1e-12)
    tried = [k for k in numbers if k <= len(z) and (k == min(numbers) or _iterations(z, k) >= _FEWEST)]
    fitted = [_fit((z - mean) / scale, k, seed).scaled(mean, scale) for k in tried]
    if held_out is None or not len(held_out):
        return fitted[0]
    return max(fitted, key=lambda mixture: mixture.log_density(held_out).mean().item())


def _fit(z: Tensor, components: int, seed: int) -> Mixture:
    mixture, before = _likeliest_start(z, components, seed), -math.inf
    for _, (mixture, now) in zip(range(max(_FEWEST, _iterations(z, components))), expectation_maximisation(z, mixture)):
        stop.check()
        if now - before < _GAIN:
            break
        before = now
    return mixture


def _iterations(z: Tensor, components: int) -> int:
    """At most so many, by what they cost."""
    n, d = z.shape
    return min(_ITERATIONS, int(_BUDGET / (4 * n * components * d * d)))


def _likeliest_start(z: Tensor, components: int, seed: int) -> Mixture:
    """Of several starts the one that a few iterations on some of the latents bring furthest (Biernacki et al. 2003,
    section 2): from a single one EM may end far below."""
    some, starts = z[:: -(-len(z) // 10_000)], []
    some = some if len(some) >= components else z
    for number in range(_STARTS if components > 1 else 1):
        start = _first(some, components, counter.key(seed, "start", number))
        mixture = next(itertools.islice(expectation_maximisation(some, start), 9, None))[0]
        starts.append((mixture.log_density(some).mean().item(), -number, mixture))
    return max(starts)[2]


def expectation_maximisation(z: Tensor, mixture: Mixture) -> Iterator[tuple[Mixture, float]]:
    """Each next mixture, and the mean log-likelihood in nats of float64 latents (N, latent_dim) under the one before
    (Dempster, Laird & Rubin 1977; Bishop 2006, equations 9.23 to 9.28)."""
    while True:
        likelihood, sums = 0.0, None
        for part in z.split(mixture._rows_at_once):
            joint = mixture._joint(part)  # (B, K)
            total = joint.logsumexp(1, keepdim=True)
            likelihood += total.sum().item()
            moments = _moments(part, (joint - total).exp())
            sums = moments if sums is None else [a + b for a, b in zip(sums, moments)]
        mixture = _maximised(*sums)
        yield mixture, likelihood / len(z)


def _moments(z: Tensor, share: Tensor) -> list[Tensor]:
    """Of latents (B, d) and each component's share in them (B, K): sums (K,), (K, d) and (K, d, d)."""
    weighted = (share[:, :, None] * z[:, None]).flatten(1)  # (B, K d)
    return [share.sum(0), share.T @ z, (weighted.T @ z).view(-1, *[z.shape[1]] * 2)]


def _maximised(count: Tensor, first: Tensor, second: Tensor) -> Mixture:
    n = count.clamp_min(torch.finfo(count.dtype).tiny)  # a component may have lost all its points
    means = first / n[:, None]
    covariances = second / n[:, None, None] - means[:, :, None] * means[:, None]
    ridge = _RIDGE * torch.eye(means.shape[1], dtype=means.dtype, device=means.device)
    return Mixture(count / count.sum(), means, torch.linalg.cholesky(covariances + ridge))


def _first(z: Tensor, components: int, seed: int) -> Mixture:
    """Each latent with the nearest of some that k-means++ has drawn (Arthur & Vassilvitskii 2007, section 2.2)."""
    u = counter.uniform(torch.arange(components), 1, counter.key(seed, "mixture"))[:, 0].double()
    nearest, owner = torch.full_like(z[:, 0], math.inf), torch.zeros(len(z), dtype=torch.int64, device=z.device)
    place = min(int(u[0] * len(z)), len(z) - 1)
    for k in range(components):
        if k > 0:
            upper = nearest.cumsum(0)
            place = min(int(torch.searchsorted(upper, u[k].to(upper) * upper[-1], right=True)), len(z) - 1)
        distance = (z - z[place]).square().sum(1)
        owner, nearest = torch.where(distance < nearest, k, owner), torch.minimum(nearest, distance)
    owned = [z[owner == k] for k in range(components)]
    moments = [_moments(part, torch.ones_like(part[:, :1])) for part in owned]
    return _maximised(*(torch.cat(of) for of in zip(*moments)))
