"""A pole on a cart, whose length and mass only its falling tells of: a task is one such pair.
Barto, Sutton, Anderson 1983 (IEEE Transactions on Systems, Man, and Cybernetics 13), with the constants of gymnasium's CartPole-v1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from metarun import inner
from metarun.data.environment import Drawn, Environment, uniformly
from metarun.data.episodes import draws
from metarun.errors import UserError
from metarun.problem import Control, Kind

POLE = 35  # stream of draws, apart from those of other data
GRAVITY, CART, FORCE, SECONDS = 9.8, 1.0, 10.0, 0.02  # m/s², mass in kg, N, time between two actions
FARTHEST, STEEPEST = 2.4, 12 * math.pi / 180  # beyond which position (m) or angle an episode ends
START = 0.05  # all four numbers of a first state are uniform in ±START


@dataclass(frozen=True)
class Pole:
    """Two choices, to push the cart to the left or to the right; a reward of 1 for each until the pole falls, with which an episode ends.

    A state is position, velocity, angle and angular velocity, by Euler's method, and whether the pole still stands; where it has fallen
    the state stays, and rewards are 0 until the horizon.

    Attributes:
        horizon: actions of an episode.
    """

    horizon: int

    def reset(self, params: dict[str, Tensor], keys: Tensor) -> Tensor:
        start = torch.vmap(lambda key: START * (2 * inner.uniform(key, (4,), 1) - 1))(keys)
        return torch.cat([start, torch.ones_like(start[:, :1])], 1).to(params["length"].dtype)

    def noise(self, keys: Tensor) -> Tensor:
        return keys.new_zeros(keys.shape[0], self.horizon, 0)

    def observe(self, params: dict[str, Tensor], state: Tensor) -> Tensor:
        return state[:, :4]

    def step(self, params: dict[str, Tensor], state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        x, v, angle, spin, stands = state.unbind(1)
        length, pole = params["length"], params["masspole"]
        mass, sine, cosine = CART + pole, angle.sin(), angle.cos()
        push = (FORCE * (2 * action - 1) + pole * length * spin.square() * sine) / mass
        turn = (GRAVITY * sine - cosine * push) / (length * (4 / 3 - pole * cosine.square() / mass))
        pull = push - pole * length * turn * cosine / mass
        moved = torch.stack([x + SECONDS * v, v + SECONDS * pull, angle + SECONDS * spin, spin + SECONDS * turn], 1)
        moved = torch.where(stands[:, None] > 0, moved, state[:, :4])
        still = stands * ((moved[:, 0].abs() <= FARTHEST) & (moved[:, 2].abs() <= STEEPEST)).to(stands.dtype)
        return torch.cat([moved, still[:, None]], 1), stands


class CartPole(Environment):
    """Poles of different length and mass; an observation is what a state is, but for whether the pole stands.

    Args:
        seed: the run's; unused, since every episode is a function of the seed handed to ``episodes``.
        length: half of the pole's length is uniform between these two, m.
        masspole: its mass likewise, kg.
        horizon: actions of an episode.
    """

    kind: Kind = Control(choices=2)
    input_shape = (4,)
    simulator: Pole

    def __init__(
        self,
        seed: int,
        *,
        length: list[Annotated[float, Gt(0)]],
        masspole: list[Annotated[float, Gt(0)]],
        horizon: Annotated[int, Ge(1)],
    ) -> None:
        self.ranges = uniformly(("length", "masspole"), *zip(_pair("length", length), _pair("masspole", masspole)))
        self.simulator = Pole(horizon)

    def draw(self, keys: np.ndarray) -> Drawn:
        """``length`` and ``masspole``, [B] each."""
        return self.ranges(draws(keys, POLE, (2,)))

    def bounds(self, drawn: Drawn) -> Drawn:
        """The return of one who never lets the pole fall."""
        return {"oracle": np.full(len(drawn["length"]), float(self.simulator.horizon))}

    def describe(self, split: str) -> str:
        return f"endless poles on a cart, episodes of {self.simulator.horizon} actions"


def _pair(name: str, values: list[float]) -> tuple[float, float]:
    if len(values) != 2:
        raise UserError(f"data.{name}={values} is not possible: it should be the least and the largest, as [0.25, 1.0]")
    return values[0], values[1]
