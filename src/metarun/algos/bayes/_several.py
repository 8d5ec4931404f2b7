"""What learners with several sets of weights share: a task is adapted to by all of them at once, and all of them answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from operator import itemgetter
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Gt
from torch import Tensor
from torch.func import functional_call

from metarun import inner
from metarun.algorithm import Footprint
from metarun.learners import StepLearner
from metarun.nets.base import Net
from metarun.problem import Gaussian, Problem, Samples
from metarun.runtime.private import tree_leaves, tree_map
from metarun.task import Task


class Several(NamedTuple):
    """Several sets of weights on their way through a task."""

    fast: dict[str, Tensor]  # by parameter name, [sets, *shape]
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class SeveralLearner(StepLearner):
    """A net with a linear head and several sets of weights for it.

    Args:
        net, problem, settings: as of ``StepLearner``.
        noise: of a regression's targets around the answer of one set, a standard deviation.
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
    """

    def __init__(self, net: Net, problem: Problem, *, noise: Annotated[float, Gt(0)], mode: inner.Mode, **settings: Any) -> None:
        super().__init__(net, problem, **settings)
        self.noise, self.mode = noise, mode

    def members(self, fast: dict[str, Tensor], x: Tensor, support_x: Tensor) -> Tensor:
        """Logits or predictions [sets, n, outputs] of x [n, *input_shape]."""
        found: Tensor = each(lambda weights: functional_call(self, weights, (x, support_x)), fast)
        return found

    def sum_of_losses(self, fast: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Over the sets, of their mean losses: its gradient is that of each; pure, as ``inner.gradient`` asks."""
        return torch.stack([self.problem.loss(answer, y) for answer in self.members(fast, x, x)]).sum()

    def predict(self, state: Several, x: Tensor) -> Samples:
        return self.samples(self.members(state.fast, x, state.support_x))

    def samples(self, answers: Tensor) -> Samples:
        """Answers [sets, n, outputs] with their noise, if they have one."""
        return Samples(answers if self.problem.kind.labelled else Gaussian(answers, torch.full_like(answers, self.noise**2)))

    def footprint(self, task: Task, train: bool) -> Footprint:
        held, sets = super().footprint(task, train), self.sets(train)
        weights = sum(w.numel() * w.element_size() for w in self.learner().values())
        return Footprint(sets * held.examples, sets * held.repeated, held.bytes + 4 * sets * weights, inner.kept_by(self.mode))

    @abstractmethod
    def sets(self, train: bool) -> int:
        """How many sets of weights a task has."""


def each(function: Callable[..., Any], *trees: Any) -> Any:
    """``function`` of every row of the trees, stacked."""
    if not torch.compiler.is_exporting():
        return torch.vmap(function)(*trees)
    # torch.export takes the number of examples for fixed under vmap.
    found = [function(*tree_map(itemgetter(i), trees)) for i in range(len(tree_leaves(trees)[0]))]
    return tree_map(lambda *leaves: torch.stack(leaves), *found)
