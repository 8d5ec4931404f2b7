"""MAML and first-order MAML: an initialisation from which a few gradient steps on the support set suffice.
Finn, Abbeel, Levine 2017, arXiv:1703.03400."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor

from metarun import inner
from metarun.algorithm import Adapted, GradientLearner
from metarun.nets.base import Net
from metarun.task import Context, Problem


class MAML(GradientLearner):
    """Model-agnostic meta-learning.

        φ_0 = θ,   φ_{k+1} = φ_k − α ∇L_support(φ_k)          (inner loop, equation 1)
        min_θ  mean over tasks of L_query(φ_K(θ))              (outer loop, algorithm 2)

    Deviations: (1) The inner loss is the mean over the support; the authors' code sums over classes and averages over shots, so
    their α = 0.4 at 5-way is α = 2.0 here. (2) The norm's scale and shift are adapted like all other weights; the authors' net
    has no scale and keeps its shift fixed. (3) The head starts from torch's default, not from a truncated normal.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: α, on the mean support loss.
        inner_steps, test_steps: K in meta-training, and in validation and test.
        first_order: drop the second derivatives (FOMAML, section 5.2).
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
        self.inner_lr, self.inner_steps, self.test_steps = inner_lr, inner_steps, test_steps
        self.mode: inner.Mode = "none" if first_order else mode

    def begin(self, context: Context) -> Adapted:
        return Adapted(self.learner(), context.support.x)

    def step(self, state: Adapted, context: Context, k: int) -> Adapted:
        grads: dict[str, Tensor] = self.support_gradient(state.fast, context, self.mode)
        return state._replace(fast=inner.sgd(state.fast, grads, self.inner_lr))
