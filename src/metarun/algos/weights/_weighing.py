"""What methods that weigh training data share: a net trained from random weights, a weight per example and step, and what is noted."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor
from torch.func import functional_call

from metarun import inner
from metarun.abilities import WeighsExamples
from metarun.algorithm import Footprint
from metarun.algos.optimizers._rules import RULES, Memory
from metarun.algos.optimizers._scratch import Fast, FromScratch
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Batch, Context, Task

CLEAN = 1  # added to a task's key, for the minibatches of its clean examples


class Training(NamedTuple):
    """A net in training, and what its examples were worth."""

    fast: Fast  # weights of the net by parameter name
    support_x: Tensor  # [n, *input_shape] of the support, for nets that normalise queries by the support
    memory: Memory  # of the rule
    total: Tensor  # [n], the sum of each example's weights so far
    visits: Tensor  # [n], in how many steps it was weighed
    own: Any  # what the method learns beside the net, as the weights of a weighting net


class Weighted(FromScratch, WeighsExamples):
    """Training from random weights on a loss in which every example has a weight.

        θ_{k+1} = rule(θ_k, ∇ (1/n) Σ_i w_i ℓ_i(θ_k))

    Weights are in units of the ordinary mean: all 1 is plain training. Methods say in ``weigh`` what they are. Clean examples are those
    of ``episode.clean``; without any, the minibatch itself takes their place, so that what contradicts most of the others weighs little.

    Args:
        net, problem, settings: as of ``FromScratch``.
        rule: ``sgd``, ``momentum`` (.9), ``nesterov`` (.9), ``rmsprop`` (.99) or ``adam`` (.9, .999).
        rate: learning rate.
    """

    kinds = frozenset({"classification"})

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        rule: Literal["sgd", "momentum", "nesterov", "rmsprop", "adam"],
        rate: Annotated[float, Gt(0)],
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, **settings)
        self.rule, self.rate = rule, rate

    @abstractmethod
    def weigh(self, state: Training, batch: Batch, context: Context, k: int | Tensor) -> tuple[Tensor, Any]:
        """The weights [n] >= 0 of a minibatch, and what the method has learned by then, as ``state.own``."""

    def ready(self, context: Context) -> Any:
        """``Training.own`` before the first step."""
        return ()

    def begin(self, context: Context) -> Training:
        fast = self.weights(context.key)
        none = fast["head.weight"].new_zeros(context.support.y.shape)
        return Training(fast, self.norms_by(context), RULES[self.rule].begin(fast), none, none, self.ready(context))

    def step(self, state: Training, context: Context, k: int | Tensor) -> Training:
        places = self.places(context, k)
        batch = context.examples(places)
        weights, own = self.weigh(state, batch, context, k)
        grads = self.slopes(state.fast, weights, batch)
        fast, memory = RULES[self.rule].step(state.fast, grads, state.memory, k, self.rate)
        total, visits = (self._noted(sums, places, new) for sums, new in ((state.total, weights), (state.visits, torch.ones_like(weights))))
        return state._replace(fast=fast, memory=memory, total=total, visits=visits, own=own)

    def slopes(self, fast: Fast, weights: Tensor, batch: Batch) -> Fast:
        """The gradient of the weighted loss, a constant unless something is meta-learned through it."""
        found: Fast = inner.constant(inner.gradient(self.weighted_loss, inner.constant(fast), weights, *batch, mode="none"))
        return found

    @staticmethod
    def _noted(sums: Tensor, places: Tensor | slice, new: Tensor) -> Tensor:
        new = new.detach().to(sums.dtype)
        return sums + new if isinstance(places, slice) else sums.index_add(0, places, new)

    def example_weights(self, state: Training) -> Tensor:
        """The mean weight of every example of the support, [n], over the steps that it was in; 1 where it was in none."""
        return torch.where(state.visits > 0, state.total / state.visits.clamp(min=1), 1.0)

    def losses(self, fast: Fast, x: Tensor, y: Tensor) -> Tensor:
        """ℓ_i [n] of the examples x, y with the net's weights ``fast``."""
        return F.cross_entropy(inner.upcast(functional_call(self, fast, (x, x))), y, reduction="none")

    def weighted_loss(self, fast: Fast, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """(1/n) Σ_i w_i ℓ_i; pure, as ``inner.gradient`` asks."""
        return (weights * self.losses(fast, x, y)).mean()

    def ahead(self, weights: Tensor, fast: Fast, batch: Batch, clean: Batch) -> Tensor:
        """The mean loss on clean examples after a step of plain SGD by these weights [n] of the batch; pure, differentiable in weights."""
        grads = inner.gradient(self.weighted_loss, fast, weights, *batch, mode="unroll")
        return self.support_loss(inner.sgd(fast, grads, self.rate), {}, *clean)

    def clean(self, context: Context, batch: Batch, k: int | Tensor) -> Batch:
        """The clean examples that judge step k: all, or as many as a minibatch has; the ``batch`` itself where there are none."""
        clean = context.clean
        n = clean.y.shape[0]
        if not n:
            return batch
        if 0 < self.batch < n:
            chosen = inner.minibatch(context.key + CLEAN, n, self.batch, k)
            return Batch(clean.x[chosen], clean.y[chosen])
        return clean

    def footprint(self, task: Task, train: bool) -> Footprint:
        found = super().footprint(task, train)
        return found._replace(examples=2 * found.examples + task.context.clean.y.shape[0])


def to_mean_one(weights: Tensor) -> Tensor:
    """Weights [n] >= 0 over their mean; zeros where all are (0/0 → 0)."""
    mean = weights.mean()
    return torch.where(mean > 0, weights / torch.where(mean > 0, mean, 1.0), 0.0)
