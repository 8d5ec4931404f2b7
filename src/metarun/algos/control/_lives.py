"""What learners share that adapt while they act: a memory that lasts from one episode to the next, in place of adapted weights."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun import inner
from metarun.algorithm import Algorithm
from metarun.nets.base import Net
from metarun.nets.pixels import Pixels
from metarun.problem import Past, Problem, Trajectories
from metarun.runtime.private import tree_map
from metarun.task import Context


class Life(NamedTuple):
    """An actor between two episodes of its environment."""

    past: Past  # of n = 1 actor
    params: dict[str, Tensor]  # the environment's, for it alone: actors see observations and rewards


class Living(Algorithm):
    """Learning is remembering: an inner step is one episode lived, as many as the support has, and the curve is the return by episode.

    Every query is an episode for itself, lived after the same past. Methods write the three functions below.
    """

    kinds = frozenset({"control", "bandits"})

    @property
    def horizon(self) -> int:
        """Actions of an episode."""
        assert self.problem.simulator
        return self.problem.simulator.horizon

    def steps(self, context: Context, train: bool) -> int:
        return context.support.x.shape[0]

    def begin(self, context: Context) -> Life:
        past = self.problem.rest(context.extras, 1)
        return Life(past._replace(memory=self.blank(past.reward)), context.extras)

    def step(self, state: Life, context: Context, k: int) -> Life:
        return state._replace(past=self.live(state, inner.fold_in(context.key, k)[None])[1])

    def predict(self, state: Life, x: Tensor) -> Trajectories:
        """What the actor would do in the episodes of the keys x [n] int64, each the next one."""
        rows = tree_map(lambda leaf: leaf.expand(x.shape[0], *leaf.shape[1:]), state.past)
        return self.live(state._replace(past=rows), x)[0]

    @torch.no_grad()
    def live(self, state: Life, keys: Tensor) -> tuple[Trajectories, Past]:
        """One episode of n actors, for the keys [n]: what they did, and their past after it."""
        return self.problem.simulate(state.params, self.act, keys, state.past, self.noise(keys))

    @abstractmethod
    def blank(self, like: Tensor) -> Any:
        """The memory of actors that know nothing, for rows ``like`` [n] of it: nested tensors [n, …]."""

    @abstractmethod
    def noise(self, keys: Tensor) -> Any:
        """What ``act`` decides by, nested tensors [n, horizon, …], for the keys [n] of episodes."""

    @abstractmethod
    def act(self, past: Past, observation: Tensor, time: Tensor, noise: Any) -> tuple[Tensor, Any]:
        """Actions and memory, see ``problem.Policy``."""


class Counts(NamedTuple):
    """What arms did, all that can be known of a bandit."""

    pulls: Tensor  # [n, arms]
    wins: Tensor  # [n, arms]


class IndexRule(Living):
    """A bandit's arms have a number each, and the largest is pulled; among equals, chance decides. Nothing is meta-learned.

    Methods write ``index``, and ``chance`` where their numbers depend on it.

    Args:
        net, problem: the backbone, which is left aside, and the data's shape.
    """

    kinds = frozenset({"bandits"})

    def __init__(self, net: Net, problem: Problem) -> None:
        super().__init__(Pixels(problem.input_shape), problem)

    @property
    def shape(self) -> tuple[int, int]:
        """Pulls of an episode, and arms."""
        return self.horizon, self.problem.outputs

    def blank(self, like: Tensor) -> Counts:
        none = like.new_zeros(like.shape[0], self.problem.outputs)
        return Counts(none, none)

    def noise(self, keys: Tensor) -> Any:
        return torch.vmap(lambda key: (inner.uniform(key, self.shape), self.chance(key)))(keys)

    def act(self, past: Past, observation: Tensor, time: Tensor, noise: Any) -> tuple[Tensor, Counts]:
        pulled = inner.one_hot(past.action, self.problem.outputs).to(past.reward.dtype)
        counts = Counts(past.memory.pulls + pulled, past.memory.wins + pulled * past.reward[:, None])
        ties, chance = noise
        index = self.index(counts, chance)
        return torch.where(index == index.amax(-1, keepdim=True), ties, -1.0).argmax(-1), counts

    @abstractmethod
    def index(self, counts: Counts, chance: Any) -> Tensor:
        """How much is to be said for each arm [n, arms]; ``chance`` [n, …] is this time's."""

    def chance(self, key: Tensor) -> Any:
        """The random numbers of one episode of this key [], nested tensors [horizon, …]."""
        return ()


def posterior_mean(counts: Counts) -> Tensor:
    """What an arm pays on average [n, arms], after a uniform prior (Laplace's rule of succession)."""
    return (counts.wins + 1) / (counts.pulls + 2)
