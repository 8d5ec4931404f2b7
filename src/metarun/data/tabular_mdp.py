"""Random Markov decision processes of a few states: a task is one table of transitions and rewards.
Duan et al. 2016 (RL²), arXiv:1611.02779, section 3.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from metarun import inner
from metarun.data.environment import Drawn, Environment
from metarun.data.episodes import draws, normal_draws
from metarun.problem import Control, Kind

TRANSITIONS, REWARDS = 34, 35  # streams of draws, apart from those of other data


@dataclass(frozen=True)
class Table:
    """States and choices are numbers, an episode begins in state 0; a reward is its mean plus standard normal noise.

    Attributes:
        states: how many there are; an observation is one of them as a one-hot vector.
        horizon: actions of an episode.
    """

    states: int
    horizon: int

    def reset(self, params: dict[str, Tensor], keys: Tensor) -> Tensor:
        return torch.zeros_like(keys)

    def noise(self, keys: Tensor) -> Tensor:
        def of(key: Tensor) -> Tensor:
            return torch.stack([inner.uniform(key, (self.horizon,), 1), inner.normal(key, (self.horizon,), 2)], -1)

        return torch.vmap(of)(keys)

    def observe(self, params: dict[str, Tensor], state: Tensor) -> Tensor:
        return inner.one_hot(state, self.states).to(params["rewards"].dtype)

    def step(self, params: dict[str, Tensor], state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        rewards = params["rewards"][state, action] + noise[:, 1].to(params["rewards"].dtype)
        upto = params["transitions"][state, action].cumsum(-1)
        return (upto[:, :-1] < noise[:, :1]).sum(-1), rewards


class TabularMDP(Environment):
    """Transitions of every state and choice uniform over all distributions (a flat Dirichlet), mean rewards N(1, 1).

    Args:
        seed: the run's; unused, since every episode is a function of the seed handed to ``episodes``.
        states, choices: how many there are.
        horizon: actions of an episode.
    """

    kind: Kind = Control()  # of how many choices an object says
    simulator: Table

    def __init__(self, seed: int, *, states: Annotated[int, Ge(2)], choices: Annotated[int, Ge(2)], horizon: Annotated[int, Ge(1)]) -> None:
        self.simulator, self.choices = Table(states, horizon), choices
        self.kind = Control(choices=choices)
        self.input_shape = (states,)

    def draw(self, keys: np.ndarray) -> Drawn:
        """``transitions`` [B, states, choices, states] and mean ``rewards`` [B, states, choices]."""
        states = self.simulator.states
        waits = -np.log1p(-draws(keys, TRANSITIONS, (states, self.choices, states)))
        rewards = 1 + normal_draws(keys, REWARDS, (states, self.choices))
        return {"transitions": waits / waits.sum(-1, keepdims=True), "rewards": rewards}

    def bounds(self, drawn: Drawn) -> Drawn:
        """Expected returns of random choices, and of the best ones by dynamic programming from the last action back."""
        found = {}
        for name, over in (("random", np.mean), ("oracle", np.max)):
            values = np.zeros(drawn["rewards"].shape[:2])
            for _ in range(self.simulator.horizon):
                values = over(drawn["rewards"] + np.einsum("bsat,bt->bsa", drawn["transitions"], values), -1)
            found[name] = values[:, 0]
        return found

    def describe(self, split: str) -> str:
        return f"endless tables of {self.simulator.states} states and {self.choices} choices, episodes of {self.simulator.horizon} actions"
