"""MTL, meta-transfer learning: a pre-trained net stays as it is but for a scale per filter and its shifts, which are meta-learned.
Sun, Liu, Chua, Schiele 2019, arXiv:1812.02391."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from metarun.learners import HeadLearner
from metarun.nets.base import Net
from metarun.problem import Problem


class Scale(nn.Module):
    """A factor for every filter [outputs, inputs] of a weight, the same all over its window."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(*weight.shape[:2], *[1] * (weight.dim() - 2)))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


class MTL(HeadLearner):
    """Meta-transfer learning.

        SS(x; W, b; S_1, S_2) = (W ∘ S_1) x + (b + S_2)         (equation 5; W stays, S_1 begins at one and S_2 at zero)
        inner loop   head ← head − α ∇_head L_support            (equation 3; the net stays)
        min_{S_1, S_2, head}  mean over tasks of L_query         (equations 4 and 7)

    The net is to come from a run on all training classes: ``algo=pretrain`` first, then ``algo=mtl init_from=RUN``. Without it the
    filters are random ones.

    Deviations: (1) A shift ahead of a norm is taken away by it again. The b + S_2 that is learned is the norm's own shift, and with it
    its scale per channel, from their pre-trained values; nets without norms have the shifts of their layers. (2) Hard tasks, made of
    the classes that were failed before, are not drawn again: here an episode does not depend on those before it. (3) One outer rate for
    all, where the authors have 0.0001 for scales and shifts and 0.001 for the head; inner steps are 20 of 0.4, theirs 50 of 0.01.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: α, on the mean support loss.
        inner_steps, test_steps: steps of the head in meta-training, and in validation and test.
        first_order: drop the second derivatives (as the authors' PyTorch code does).
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
    """

    kinds = frozenset({"classification"})

    def __init__(self, net: Net, problem: Problem, **settings: Any) -> None:
        super().__init__(net, problem, **settings)
        for module in list(net.modules()):
            for name, weight in list(module.named_parameters(recurse=False)):
                if weight.dim() > 1:
                    weight.requires_grad_(False)
                    register_parametrization(module, name, Scale(weight))

    @classmethod
    def backbone(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The filters with their scales multiplied in."""
        net = super().backbone(weights)
        for scale in [name for name in net if name.endswith(".0.scale")]:
            filters = scale.replace("0.scale", "original")
            net[filters] = net[filters] * net.pop(scale)
        return net
