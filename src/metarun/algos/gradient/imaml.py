"""Implicit MAML: the meta-gradient from where the inner loop ends, whatever way it took there.
Rajeswaran, Finn, Kakade, Levine 2019, arXiv:1909.04630."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.func import functional_call

from metarun import inner
from metarun.algorithm import Metrics
from metarun.learners import Adapted, StepLearner
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.runtime.private import tree_map
from metarun.task import Context, Task


class IMAML(StepLearner):
    """Implicit MAML.

        φ* = argmin_φ L_support(φ) + λ/2 ‖φ − θ‖²              (equation 3, by gradient descent from θ)
        v = (I + ∇²L_support(φ*) / λ)⁻¹ ∇L_query(φ*)           (equation 6, by conjugate gradient, algorithm 2)

    v is the meta-gradient; the objective ⟨θ, sg(v)⟩ has it. No graph is kept, so memory does not depend on the inner steps.

    Deviations, all from the authors' code and towards the paper: (1) The proximal term acts in every inner step and at test, too;
    the code applies it once at the end, and not at test. (2) The system is the equation's, plus ``damping`` · v; the code has damping
    1 and divides the Hessian by λ + 10. Where the Hessian proves indefinite, the conjugate gradient ends. (3) Defaults: λ = 0.5 and 10
    steps of 0.4, where the authors have 2 and 16 of 0.1: with few iterations the learner must come further from its start. What the
    code computes, but for its one proximal step, is ``inner_proximal=0 proximal=12 damping=1``.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: step size of the inner loop, on the mean support loss; stable if inner_lr · λ < 1.
        inner_steps, test_steps: inner steps in meta-training, and in validation and test; they should come near φ*.
        proximal: λ, how strongly φ is held at θ.
        inner_proximal: λ of the inner loop alone, which then ends at no minimum of equation 3; null for ``proximal``.
        cg_steps: steps of conjugate gradient.
        damping: added to the system's diagonal.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        proximal: Annotated[float, Gt(0)],
        cg_steps: Annotated[int, Ge(1)],
        damping: Annotated[float, Ge(0)],
        inner_proximal: Annotated[float, Ge(0)] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, **settings)
        self.proximal, self.cg_steps, self.damping = proximal, cg_steps, damping
        self.inner_proximal = proximal if inner_proximal is None else inner_proximal

    def begin(self, context: Context) -> Adapted:
        return Adapted(inner.constant(self.learner()), context.support.x)

    def step(self, state: Adapted, context: Context, k: int) -> Adapted:
        grads = self.support_gradient(state.fast, context, "none")
        pulls = {name: grads[name] + self.inner_proximal * (state.fast[name] - theta.detach()) for name, theta in self.learner().items()}
        return state._replace(fast=inner.sgd(state.fast, pulls, self.inner_lr))

    @torch.no_grad()
    def meta_gradient(self, state: Adapted, task: Task) -> tuple[dict[str, Tensor], Tensor]:
        """v at the adapted weights, a tree like them, and the answers to the query."""
        (x, y), query = task.context.support, task.query

        def query_loss(fast: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            prediction = functional_call(self, fast, (query.x, state.support_x))
            return self.problem.loss(prediction, query.y), prediction

        hessian = inner.hessian(self.support_loss, state.fast, {}, x, y)

        def system(v: dict[str, Tensor]) -> dict[str, Tensor]:
            return tree_map(lambda a, h: (1 + self.damping) * a + h / self.proximal, v, hessian(v))

        grads, prediction = torch.func.grad(query_loss, has_aux=True)(state.fast)
        return inner.conjugate_gradient(system, grads, self.cg_steps), prediction

    def objective(self, states: Sequence[Adapted], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        v, prediction = self.meta_gradient(states[-1], task)
        surrogate = torch.stack([(theta * v[name]).sum() for name, theta in self.learner().items()]).sum()
        y = task.query.y
        return surrogate, {"loss": self.problem.loss(prediction, y), self.problem.metric: self.problem.score(prediction, y)}
