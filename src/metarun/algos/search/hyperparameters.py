"""Learning rates, momentum and weight decay of ordinary training, learned by hypergradients.
Maclaurin, Duvenaud, Adams 2015, arXiv:1502.03492; Pedregosa 2016, arXiv:1602.02355; Lorraine, Vicol, Duvenaud 2020, arXiv:1911.02590."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.func import functional_call

from metarun import inner
from metarun.algorithm import Footprint, Metrics
from metarun.algos.optimizers._scratch import Fast, FromScratch
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.runtime.private import tree_map
from metarun.task import Context, Task


class Training(NamedTuple):
    """A net in training."""

    fast: Fast  # weights by parameter name
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support
    velocity: Fast  # of the momentum


class Hyperparameters(FromScratch):
    """Hyperparameters of SGD with momentum from random weights, a rate α_l and a decay λ_l for every weight or bias l of the net.

        L(w, λ) = L_support(w) + ½ Σ_l λ_l ‖w_l‖²
        v ← μ v + ∇_w L(w, λ),   w_l ← w_l − α_l v_l                                     (K steps)
        min over log α, logit μ, log λ of the mean over tasks of L_query(w_K)

    ``unroll`` differentiates through all K steps. The others take w_K for a minimum of L, whatever led there, so that they learn λ alone:

        dL_query / d log λ_l = −λ_l ⟨w_l, (H⁻¹ ∇L_query)_l⟩,   H = ∇²_w L                 (implicit function theorem)
        cg: H⁻¹ g by conjugate gradient;   neumann: H⁻¹ g ≈ α Σ_{j ≤ terms} (I − α H)^j g, for α below 2 over H's largest eigenvalue

    Deviations: (1) The hyperparameters are shared by many training tasks and tested on new ones; the papers fit those of one training.
    (2) Maclaurin et al. run the training backwards; here states are kept, and steps computed again.

    Args:
        net, problem, settings: as of ``FromScratch``.
        gradient: ``unroll``, ``cg`` or ``neumann``.
        rate, momentum, decay: α, μ and λ before meta-training.
        terms: steps of conjugate gradient, or of the Neumann series beyond its first term.
        inner_steps: K in meta-training.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        gradient: Literal["unroll", "cg", "neumann"],
        rate: Annotated[float, Gt(0)],
        momentum: Annotated[float, Gt(0), Lt(1)],
        decay: Annotated[float, Gt(0)],
        terms: Annotated[int, Ge(1)],
        inner_steps: Annotated[int, Ge(1)],
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, **settings)
        self.by, self.rate, self.terms, self.inner_steps = gradient, rate, terms, inner_steps
        unrolled, weights = gradient == "unroll", len(self.learner())
        self.log_rates = nn.Parameter(torch.full((weights,), math.log(rate)), requires_grad=unrolled)
        self.logit_momentum = nn.Parameter(torch.tensor(math.log(momentum / (1 - momentum))), requires_grad=unrolled)
        self.log_decays = nn.Parameter(torch.full((weights,), math.log(decay)))

    def named(self, values: Tensor) -> Fast:
        """Numbers [weights] by the names of the weights that they are for."""
        return dict(zip(self.learner(), values))

    def penalised(self, fast: Fast, decays: Fast, x: Tensor, y: Tensor) -> Tensor:
        """L(w, λ); pure, as ``inner.gradient`` asks."""
        penalties = [decays[name] * w.square().sum() for name, w in fast.items()]
        return self.support_loss(fast, {}, x, y) + 0.5 * torch.stack(penalties).sum()

    def footprint(self, task: Task, train: bool) -> Footprint:
        return super().footprint(task, train)._replace(kept="states")  # the inner loop is a whole training

    def begin(self, context: Context) -> Training:
        fast = self.weights(context.key)
        return Training(fast, context.support.x, tree_map(torch.zeros_like, fast))

    def step(self, state: Training, context: Context, k: int | Tensor) -> Training:
        chosen = (self.log_decays.exp(), self.log_rates.exp(), self.logit_momentum.sigmoid())
        decays, rates, momentum = chosen if self.by == "unroll" else inner.constant(chosen)
        batch = self.examples(context, k)
        mode: inner.Mode = "mixed" if self.by == "unroll" else "none"
        slope = inner.gradient(self.penalised, state.fast, self.named(decays), *batch, mode=mode)
        velocity = tree_map(lambda v, g: momentum * v + g, state.velocity, slope)
        return state._replace(fast=inner.sgd(state.fast, velocity, self.named(rates)), velocity=velocity)

    def objective(self, states: Sequence[Training], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        loss, metrics = super().objective(states, task, progress)
        if self.by == "unroll":
            return loss, metrics
        fast = inner.constant(states[-1].fast)
        needed = self.inverse(fast, task)
        products = torch.stack([(w * needed[name]).sum() for name, w in fast.items()])
        return -(self.log_decays.exp() * products.detach()).sum(), metrics

    @torch.no_grad()
    def inverse(self, fast: Fast, task: Task) -> Fast:
        """H⁻¹ ∇L_query at the weights ``fast``, a tree like them."""
        (x, y), query = task.context.support, task.query

        def query_loss(fast: Fast) -> Tensor:
            return self.problem.loss(functional_call(self, fast, (query.x, x)), query.y)

        hessian = inner.hessian(self.penalised, fast, self.named(self.log_decays.exp()), x, y)
        slope = torch.func.grad(query_loss)(fast)
        if self.by == "cg":
            return inner.conjugate_gradient(hessian, slope, self.terms)

        def further(series: tuple[Fast, Fast], _: Any) -> tuple[Fast, Fast]:
            term, total = series
            term = inner.sgd(term, hessian(term), self.rate)
            return term, tree_map(torch.add, total, term)

        _, total = inner.loop(further, (slope, slope), self.terms)
        return tree_map(lambda s: self.rate * s, total)
