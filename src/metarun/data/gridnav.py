"""A square grid in which a goal is to be found and then to be remembered: a task is one cell.
Zintgraf et al. 2020 (VariBAD), arXiv:1910.08348, section 5.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from torch import Tensor

from metarun.data.environment import Drawn, Environment
from metarun.data.episodes import draws
from metarun.problem import Control, Kind

GOAL = 33  # stream of draws, apart from those of other data
MOVES = ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1))  # what the choices 0..4 do
CORNER = 2  # the goal lies outside of the square of so many cells a side where episodes begin
REWARDS = {"elsewhere": -0.1, "goal": 1.0}


@dataclass(frozen=True)
class Grid:
    """Five choices, to stay or to go to a neighbour; walls stop. A reward after each: 1 on the goal, −0.1 elsewhere. Nothing ends early.

    Attributes:
        side: cells along either axis; a state is a cell's two numbers, 0..side−1, and episodes begin at (0, 0).
        horizon: actions of an episode.
    """

    side: int
    horizon: int

    def reset(self, params: dict[str, Tensor], keys: Tensor) -> Tensor:
        return params["goal"].new_zeros(keys.shape[0], 2)

    def noise(self, keys: Tensor) -> Tensor:
        return keys.new_zeros(keys.shape[0], self.horizon, 0)

    def observe(self, params: dict[str, Tensor], state: Tensor) -> Tensor:
        return state

    def step(self, params: dict[str, Tensor], state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        state = (state + state.new_tensor(MOVES)[action]).clamp(0, self.side - 1)
        there = (state == params["goal"]).all(-1).to(state.dtype)
        return state, REWARDS["elsewhere"] + (REWARDS["goal"] - REWARDS["elsewhere"]) * there


class GridNav(Environment):
    """A grid whose goal only rewards tell of; an observation is the cell where the actor is.

    Args:
        seed: the run's; unused, since every episode is a function of the seed handed to ``episodes``.
        side: cells along either axis.
        horizon: actions of an episode.
    """

    kind: Kind = Control(choices=len(MOVES))
    input_shape = (2,)
    simulator: Grid

    def __init__(self, seed: int, *, side: Annotated[int, Ge(CORNER + 1)], horizon: Annotated[int, Ge(1)]) -> None:
        self.simulator = Grid(side, horizon)
        cells = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
        self.goals = cells[cells.max(1) >= CORNER].astype(np.float64)

    def draw(self, keys: np.ndarray) -> Drawn:
        """``goal`` [B, 2], all cells outside the corner being as likely."""
        return {"goal": self.goals[(draws(keys, GOAL, ()) * len(self.goals)).astype(int)]}

    def bounds(self, drawn: Drawn) -> Drawn:
        """The expected return of random moves, and the return of the shortest way to the goal."""
        side, horizon = self.simulator.side, self.simulator.horizon
        goal = drawn["goal"].astype(int)
        visits, place = np.zeros((side, side)), np.zeros((side, side))
        place[0, 0] = 1.0
        for _ in range(horizon):
            place = np.mean([_moved(place, *move) for move in MOVES], 0)
            visits += place
        shortest = horizon - np.maximum(goal.sum(1) - 1, 0).clip(max=horizon)
        at_goal = {"random": visits[goal[:, 0], goal[:, 1]], "oracle": shortest}
        return {name: REWARDS["goal"] * times + REWARDS["elsewhere"] * (horizon - times) for name, times in at_goal.items()}

    def describe(self, split: str) -> str:
        side, horizon = self.simulator.side, self.simulator.horizon
        return f"{len(self.goals)} goals on a grid of {side} x {side}, episodes of {horizon} actions"


def _moved(place: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """Probabilities of cells [side, side] after one move; what would leave the grid stays."""
    side = len(place)
    moved = np.zeros_like(place)
    for x in range(side):
        for y in range(side):
            moved[min(max(x + dx, 0), side - 1), min(max(y + dy, 0), side - 1)] += place[x, y]
    return moved
