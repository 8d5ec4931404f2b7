"""Meta-Curvature: the inner gradient is transformed by small learned matrices, one along every axis of a weight.
Park, Oliva 2019, arXiv:1902.03356."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metarun import inner
from metarun.learners import Adapted, InnerLoop
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class MetaCurvature(InnerLoop):
    """Meta-curvature, form MC2.

        MC(G) = G ×₁ M_o ×₂ M_i ×₃ M_f                         (equation 8: output, input and filter mode of a convolution)
        φ_{k+1} = φ_k − α MC(∇L_support(φ_k))                  (equation 10)

    A linear layer has M_o and M_i alone, a vector (shift, scale) one factor per element. All start as identities: MAML.

    Deviation: (1) A filter's k x k places are one axis of length k², as in the paper; weights of other nets are treated likewise,
    all axes beyond the second as one.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: α, on the mean support loss.
        inner_steps, test_steps: K in meta-training, and in validation and test.
        first_order: drop the second derivatives; the curvature is learned all the same.
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
    """

    def __init__(self, net: Net, problem: Problem, **settings: Any) -> None:
        super().__init__(net, problem, **settings)
        # In the learner's order: parameter names have dots, which a dictionary of modules does not take.
        self.curvature = nn.ModuleList(nn.ParameterList(identities(weight)) for weight in self.learner().values())

    def gradient(self, state: Adapted, context: Context) -> dict[str, Tensor]:
        grads = super().gradient(state, context)
        return {name: transformed(grad, list(factors.parameters())) for (name, grad), factors in zip(grads.items(), self.curvature)}


def by_axes(weight: Tensor) -> Tensor:
    """A weight of up to three axes, the places of a filter being one."""
    return weight.flatten(2) if weight.dim() > 3 else weight


def identities(weight: Tensor) -> list[Tensor]:
    """Factors that change nothing: a matrix per axis, or for a vector one number per element."""
    return [torch.ones_like(weight)] if weight.dim() == 1 else [torch.eye(size) for size in by_axes(weight).shape]


def transformed(grad: Tensor, factors: list[Tensor]) -> Tensor:
    """The gradient times a factor along every axis; for a vector, element by element."""
    if grad.dim() == 1:
        return grad * factors[0]
    curved = by_axes(grad)
    for axis, factor in enumerate(factors):
        curved = inner.mode_product(curved, factor, axis)
    return curved.reshape(grad.shape)
