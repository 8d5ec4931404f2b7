"""ANIL and NIL: the inner loop adapts the head alone, or at test there is no head and no inner loop at all.
Raghu, Raghu, Bengio, Vinyals 2020, arXiv:1909.09157."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

from torch import Tensor

from metarun import inner
from metarun.algorithm import State
from metarun.learners import AdaptedHead, HeadLearner, as_they_come
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class Neighbours(NamedTuple):
    """What a query is compared with where there is no head."""

    means: Tensor  # [way, features], per class the mean of the support's normalised features
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class ANIL(HeadLearner):
    """Almost no inner loop.

        w_{k+1} = w_k − α ∇_w L_support(w_k; body)             (the body stays as it is, section 4.1)
        min_{w_0, body}  mean over tasks of L_query(w_K; body)

    No inner loop (``head_at_test: false``, section 5): trained as ANIL; evaluation drops the head and weights the support's
    labels by cosine similarity, logit_c(x) = mean over class c of cos(f(x), f(x_i)), for any number of classes.

    Deviations: (1) Similarities are averaged over a class, not summed; with as many examples of every class the answers are the
    same. (2) Regression has no classes to compare: there the head and its inner loop stay. (3) The loss that evaluation
    reports for NIL is the cross-entropy of these similarities, which lie in −1..1.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: α, on the mean support loss.
        inner_steps, test_steps: K in meta-training, and in validation and test (of no effect there without a head).
        first_order: drop the second derivatives.
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
        head_at_test: false for NIL.
    """

    def __init__(self, net: Net, problem: Problem, *, head_at_test: bool, **settings: Any) -> None:
        super().__init__(net, problem, **settings)
        self.head_at_test = self.fixed_way = self.label_dependent = head_at_test or not problem.kind.labelled
        self.pairwise = not self.head_at_test

    def begin(self, context: Context) -> AdaptedHead | Neighbours:
        if self.training or self.head_at_test:
            return super().begin(context)
        x, y = context.support
        return Neighbours(inner.class_means(inner.directions(self.net(x, x)), y, context.classes.shape[0]), x)

    def step(self, state: AdaptedHead | Neighbours, context: Context, k: int) -> AdaptedHead | Neighbours:
        return state if isinstance(state, Neighbours) else super().step(state, context, k)

    def carry_on(self, before: State, fresh: State, context: Context) -> State:
        """Adapted weights go on, and means of the classes that have come now take their place beside those of others."""
        if not isinstance(fresh, Neighbours):
            return super().carry_on(before, fresh, context)
        return fresh._replace(means=as_they_come(before.means, fresh.means, context))

    def answers(self, state: AdaptedHead | Neighbours, x: Tensor) -> Callable[[AdaptedHead | Neighbours], Tensor]:
        if not isinstance(state, Neighbours):
            return super().answers(state, x)
        features = inner.directions(self.net(x, state.support_x))
        return lambda state: features @ cast(Neighbours, state).means.T
