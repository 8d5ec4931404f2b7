"""Functions drawn from a Gaussian process, or random sawtooth waves: a task is one function, its examples are noisy points on it.
The data of neural processes (Garnelo et al. 2018, arXiv:1807.01613; Gordon et al. 2020, arXiv:1910.13556, section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Gt, Len
from torch import Tensor

from metarun.data.base import Dataset
from metarun.data.episodes import Episodes, draws, episode_keys, normal_draws, task_keys
from metarun.errors import UserError
from metarun.problem import Density, EpisodeSpec, Gaussian, Kind
from metarun.task import Batch, Context, Task

# Streams of draws, apart from those of other data.
POINTS, VALUES, WAVE, NUMBER = 41, 42, 43, 44
JITTER = 1e-8  # of variance, without which the covariance of a smooth function is singular to rounding
BLOCK = 1000  # episodes whose bounds are computed at a time

Kernel = Literal["eq", "matern52", "periodic", "weakly_periodic", "sawtooth"]
Interval = Annotated[list[float], Len(2, 2)]


@dataclass(frozen=True)
class Prior:
    """Where functions come from. Covariances k(d) of two values at a distance d, all with k(0) = 1:

        eq               exp(−d² / 2ℓ²)
        matern52         (1 + r + r²/3) exp(−r),  r = √5 |d| / ℓ
        periodic         exp(−2 sin²(π d / p))
        weakly_periodic  the product of eq and periodic

    A sawtooth is no Gaussian process: (±f x − b) mod 1, its frequency f uniform, its sign and b in [0, 1) as likely as any other.

    Attributes:
        lengthscale, period: ℓ and p.
        frequency: [low, high] of f.
        noise: variance of Gaussian noise on every value.
    """

    kernel: Kernel
    lengthscale: float
    period: float
    frequency: tuple[float, float]
    noise: float

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and variance of one value."""
        return (0.5, 1 / 12 + self.noise) if self.kernel == "sawtooth" else (0.0, 1.0 + self.noise)

    def covariance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """[B, n, m] of the function's values at a [B, n] and b [B, m]."""
        distance = np.abs(a[:, :, None] - b[:, None, :])
        if self.kernel == "matern52":
            r = math.sqrt(5) * distance / self.lengthscale
            return (1 + r + r * r / 3) * np.exp(-r)
        exponent = np.zeros_like(distance)
        if self.kernel in ("eq", "weakly_periodic"):
            exponent -= distance**2 / (2 * self.lengthscale**2)
        if self.kernel in ("periodic", "weakly_periodic"):
            exponent -= 2 * np.sin(math.pi * distance / self.period) ** 2
        return np.exp(exponent)

    def values(self, x: np.ndarray, normals: np.ndarray, wave: np.ndarray) -> np.ndarray:
        """Noisy values at x [B, n], by ``normals`` [B, n] and uniform ``wave`` [B, 3]; the first ones do not depend on later ones."""
        if self.kernel == "sawtooth":
            low, high = self.frequency
            slope = (low + (high - low) * wave[:, :1]) * np.where(wave[:, 1:2] < 0.5, -1, 1)
            return (slope * x - wave[:, 2:]) % 1 + math.sqrt(self.noise) * normals
        factor = np.linalg.cholesky(self.covariance(x, x) + (self.noise + JITTER) * np.eye(x.shape[1]))
        return (factor @ normals[..., None])[..., 0]

    def posterior(self, x: np.ndarray, y: np.ndarray, seen: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance [B, m] of noisy values ``at`` [B, m], each for itself, after points x, y [B, n] of which some were ``seen``."""
        known = (
            self.covariance(x, x) * (seen[:, :, None] & seen[:, None, :])
            + np.eye(x.shape[1]) * np.where(seen, self.noise + JITTER, 1.0)[:, None]
        )
        across = self.covariance(x, at) * seen[:, :, None]
        weights = np.linalg.solve(known, across)  # [B, n, m]
        mean = np.einsum("bnm,bn->bm", weights, y)
        return mean, np.maximum(1 - (weights * across).sum(1), 0) + self.noise + JITTER


class Drawn(NamedTuple):
    """Episodes as float64 arrays; the first ``shot`` of n = shot + query points are the support."""

    keys: np.ndarray  # [B] uint64
    x: np.ndarray  # [B, n]
    y: np.ndarray  # [B, n]
    seen: np.ndarray  # [B, shot] bool


class GPEpisodes(Episodes):
    """Functions seen at ``fewest`` to ``spec.shot`` support points, any number as likely, and ``spec.query`` query points.

    ``spec.way`` has no meaning here. Where an episode has fewer than ``shot`` points, the rest of the support is zeros (``Context.seen``).

    Args:
        prior: where functions come from.
        domain: [low, high] of x, uniform.
        split: part of every episode's identity, as is the ``seed``.
        device: where tasks appear.
    """

    def __init__(
        self, prior: Prior, domain: Interval, fewest: int, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device
    ) -> None:
        self.prior, self.domain, self.fewest = prior, domain, fewest
        self.split, self.spec, self.seed, self.device = split, spec, seed, device

    def chance(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What is drawn: keys [B], numbers of support points [B, 1], x [B, n], normals [B, n] and uniforms [B, 3]."""
        keys = episode_keys(self.seed, self.split, indices)
        number = self.fewest + np.floor((self.spec.shot + 1 - self.fewest) * draws(keys, NUMBER, (1,)))
        # One counter per point: more query points do not move the support.
        n = self.spec.shot + self.spec.query
        low, high = self.domain
        x = low + (high - low) * draws(keys, POINTS, (n,))
        return keys, number, x, normal_draws(keys, VALUES, (n,)), draws(keys, WAVE, (3,))

    def drawn(self, indices: Sequence[int]) -> Drawn:
        """These episodes."""
        keys, number, x, normals, wave = self.chance(indices)
        return Drawn(keys, x, self.prior.values(x, normals, wave), np.arange(self.spec.shot) < number)

    def batch(self, indices: Sequence[int]) -> Task:
        keys, x, y, seen = self.drawn(indices)
        shot = self.spec.shot
        support = Batch(self._tensor(x[:, :shot] * seen), self._tensor(y[:, :shot] * seen))
        classes = torch.zeros(len(keys), 1, dtype=torch.int64, device=self.device)
        extras = {"seen": torch.from_numpy(seen).to(self.device)}
        context = Context(support, classes, task_keys(keys).to(self.device), extras)
        return Task(context, Batch(self._tensor(x[:, shot:]), self._tensor(y[:, shot:])))

    def identity(self, indices: Sequence[int]) -> bytes:
        return np.concatenate(self.chance(indices)[1:], 1).astype("<f8").tobytes()

    def content(self) -> bytes:
        return repr(self.prior).encode()  # a frozen dataclass: all its settings

    def bounds(self, n: int) -> dict[str, np.ndarray]:
        """Mean log density of an episode's query points, in nats a point: ``trivial``, of one Gaussian for all values of all functions;
        ``oracle``, of the process's own posterior, each point for itself (a sawtooth has none that is known)."""
        found: dict[str, list[np.ndarray]] = {}
        for first in range(0, n, BLOCK):
            drawn = self.drawn(range(first, min(first + BLOCK, n)))
            answers: dict[str, tuple[Any, Any]] = {"trivial": self.prior.moments}
            if self.prior.kernel != "sawtooth":
                answers["oracle"] = self._posterior(drawn, drawn.x[:, self.spec.shot :])
            for name, (mean, variance) in answers.items():
                density = -0.5 * ((drawn.y[:, self.spec.shot :] - mean) ** 2 / variance + np.log(2 * math.pi * variance))
                found.setdefault(name, []).append(density.mean(1))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def oracle(self, index: int, x: Tensor) -> Gaussian | None:
        if self.prior.kernel == "sawtooth":
            return None
        at = x.double().cpu().numpy().reshape(1, -1)
        mean, variance = self._posterior(self.drawn([index]), at)
        return Gaussian(self._tensor(mean)[0], self._tensor(variance)[0])

    def _posterior(self, drawn: Drawn, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shot = self.spec.shot
        return self.prior.posterior(drawn.x[:, :shot], drawn.y[:, :shot], drawn.seen, at)

    def _tensor(self, values: np.ndarray) -> Tensor:
        """[B, n] float64 to [B, n, 1] float32 on the device."""
        return torch.from_numpy(values[..., None].astype(np.float32)).to(self.device)


class GP(Dataset):
    """Functions of a Gaussian process, or sawtooth waves; answers are judged by their log density, in nats a point.

    Args:
        seed: the run's; unused, since every episode is a function of the seed handed to ``episodes``.
        kernel, lengthscale, period, frequency, noise: see ``Prior``.
        domain: [low, high] of x.
        fewest: support points of an episode are from so many to ``shot``.

    Raises:
        UserError: an interval is empty or not finite; ``fewest`` is more than ``shot``.
    """

    kind: Kind = Density()
    splits = ("train", "val", "test")  # independent streams of the same distribution
    input_shape = (1,)

    def __init__(
        self,
        seed: int,
        *,
        kernel: Kernel,
        lengthscale: Annotated[float, Gt(0)],
        period: Annotated[float, Gt(0)],
        frequency: Interval,
        noise: Annotated[float, Ge(0)],
        domain: Interval,
        fewest: Annotated[int, Ge(0)],
    ) -> None:
        for name, (low, high) in {"frequency": frequency, "domain": domain}.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise UserError(f"data.{name}=[{low}, {high}] is not an interval; give [low, high] with low < high")
        self.prior = Prior(kernel, lengthscale, period, (frequency[0], frequency[1]), noise)
        self.domain, self.fewest = domain, fewest

    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> GPEpisodes:
        self.check_split(split)
        if self.fewest > spec.shot:
            raise UserError(f"data.fewest={self.fewest} is more than shot={spec.shot}; choose data.fewest <= {spec.shot}, or a larger shot")
        return GPEpisodes(self.prior, self.domain, self.fewest, split, spec, seed, device)

    def describe(self, split: str) -> str:
        return f"endless functions ({self.prior.kernel})"
