"""Reptile: run an optimizer on a task, then move the initialisation part of the way to where it ended.
Nichol, Achiam, Schulman 2018, arXiv:1803.02999."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from metarun import inner
from metarun.algorithm import Metrics
from metarun.learners import StepLearner
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Batch, Context, Task


class Trained(NamedTuple):
    """A learner on its way through a task."""

    fast: dict[str, Tensor]  # weights by parameter name
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support
    moments: inner.Moments | tuple[()]  # of Adam


class Reptile(StepLearner):
    """Reptile.

        φ_0 = θ,   φ_{k+1} = SGD or Adam step on L_{minibatch k of the support}(φ_k)
        θ ← θ + ε mean over tasks of (φ_K − θ)                 (algorithm 2)

    The objective ½‖θ − sg(φ_K)‖² has the gradient θ − φ_K, so with plain SGD outside, ``optim.lr`` is ε: ``optim=interpolate``.
    Training uses no query; the metrics are those of the query set nevertheless. Evaluation takes the whole support at every step.

    Deviations: (1) Adam's moments start anew with every task; the authors' live on from one training task to the next, which makes
    a task depend on those before it. (2) The authors take minibatches at test, too (15 of 25 examples at 5-shot; at 1-shot all).
    (3) Defaults: plain gradient descent of 0.4 inside, MAML's, where the authors' Omniglot runs have Adam of 0.001.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: step size of the inner optimizer, on the mean loss of a minibatch.
        inner_steps, test_steps: K in meta-training, and in validation and test.
        inner_batch: size of the inner minibatches in meta-training; the whole support if that is no larger.
        optimizer: the inner one, ``sgd``, or ``adam`` with β1 = 0 (the authors').
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        inner_steps: Annotated[int, Ge(1)],
        inner_batch: Annotated[int, Ge(1)],
        optimizer: Literal["adam", "sgd"],
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, inner_steps=inner_steps, **settings)
        self.inner_batch, self.optimizer = inner_batch, optimizer

    def begin(self, context: Context) -> Trained:
        fast = inner.constant(self.learner())
        return Trained(fast, context.support.x, inner.no_moments(fast) if self.optimizer == "adam" else ())

    def step(self, state: Trained, context: Context, k: int) -> Trained:
        x, y = context.support
        if self.training and self.inner_batch < len(y):
            chosen = inner.minibatch(context.key, len(y), self.inner_batch, k)
            context = context._replace(support=Batch(x[chosen], y[chosen]))
        grads = self.support_gradient(state.fast, context, "none")
        if not state.moments:
            return state._replace(fast=inner.sgd(state.fast, grads, self.inner_lr))
        fast, moments = inner.adam(state.fast, grads, state.moments, k, self.inner_lr, beta1=0.0)
        return state._replace(fast=fast, moments=moments)

    def objective(self, states: Sequence[Trained], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            _, metrics = super().objective(states, task, progress)
        goal = states[-1].fast
        gaps = [(weight - goal[name]).square().sum() for name, weight in self.learner().items()]
        return 0.5 * torch.stack(gaps).sum(), metrics
