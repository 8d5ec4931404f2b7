"""A point on a plane that is to find a goal nobody tells it of, the first control problem of MAML: a task is one goal.
Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from metarun.data.base import Dataset
from metarun.data.episodes import Episodes, draws, episode_keys, task_keys, trajectory_keys
from metarun.errors import UserError, nearest
from metarun.problem import Control, EpisodeSpec, Kind
from metarun.task import Batch, Context, Task

GOAL = 31  # stream of draws, apart from those of other data


@dataclass(frozen=True)
class Plane:
    """The plane: an action moves the point, the reward is minus its distance from the goal afterwards. Nothing ends before the horizon.

    Attributes:
        horizon: actions of an episode.
        limit: largest move along either axis; actions are clipped to it.
    """

    horizon: int
    limit: float

    def reset(self, params: dict[str, Tensor], keys: Tensor) -> Tensor:
        return params["goal"].new_zeros(keys.shape[0], 2)

    def observe(self, params: dict[str, Tensor], state: Tensor) -> Tensor:
        return state

    def step(self, params: dict[str, Tensor], state: Tensor, action: Tensor, keys: Tensor, time: int) -> tuple[Tensor, Tensor]:
        state = state + action.clamp(-self.limit, self.limit)
        return state, -torch.linalg.vector_norm(state - params["goal"], dim=-1)


class NavigationEpisodes(Episodes):
    """Goals, and the keys of ``spec.shot`` trajectories to adapt by and ``spec.query`` to be judged by; ``spec.way`` has no meaning here.

    Args:
        plane: where the point moves.
        extent: goals are uniform in [-extent, extent] along either axis.
        split: part of every episode's identity, as is the ``seed``.
        device: where tasks appear.
    """

    def __init__(self, plane: Plane, extent: float, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device) -> None:
        self.plane, self.extent = plane, extent
        self.split, self.spec, self.seed, self.device = split, spec, seed, device

    def goals(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Keys [B] uint64 and goals [B, 2] float64."""
        keys = episode_keys(self.seed, self.split, indices)
        return keys, self.extent * (2 * draws(keys, GOAL, (2,)) - 1)

    def batch(self, indices: Sequence[int]) -> Task:
        keys, goals = self.goals(indices)
        trajectories = trajectory_keys(keys, self.spec.shot + self.spec.query).to(self.device)

        def part(x: Tensor) -> Batch:
            return Batch(x, torch.zeros(*x.shape, 0, device=self.device))

        classes = torch.zeros(len(keys), 1, dtype=torch.int64, device=self.device)
        extras = {"goal": torch.from_numpy(goals.astype(np.float32)).to(self.device)}
        context = Context(part(trajectories[:, : self.spec.shot]), classes, task_keys(keys).to(self.device), extras)
        return Task(context, part(trajectories[:, self.spec.shot :]))

    def identity(self, indices: Sequence[int]) -> bytes:
        return self.goals(indices)[1].astype("<f8").tobytes()

    def content(self) -> bytes:
        return repr(self.plane).encode()  # a frozen dataclass: all its settings

    def bounds(self, n: int) -> dict[str, np.ndarray]:
        """Returns of a point that stays where it is, and of one that knows the goal and goes there, along both axes at once.

        At no time can any other be nearer, as along no axis it can have come farther.
        """
        far = np.abs(self.goals(range(n))[1])[:, None]  # [n, 1, 2]
        moved = self.plane.limit * np.arange(1, self.plane.horizon + 1)[:, None]  # [horizon, 1]
        returns = {"trivial": np.broadcast_to(far, (n, len(moved), 2)), "oracle": np.maximum(far - moved, 0)}
        return {name: -np.hypot(*np.moveaxis(left, -1, 0)).sum(-1) for name, left in returns.items()}


class Navigation(Dataset):
    """A point at the origin of a plane and a goal that only rewards tell of; observations are where the point is.

    Args:
        seed: the run's; unused, since every episode is a function of the seed handed to ``episodes``.
        horizon: actions of an episode. The authors' code ends an episode within 0.01 of the goal; here none ends early.
        extent: goals are uniform in [-extent, extent] along either axis.
        limit: largest move of an action along either axis.
    """

    kind: Kind = Control(size=2)
    splits = ("train", "val", "test")  # independent streams of the same distribution
    input_shape = (2,)

    def __init__(
        self, seed: int, *, horizon: Annotated[int, Ge(1)], extent: Annotated[float, Gt(0)], limit: Annotated[float, Gt(0)]
    ) -> None:
        self.plane, self.extent = Plane(horizon, limit), extent
        self.simulator = self.plane

    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> NavigationEpisodes:
        if split not in self.splits:
            raise UserError(f"these data have no {split} split, only {', '.join(self.splits)}{nearest(split, self.splits)}")
        return NavigationEpisodes(self.plane, self.extent, split, spec, seed, device)

    def describe(self, split: str) -> str:
        return f"endless goals on a plane, episodes of {self.plane.horizon} actions"
