"""Sine waves on a slope, of which meta-training has few tasks with few points each: where a learner that is too sure overfits to tasks.
The sinusoids of Rothfuss et al. 2021 (PACOH), arXiv:2002.05551, and of Yoon et al. 2018 (BMAML), arXiv:1806.03836, are two settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Len

from metarun.data.base import Dataset
from metarun.data.episodes import Episodes, draws, episode_keys, normal_draws, task_keys
from metarun.errors import UserError, nearest
from metarun.problem import EpisodeSpec, Kind, Regression
from metarun.task import Batch, Context, Task

# Streams of draws, apart from those of other data.
WHICH, ORDER, WAVE, POINTS, NOISE = 21, 22, 23, 24, 25
PARAMETERS = ("slope", "amplitude", "frequency", "phase", "offset")

Pair = Annotated[list[float], Len(2, 2)]


class FewWavesEpisodes(Episodes):
    """Waves slope · x + A sin(ω x − φ) + offset with noise, each seen at ``spec.shot`` support and ``spec.query`` query points.

    Args:
        data: says how waves and points are drawn.
        split: part of every episode's identity, as is the ``seed``. In ``train`` an episode is one of ``data.tasks`` tasks, and its points
            are some of the ``data.points`` that this task has; elsewhere both are new in every episode.
        device: where tasks appear.
    """

    def __init__(self, data: FewWaves, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device) -> None:
        self.data, self.split, self.spec, self.seed, self.device = data, split, spec, seed, device

    def drawn(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Keys [B] uint64 of the episodes, their points x and y, and y without its noise, [B, shot + query] float64."""
        data, n = self.data, self.spec.shot + self.spec.query
        keys = waves = episode_keys(self.seed, self.split, indices)
        held = n
        if self.split == "train":
            chosen = (draws(keys, WHICH, ()) * data.tasks).astype(np.int64)
            waves, held = episode_keys(self.seed, "tasks", chosen), data.points
        slope, amplitude, frequency, phase, offset = (values[:, None] for values in data.parameters(waves).T)
        low, high = data.domain
        x = low + (high - low) * draws(waves, POINTS, (held,))
        clean = slope * x + amplitude * np.sin(frequency * x - phase) + offset
        y = clean + (data.noise + data.relative_noise * np.abs(amplitude)) * normal_draws(waves, NOISE, (held,))
        if self.split == "train":
            order = draws(keys, ORDER, (held,)).argsort(1)[:, :n]
            x, y, clean = (np.take_along_axis(values, order, 1) for values in (x, y, clean))
        return keys, x, y, clean

    def batch(self, indices: Sequence[int]) -> Task:
        keys, x, y, _ = self.drawn(indices)
        columns = [torch.from_numpy(values[..., None].astype(np.float32)).to(self.device) for values in (x, y)]
        support, query = (Batch(*(values[:, part] for values in columns)) for part in (slice(self.spec.shot), slice(self.spec.shot, None)))
        classes = torch.zeros(len(keys), 1, dtype=torch.int64, device=self.device)
        return Task(Context(support, classes, task_keys(keys).to(self.device), {}), query)

    def identity(self, indices: Sequence[int]) -> bytes:
        _, x, y, _ = self.drawn(indices)
        return np.stack([x, y]).astype("<f8").tobytes()

    def content(self) -> bytes:
        return b""  # points are in their identity

    def bounds(self, n: int) -> dict[str, np.ndarray]:
        """The mean squared noise of the query, which no answer goes below but by luck."""
        _, _, y, clean = self.drawn(range(n))
        return {"oracle": np.square(y - clean)[:, self.spec.shot :].mean(1)}


class FewWaves(Dataset):
    """Few waves: regression of one number on one number.

    Args:
        seed: the run's; unused, since every episode is a function of the seed handed to ``episodes``.
        tasks, points: how many training tasks there are, and points of each.
        slope, amplitude, frequency, phase, offset: of a wave; [mean, standard deviation] for those that ``normal`` names, else
            [low, high], between which all are equally likely.
        domain: [low, high] of x.
        noise: standard deviation of Gaussian noise on every y; ``relative_noise``: in amplitudes, beside.
        normal: names of parameters.

    Raises:
        UserError: numbers that are not finite, or in the wrong order; a name that is none.
    """

    kind: Kind = Regression()
    splits = ("train", "val", "test")
    input_shape = (1,)
    classes = 0

    def __init__(
        self,
        seed: int,
        *,
        tasks: Annotated[int, Ge(1)],
        points: Annotated[int, Ge(2)],
        slope: Pair,
        amplitude: Pair,
        frequency: Pair,
        phase: Pair,
        offset: Pair,
        domain: Pair,
        noise: Annotated[float, Ge(0)],
        relative_noise: Annotated[float, Ge(0)],
        normal: list[str],
    ) -> None:
        self.tasks, self.points, self.domain = tasks, points, domain
        self.noise, self.relative_noise, self.normal = noise, relative_noise, normal
        self.pairs = dict(zip(PARAMETERS, (slope, amplitude, frequency, phase, offset)))
        for name in normal:
            if name not in PARAMETERS:
                raise UserError(f"data.normal names '{name}', which is no parameter{nearest(name, PARAMETERS)} ({', '.join(PARAMETERS)})")
        for name, (low, high) in {**self.pairs, "domain": domain}.items():
            wrong = high < 0 if name in normal else low > high or (name == "domain" and low == high)
            if wrong or not (math.isfinite(low) and math.isfinite(high)):
                form = "[mean, standard deviation >= 0]" if name in normal else "[low, high] with low <= high"
                raise UserError(f"data.{name}=[{low}, {high}] is not possible; give {form}")

    def parameters(self, keys: np.ndarray) -> np.ndarray:
        """``PARAMETERS`` of the waves of these keys, [B, 5]."""
        uniform, bell = draws(keys, WAVE, (len(PARAMETERS), 2)), normal_draws(keys, WAVE, (len(PARAMETERS),))
        found = [
            first + second * bell[:, i] if name in self.normal else first + (second - first) * uniform[:, i, 0]
            for i, (name, (first, second)) in enumerate(self.pairs.items())
        ]
        return np.stack(found, 1)

    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> FewWavesEpisodes:
        self.check_split(split)
        if split == "train" and (n := spec.shot + spec.query) > self.points:
            raise UserError(
                f"an episode of {spec.shot} support and {spec.query} query points has {n}, and a training task has data.points="
                f"{self.points}: choose smaller episode.train.shot and episode.train.query"
            )
        return FewWavesEpisodes(self, split, spec, seed, device)

    def describe(self, split: str) -> str:
        return f"{self.tasks} sine waves of {self.points} points" if split == "train" else "endless sine waves"
