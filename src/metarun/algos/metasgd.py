"""Meta-SGD: the initialisation and a learning rate for every single weight, direction included, learned together.
Li, Zhou, Chen, Li 2017, arXiv:1707.09835."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import nn

from metarun import inner
from metarun.algorithm import Adapted, GradientLearner
from metarun.nets.base import Net
from metarun.task import Context, Problem


class MetaSGD(GradientLearner):
    """Meta-SGD.

        φ_{k+1} = φ_k − α ∘ ∇L_support(φ_k)                     (equation 2; α as large as θ, its signs free)
        min_{θ, α}  mean over tasks of L_query(φ_K(θ, α))      (algorithm 1)

    Deviations: (1) All rates start from ``inner_lr``; the authors draw them at random. (2) More than one step is possible, all with
    the same rates; the paper takes one. (3) Weight decay of the outer optimizer, if any, draws the rates to zero as well.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: α before meta-training, on the mean support loss.
        inner_steps, test_steps: K in meta-training, and in validation and test.
        first_order: drop the second derivatives; the rates are learned all the same.
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        inner_lr: Annotated[float, Gt(0)],
        inner_steps: Annotated[int, Ge(0)],
        test_steps: Annotated[int, Ge(0)],
        first_order: bool,
        mode: inner.Mode,
    ) -> None:
        super().__init__(net, problem)
        self.inner_steps, self.test_steps = inner_steps, test_steps
        self.mode: inner.Mode = "none" if first_order else mode
        # A list in the learner's order: parameter names have dots, which a dictionary of parameters does not take.
        self.rates = nn.ParameterList(torch.full_like(weight, inner_lr) for weight in self.learner().values())

    def begin(self, context: Context) -> Adapted:
        return Adapted(self.learner(), context.support.x)

    def step(self, state: Adapted, context: Context, k: int) -> Adapted:
        grads = self.support_gradient(state.fast, context, self.mode)
        return state._replace(fast=inner.sgd(state.fast, grads, dict(zip(state.fast, self.rates))))
