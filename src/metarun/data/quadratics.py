"""Quadratic functions to be minimised, the first experiment of learned optimizers: a task is one function ‖Wθ − y‖² of θ.
Andrychowicz et al. 2016, arXiv:1606.04474, section 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge

from metarun.data.base import Dataset
from metarun.data.episodes import Episodes, draws, episode_keys, normal_draws, task_keys
from metarun.problem import EpisodeSpec, Kind, Regression
from metarun.task import Batch, Context, Task

ENTRIES = 21  # stream of draws, apart from those of other data


class QuadraticEpisodes(Episodes):
    """Rows of W as examples [size, size], y as their targets [size, 1]: support and query are the same, the function itself.

    Args:
        size: number of coordinates, and of rows.
        distribution: of the entries of W and y, ``uniform`` in [0, 1) or standard ``normal``.
        split: part of every episode's identity, as is the ``seed``.
        device: where tasks appear.
    """

    def __init__(self, size: int, distribution: str, split: str, seed: int, device: str | torch.device) -> None:
        self.size, self.distribution, self.split, self.seed, self.device = size, distribution, split, seed, device

    def entries(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Keys [B] uint64, and W and y beside each other, [B, size, size + 1] float64."""
        keys = episode_keys(self.seed, self.split, indices)
        shape = (self.size, self.size + 1)
        return keys, (draws if self.distribution == "uniform" else normal_draws)(keys, ENTRIES, shape)

    def batch(self, indices: Sequence[int]) -> Task:
        keys, entries = self.entries(indices)
        both = torch.from_numpy(entries.astype(np.float32)).to(self.device)
        function = Batch(both[..., :-1], both[..., -1:])
        classes = torch.zeros(len(keys), 1, dtype=torch.int64, device=self.device)
        return Task(Context(function, classes, task_keys(keys).to(self.device), {}), function)

    def identity(self, indices: Sequence[int]) -> bytes:
        return self.entries(indices)[1].astype("<f8").tobytes()

    def content(self) -> bytes:
        return b""  # all of a function is in its identity


class Quadratics(Dataset):
    """Random quadratic functions; the score is the value of the function, summed over rows.

    The released code of the paper draws W and y from [0, 1), the paper's text has normal ones.

    Args:
        seed: the run's; unused, since every episode is a function of the seed handed to ``episodes``.
        size: number of coordinates, and of rows of W.
        distribution: of all entries.
    """

    kind: Kind = Regression(summed=True)
    splits = ("train", "val", "test")  # independent streams of the same distribution

    def __init__(self, seed: int, *, size: Annotated[int, Ge(1)], distribution: Literal["uniform", "normal"]) -> None:
        self.size, self.distribution, self.input_shape = size, distribution, (size,)

    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> QuadraticEpisodes:
        self.check_split(split)
        return QuadraticEpisodes(self.size, self.distribution, split, seed, device)

    def describe(self, split: str) -> str:
        return f"endless quadratic functions of {self.size} numbers"
