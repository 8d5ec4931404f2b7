"""Bandits with Bernoulli arms: a task is how likely each arm pays, uniform in [0, 1).
As in Duan et al. 2016, arXiv:1611.02779, section 3.1, and Wang et al. 2016, arXiv:1611.05763."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from metarun import inner
from metarun.data.environment import Drawn, Environment
from metarun.data.episodes import draws
from metarun.problem import Bandit, Kind

ARMS = 32  # stream of draws, apart from those of other data


@dataclass(frozen=True)
class Arms:
    """Nothing to see, and nothing that changes: a pull of arm a pays 1 with probability ``means[a]``, else 0.

    Pull t of an episode has the same luck, a number that the arm's mean must exceed, whichever arm it is.

    Attributes:
        horizon: pulls of an episode.
    """

    horizon: int

    def reset(self, params: dict[str, Tensor], keys: Tensor) -> Tensor:
        return params["means"].new_zeros(keys.shape[0], 1)

    def noise(self, keys: Tensor) -> Tensor:
        return torch.vmap(lambda key: inner.uniform(key, (self.horizon,), 1))(keys)

    def observe(self, params: dict[str, Tensor], state: Tensor) -> Tensor:
        return state

    def step(self, params: dict[str, Tensor], state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        means = params["means"].gather(0, action)
        return state, (noise < means).to(means.dtype)


class Bandits(Environment):
    """Arms whose means only pulling them tells of; an observation is a zero.

    Args:
        seed: the run's; unused, since every episode is a function of the seed handed to ``episodes``.
        arms: how many there are.
        horizon: pulls of an episode.
    """

    kind: Kind = Bandit()  # of how many arms an object says
    input_shape = (1,)
    simulator: Arms

    def __init__(self, seed: int, *, arms: Annotated[int, Ge(2)], horizon: Annotated[int, Ge(1)]) -> None:
        self.kind, self.arms, self.simulator = Bandit(choices=arms), arms, Arms(horizon)

    def draw(self, keys: np.ndarray) -> Drawn:
        """``means`` [B, arms]."""
        return {"means": draws(keys, ARMS, (self.arms,))}

    def bounds(self, drawn: Drawn) -> Drawn:
        """Expected returns of random pulls, and of the best arm throughout."""
        return {name: self.simulator.horizon * of(drawn["means"], 1) for name, of in (("random", np.mean), ("oracle", np.max))}

    def describe(self, split: str) -> str:
        return f"endless bandits of {self.arms} arms, episodes of {self.simulator.horizon} pulls"
