"""What learned optimizers share: an inner loop that is cut, the sum of its losses, rivals of old, and a life outside of metarun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from metarun.abilities import HasRivals
from metarun.algorithm import Algorithm, Metrics
from metarun.algos.optimizers._by_rule import ByRule, Memory, Training
from metarun.algos.optimizers._rules import RULES
from metarun.algos.optimizers._scratch import Fast
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.runtime.replica import replica
from metarun.task import Task


def decades(low: int, high: int) -> list[float]:
    """Rates from 10^low to 10^high, three a decade, of two digits."""
    return [float(f"{10 ** (third / 3):.2g}") for third in range(3 * low, 3 * high + 1)]


class LearnedOptimizer(ByRule, HasRivals):
    """A rule with meta-parameters, which are all that is learned:

        min  mean over tasks of Σ_k f(θ_k),   f the loss of the query      (the last f alone, unless ``every_state``)

    The sum is cut after every ``inner_steps`` steps, and goes on in the next meta-update from where it was: ``horizon`` steps in
    all. Where the last f alone counts, that is the last of every cut.

    Args:
        net, problem, settings: as of ``FromScratch``.
        inner_steps: steps of one meta-update.
        horizon: steps of a training task, a multiple of ``inner_steps``.
    """

    every_state = True
    rivals: Mapping[str, Sequence[float]] = {
        "sgd": decades(-3, 1),
        "momentum": decades(-3, 1),
        "nesterov": decades(-3, 1),
        "rmsprop": decades(-4, 0),
        "adam": decades(-4, 0),
    }

    def __init__(
        self, net: Net, problem: Problem, *, inner_steps: Annotated[int, Ge(1)], horizon: Annotated[int, Ge(1)], **settings: Any
    ) -> None:
        if horizon % inner_steps:
            raise ValueError(f"algo.horizon={horizon} is no multiple of algo.inner_steps={inner_steps}")
        super().__init__(net, problem, **settings)
        self.inner_steps, self.horizon, self.unrolls = inner_steps, horizon, horizon // inner_steps

    def objective(self, states: Sequence[Training], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        judged = states[1:] if self.every_state else states[-1:]
        answers = [self.predict(state, task.query.x) for state in judged]
        losses = torch.stack([self.problem.loss(answer, task.query.y) for answer in answers])
        return losses.sum(), {"loss": losses[-1], self.problem.metric: self.problem.score(answers[-1], task.query.y)}

    def rival(self, name: str, number: float) -> Algorithm:
        """This learner, its weights moved by the rule ``name`` of old at the rate ``number`` instead."""
        other, rule = replica(self), RULES[name]

        def advance(fast: Fast, grads: Fast, memory: Memory, k: int | Tensor) -> tuple[Fast, Memory]:
            return rule.step(fast, grads, memory, k, number)

        other.__dict__.update(remember=rule.begin, advance=advance)
        return other
