"""What searches share: a step proposes one candidate, tries it, remembers the best, and lets the method learn from it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Gt
from torch import Tensor

from metarun import inner
from metarun.algorithm import Algorithm
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context

Memory = Any  # what a method keeps of the past, nested tensors


class Searching(NamedTuple):
    """A search under way."""

    best: Tensor  # [decisions] int64, the candidate of the highest validation accuracy so far
    value: Tensor  # [] its validation accuracy
    memory: Memory  # of the method


class Searcher(Algorithm):
    """A search among the candidates of ``space``, one more in every step. There is nothing to meta-learn.

    Before the first step the choice is a random candidate that nobody has tried.

    Args:
        net, problem: the net is not used; the data's space.
        test_steps: candidates that a search may try.
    """

    kinds = frozenset({"search"})

    def __init__(self, net: Net, problem: Problem, *, test_steps: Annotated[int, Gt(0)]) -> None:
        super().__init__(net, problem)
        assert problem.kind.space
        self.space, self.test_steps = problem.kind.space, test_steps
        for weight in net.parameters():
            weight.requires_grad_(False)

    def begin(self, context: Context) -> Searching:
        value = context.extras["validation"].new_full((), -torch.inf)
        return Searching(self.space.draw(inner.fold_in(context.key, 0)), value, self.remember(inner.fold_in(context.key, 1), value))

    def step(self, state: Searching, context: Context, k: int | Tensor) -> Searching:
        key = inner.fold_in(context.key, k + 2)
        word = self.propose(state.memory, key, k)
        value = self.space.value(context.extras["validation"], word)
        better = value > state.value
        memory = self.learn(state.memory, word, value, key, k)
        return Searching(torch.where(better, word, state.best), torch.where(better, value, state.value), memory)

    def predict(self, state: Searching, x: Tensor) -> Tensor:
        return state.best.expand(x.shape[0], -1)

    def remember(self, key: Tensor, value: Tensor) -> Memory:
        """The memory before the first step; ``value`` [] has the type of accuracies."""
        return ()

    @abstractmethod
    def propose(self, memory: Memory, key: Tensor, k: int | Tensor) -> Tensor:
        """The candidate [decisions] int64 to be tried in step k, drawn by the step's key [] int64."""

    def learn(self, memory: Memory, word: Tensor, value: Tensor, key: Tensor, k: int | Tensor) -> Memory:
        """The memory after the candidate of step k proved to be worth ``value`` []; ``key`` is the one that proposed it."""
        return memory
