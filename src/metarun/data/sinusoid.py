"""Sinusoid regression, the first experiment of MAML: a task is one wave, its examples are points on it.
y = A sin(x - b) with A, b and x uniform (Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Len
from torch import Tensor

from metarun.data.base import Dataset
from metarun.data.episodes import Episodes, draws, episode_keys, normal_draws, task_keys
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Kind, Regression
from metarun.task import Batch, Context, Task

# Streams of draws, apart from those of the class sampler.
WAVE, POINTS, NOISE = 11, 12, 13

Interval = Annotated[list[float], Len(2, 2)]


class SinusoidEpisodes(Episodes):
    """Waves A sin(x - b), each seen at ``spec.shot`` support and ``spec.query`` query points; ``spec.way`` has no meaning here.

    Args:
        amplitude, phase, domain: [low, high] of A, b and x.
        noise: standard deviation of Gaussian noise on every y.
        split: part of every episode's identity, as is the ``seed``.
        device: where tasks appear.
    """

    def __init__(
        self,
        amplitude: Interval,
        phase: Interval,
        domain: Interval,
        noise: float,
        split: str,
        spec: EpisodeSpec,
        seed: int,
        device: str | torch.device,
    ) -> None:
        self.amplitude, self.phase, self.domain, self.noise = amplitude, phase, domain, noise
        self.split, self.spec, self.seed, self.device = split, spec, seed, device

    def drawn(self, indices: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Keys [B] uint64, the ``parameters`` of the waves and points x [B, shot + query], float64."""
        keys = episode_keys(self.seed, self.split, indices)
        # One counter per point: more query points do not move the support.
        points = draws(keys, POINTS, (self.spec.shot + self.spec.query,))
        return keys, self.parameters(keys), scale(points, self.domain)

    def parameters(self, keys: np.ndarray) -> list[np.ndarray]:
        """Amplitudes and phases [B, 1] of the waves of these keys."""
        wave = draws(keys, WAVE, (2,))
        return [scale(wave[:, :1], self.amplitude), scale(wave[:, 1:], self.phase)]

    def function(self, x: np.ndarray, amplitude: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """y [B, n] at x [B, n] without noise."""
        found: np.ndarray = amplitude * np.sin(x - phase)
        return found

    def batch(self, indices: Sequence[int]) -> Task:
        keys, parameters, x = self.drawn(indices)
        y = self.function(x, *parameters)
        if self.noise:
            y = y + self.noise * normal_draws(keys, NOISE, x.shape[1:])

        def part(points: slice) -> Batch:
            return Batch(self._tensor(x[:, points]), self._tensor(y[:, points]))

        classes = torch.zeros(len(keys), 1, dtype=torch.int64, device=self.device)
        context = Context(part(slice(self.spec.shot)), classes, task_keys(keys).to(self.device), {})
        return Task(context, part(slice(self.spec.shot, None)))

    def identity(self, indices: Sequence[int]) -> bytes:
        _, parameters, x = self.drawn(indices)
        return np.concatenate([*parameters, x], 1).astype("<f8").tobytes()

    def content(self) -> bytes:
        return f"noise {self.noise!r}".encode()  # the rest of a point is in its identity

    def _tensor(self, values: np.ndarray) -> Tensor:
        """[B, n] float64 to [B, n, 1] float32 on the device."""
        return torch.from_numpy(values[..., None].astype(np.float32)).to(self.device)


class Sinusoid(Dataset):
    """Waves of random amplitude and phase; regression of one number on one number.

    Args:
        seed: the run's; unused, since every episode is a function of the seed handed to ``episodes``.
        amplitude, phase, domain: [low, high] of A, b and x.
        noise: standard deviation of Gaussian noise on every y, support and query alike; the paper has none.

    Raises:
        UserError: an interval is empty or not finite.
    """

    kind: Kind = Regression()
    splits = ("train", "val", "test")  # independent streams of the same distribution
    input_shape = (1,)
    classes = 0

    def __init__(self, seed: int, *, amplitude: Interval, phase: Interval, domain: Interval, noise: Annotated[float, Ge(0)]) -> None:
        check_intervals(amplitude=amplitude, phase=phase, domain=domain)
        self.amplitude, self.phase, self.domain, self.noise = amplitude, phase, domain, noise

    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> SinusoidEpisodes:
        self.check_split(split)
        return SinusoidEpisodes(self.amplitude, self.phase, self.domain, self.noise, split, spec, seed, device)

    def describe(self, split: str) -> str:
        return "endless sine waves"


def scale(uniform: np.ndarray, interval: Interval) -> np.ndarray:
    """Uniform in [0, 1) to uniform in [low, high)."""
    low, high = interval
    return low + (high - low) * uniform


def check_intervals(**intervals: Interval) -> None:
    """Refuse, with a UserError, intervals of these keys that are empty or not finite."""
    for name, (low, high) in intervals.items():
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"data.{name}=[{low}, {high}] is not an interval; give [low, high] with low < high")
