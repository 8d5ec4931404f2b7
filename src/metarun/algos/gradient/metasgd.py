"""Meta-SGD: the initialisation and a learning rate for every single weight, direction included, learned together.
Li, Zhou, Chen, Li 2017, arXiv:1707.09835."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metarun.learners import InnerLoop
from metarun.nets.base import Net
from metarun.problem import Problem


class MetaSGD(InnerLoop):
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

    def __init__(self, net: Net, problem: Problem, **settings: Any) -> None:
        super().__init__(net, problem, **settings)
        # A list in the learner's order: parameter names have dots, which a dictionary of parameters does not take.
        self.rates = nn.ParameterList(torch.full_like(weight, self.inner_lr) for weight in self.learner().values())

    def step_size(self, fast: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(fast, self.rates))
