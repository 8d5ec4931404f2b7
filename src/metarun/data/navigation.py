"""A point on a plane that is to find a goal nobody tells it of, the first control problem of MAML: a task is one goal.
Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from metarun.data.environment import Drawn, Environment
from metarun.data.episodes import draws
from metarun.problem import Control, Kind

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

    def noise(self, keys: Tensor) -> Tensor:
        return keys.new_zeros(keys.shape[0], self.horizon, 0)

    def observe(self, params: dict[str, Tensor], state: Tensor) -> Tensor:
        return state

    def step(self, params: dict[str, Tensor], state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        state = state + action.clamp(-self.limit, self.limit)
        return state, -torch.linalg.vector_norm(state - params["goal"], dim=-1)


class Navigation(Environment):
    """A point at the origin of a plane and a goal that only rewards tell of; observations are where the point is.

    Args:
        seed: the run's; unused, since every episode is a function of the seed handed to ``episodes``.
        horizon: actions of an episode. The authors' code ends an episode within 0.01 of the goal; here none ends early.
        extent: goals are uniform in [-extent, extent] along either axis.
        limit: largest move of an action along either axis.
    """

    kind: Kind = Control(size=2)
    simulator: Plane
    input_shape = (2,)

    def __init__(
        self, seed: int, *, horizon: Annotated[int, Ge(1)], extent: Annotated[float, Gt(0)], limit: Annotated[float, Gt(0)]
    ) -> None:
        self.extent, self.simulator = extent, Plane(horizon, limit)

    def draw(self, keys: np.ndarray) -> Drawn:
        """``goal`` [B, 2]."""
        return {"goal": self.extent * (2 * draws(keys, GOAL, (2,)) - 1)}

    def bounds(self, drawn: Drawn) -> Drawn:
        """Returns of a point that stays where it is (``trivial``), and of one that knows the goal and goes there, along both axes at once.

        At no time can any other be nearer, as along no axis it can have come farther.
        """
        plane = self.simulator
        far = np.abs(drawn["goal"])[:, None]  # [B, 1, 2]
        moved = plane.limit * np.arange(1, plane.horizon + 1)[:, None]  # [horizon, 1]
        returns = {"trivial": np.broadcast_to(far, (len(far), len(moved), 2)), "oracle": np.maximum(far - moved, 0)}
        return {name: -np.hypot(*np.moveaxis(left, -1, 0)).sum(-1) for name, left in returns.items()}

    def describe(self, split: str) -> str:
        return f"endless goals on a plane, episodes of {self.simulator.horizon} actions"
