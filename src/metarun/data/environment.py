"""What data sets of environments share: a task is one environment, drawn at random, and keys of episodes in it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from metarun.data.base import Dataset
from metarun.data.episodes import Episodes, episode_keys, task_keys, trajectory_keys
from metarun.problem import EpisodeSpec, Simulator
from metarun.task import Batch, Context, Task

Drawn = dict[str, np.ndarray]  # what tells one environment from another, by name, [B, …] float64


class Environment(Dataset):
    """Environments of one family. A file names ``kind``, ``input_shape`` (an observation's) and ``simulator``, and writes two methods."""

    simulator: Simulator
    splits = ("train", "val", "test")  # independent streams of the same distribution

    @abstractmethod
    def draw(self, keys: np.ndarray) -> Drawn:
        """The environments of these keys [B] uint64; learners get them in float32, as ``Context.extras``, for the simulator alone."""

    @abstractmethod
    def bounds(self, drawn: Drawn) -> Drawn:
        """What returns in these environments mean: by name, [B] each, of a rule that knows nothing and of an ``oracle`` that knows all."""

    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> EnvironmentEpisodes:
        self.check_split(split)
        return EnvironmentEpisodes(self, split, spec, seed, device)


class EnvironmentEpisodes(Episodes):
    """Environments, and the keys of ``spec.shot`` episodes to adapt by and ``spec.query`` to be judged by; ``spec.way`` means nothing here.

    Args:
        data: where environments come from.
        split: part of every episode's identity, as is the ``seed``.
        device: where tasks appear.
    """

    def __init__(self, data: Environment, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device) -> None:
        self.data, self.split, self.spec, self.seed, self.device = data, split, spec, seed, device

    def drawn(self, indices: Sequence[int]) -> Drawn:
        """What tells these environments from others."""
        return self.data.draw(episode_keys(self.seed, self.split, indices))

    def batch(self, indices: Sequence[int]) -> Task:
        keys = episode_keys(self.seed, self.split, indices)
        episodes = trajectory_keys(keys, self.spec.shot + self.spec.query).to(self.device)

        def part(x: torch.Tensor) -> Batch:
            return Batch(x, torch.zeros(*x.shape, 0, device=self.device))

        classes = torch.zeros(len(keys), 1, dtype=torch.int64, device=self.device)
        extras = {name: torch.from_numpy(values.astype(np.float32)).to(self.device) for name, values in self.data.draw(keys).items()}
        context = Context(part(episodes[:, : self.spec.shot]), classes, task_keys(keys).to(self.device), extras)
        return Task(context, part(episodes[:, self.spec.shot :]))

    def identity(self, indices: Sequence[int]) -> bytes:
        return b"".join(values.astype("<f8").tobytes() for values in self.drawn(indices).values())

    def content(self) -> bytes:
        return repr(self.data.simulator).encode()  # a frozen dataclass: all its settings

    def bounds(self, n: int) -> Drawn:
        return self.data.bounds(self.drawn(range(n)))
