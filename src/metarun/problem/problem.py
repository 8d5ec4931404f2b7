"""What a net and an algorithm need to know of the data, and how a prediction is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.inner import loop
from metarun.problem.acting import Past, Policy, Simulator
from metarun.problem.answers import Trajectories
from metarun.problem.kinds import Control, Kind
from metarun.problem.spec import EpisodeSpec
from metarun.runtime.private import tree_map


@dataclass(frozen=True)
class Problem:
    """What a net and an algorithm need to know of the data, and how a prediction is judged.

    ``outputs`` is the length of an answer, see ``Kind.outputs``; ``classes`` the number of training classes (0 where there are none);
    ``input_shape`` one example's shape, no batch axis, for control an observation's, for nodes that of their features; ``attributes`` the
    length of a class's attribute vector (0: the data have none); ``simulator`` the environment of control; ``attacked`` whether the method
    is an adversary, who wants the score to be bad.
    """

    kind: Kind
    input_shape: tuple[int, ...]
    outputs: int
    classes: int
    train: EpisodeSpec
    eval: EpisodeSpec
    attributes: int = 0
    simulator: Simulator | None = None
    attacked: bool = False

    @property
    def most_classes(self) -> int:
        """The largest way of an episode."""
        return max(self.train.way, self.eval.way)

    @property
    def most_support(self) -> int:
        """The largest number of labelled examples of an episode."""
        return max(self.train.way * self.train.shot, self.eval.way * self.eval.shot)

    @property
    def metric(self) -> str:
        return self.kind.metric

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger score is the better one, for the method that is run."""
        return self.kind.higher_is_better != self.attacked

    @property
    def choices(self) -> int:
        """How many actions there are to choose from; 0 where actions are numbers, or nothing acts."""
        return self.kind.choices if isinstance(self.kind, Control) else 0

    def loss(self, prediction: Any, y: Tensor) -> Tensor:
        """See the kind's."""
        return self.kind.loss(prediction, y)

    def score(self, prediction: Any, y: Tensor) -> Tensor:
        """See the kind's."""
        return self.kind.score(prediction, y)

    def rest(self, params: dict[str, Tensor], n: int, memory: Any = ()) -> Past:
        """Of n actors with this memory, before their first action in an environment of these ``params``."""
        assert isinstance(self.kind, Control)
        rewards = next(iter(params.values())).new_zeros(n)
        return Past(memory, self.kind.none(rewards), rewards)

    def simulate(
        self, params: dict[str, Tensor], policy: Policy, keys: Tensor, past: Past | None = None, noise: Any = ()
    ) -> tuple[Trajectories, Past]:
        """The trajectories of n episodes of the environment, one for each of the keys [n] int64, and what actors take along from them.

        Args:
            params: of the task, its ``Context.extras``.
            policy: decides, by chance through ``noise`` alone, so that the same keys give the same episodes.
            past: of the n actors, before these episodes; None: they have no memory, and have done nothing yet.
            noise: of the policy, nested tensors [n, horizon, …].

        Raises:
            TypeError: there is no environment.
        """
        world = self.simulator
        if world is None:
            raise TypeError("this problem has no environment to act in")
        past = past or self.rest(params, keys.shape[0])

        def act(now: tuple[Tensor, Past, Trajectories], x: Any) -> tuple[Tensor, Past, Trajectories]:
            (state, past, _), (time, chance, noise) = now, x
            seen = world.observe(params, state)
            action, memory = policy(past, seen, time, noise)
            state, reward = world.step(params, state, action, chance)
            return state, Past(memory, action, reward), Trajectories(seen, action, reward)

        state = world.reset(params, keys)
        begun = (state, past, Trajectories(world.observe(params, state), past.action, past.reward))
        times = torch.arange(world.horizon, device=keys.device)
        xs = tree_map(lambda leaf: leaf.movedim(1, 0), (world.noise(keys), noise))
        (_, past, _), done = loop(act, begun, world.horizon, (times, *xs), read=lambda now: now[2])
        return tree_map(lambda leaf: leaf.movedim(0, 1), done), past
