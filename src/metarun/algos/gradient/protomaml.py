"""Proto-MAML: MAML whose head begins, in every episode, as the linear classifier that the prototypes are.
Triantafillou et al. 2020 (Meta-Dataset), arXiv:1903.03096, section 4."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.func import functional_call

from metarun import inner
from metarun.learners import Adapted, InnerLoop, as_they_come
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class ProtoMAML(InnerLoop):
    """Proto-MAML.

        p_c = mean of f_θ over class c,   W_c = 2 p_c,   b_c = −‖p_c‖²          (section 4: −‖f(x) − p_c‖² but for what all classes share)
        φ_0 = (θ, W, b),   φ_{k+1} = φ_k − α ∇L_support(φ_k)
        min_θ  mean over tasks of L_query(φ_K)

    The derivative goes through the prototypes, with ``first_order`` too, which drops that of the inner gradients alone. Without steps it
    is ProtoNet. Any number of classes.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: α, on the mean support loss.
        inner_steps, test_steps: K in meta-training, and in validation and test.
        first_order: drop the second derivatives.
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
    """

    kinds = frozenset({"classification"})
    fixed_way = False
    label_dependent = False

    def __init__(self, net: Net, problem: Problem, **settings: Any) -> None:
        super().__init__(net, problem, **settings)
        self.head.requires_grad_(False)  # only its form is used

    def begin(self, context: Context) -> Adapted:
        x = context.support.x
        return Adapted(self.learner() | self.classifier(self.net(x, x), context), x)

    @staticmethod
    def classifier(features: Tensor, context: Context) -> dict[str, Tensor]:
        """The head that prototypes are, by parameter name, of ``features`` [n, features] of the support."""
        means = inner.class_means(inner.upcast(features), context.support.y, context.classes.shape[0])
        return {"head.weight": 2 * means, "head.bias": -means.square().sum(1)}

    def carry_on(self, before: Adapted, fresh: Adapted, context: Context) -> Adapted:
        """The net as it has become, in which the classes that have come now begin as their prototypes; those of others stay."""
        x, fast = fresh.support_x, before.fast
        net = {name.removeprefix("net."): weight for name, weight in fast.items() if name.startswith("net.")}
        head = self.classifier(functional_call(self.net, net, (x, x)), context)
        return fresh._replace(fast=fast | {name: as_they_come(fast[name], rows, context) for name, rows in head.items()})
