"""Alpha MAML: MAML whose inner and outer learning rates are learned while it trains, by descent along their own gradients.
Behl, Baydin, Torr 2019, arXiv:1905.07435."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from metarun.algorithm import Metrics
from metarun.learners import Adapted, InnerLoop
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Task


class AlphaMAML(InnerLoop):
    """Alpha MAML.

        φ_0 = θ,   φ_{k+1} = φ_k − α ∇L_support(φ_k)
        α ← α − h_α ∂/∂α mean over tasks of L_query(φ_K)      (one step: ∂L_query/∂α = −∇L_query(φ_1) · ∇L_support(θ))
        β ← β + h_β ∇F_t(θ_t) · ∇F_{t−1}(θ_{t−1})             (the outer rate: ``optim=hypergradient``, h_β being ``optim.hyper_lr``)

    With both h = 0 it is MAML, bit for bit.

    Deviations: (1) α's derivative goes through all inner steps and, unless ``first_order``, through their gradients. (2) α stays
    positive by reflection, |α|. (3) With another outer optimizer than plain SGD, α takes that one's steps, of size h_α.
    (4) The meta-gradient is the mean over tasks, not the sum, so h_α is larger by their number.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: α before meta-training, on the mean support loss.
        inner_steps, test_steps: K in meta-training, and in validation and test.
        hyper_lr: h_α, α's own outer learning rate; 0 leaves it as it is.
        first_order: drop the second derivatives.
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
    """

    def __init__(self, net: Net, problem: Problem, *, hyper_lr: Annotated[float, Ge(0)], **settings: Any) -> None:
        super().__init__(net, problem, **settings)
        self.hyper_lr = hyper_lr
        self.rate = nn.Parameter(torch.tensor(self.inner_lr), requires_grad=hyper_lr > 0)

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.learner().values())}, {"params": [self.rate], "lr": self.hyper_lr}]

    def step_size(self, fast: dict[str, Tensor]) -> Tensor:
        return self.rate.abs()

    def objective(self, states: Sequence[Adapted], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        loss, metrics = super().objective(states, task, progress)
        return loss, metrics | {"inner_lr": self.rate.abs()}
