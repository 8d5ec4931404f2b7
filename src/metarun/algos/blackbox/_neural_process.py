"""What neural processes share: Gaussian answers of a bounded deviation, and the perceptrons that they are made of."""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt, Lt
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Algorithm, Footprint
from metarun.nets.base import Net
from metarun.problem import Gaussian, Problem
from metarun.task import Context, Task


class NeuralProcess(Algorithm):
    """A conditional model p(y | x, support), trained by −log density of the queries, each for itself.

        σ = floor + (1 − floor) softplus(s),   (μ, s) the numbers that a method makes of a query       (arXiv:1807.01613, section 4.1)

    How many points a support has is the data's to say (``Context.seen``); none at all is possible.

    Args:
        net, problem: the backbone f and the data's shape; net=mlp net.sizes=[] leaves x as it is.
        floor: the least deviation of an answer.
    """

    kinds = frozenset({"regression", "density"})

    def __init__(self, net: Net, problem: Problem, *, floor: Annotated[float, Gt(0), Lt(1)]) -> None:
        super().__init__(net, problem)
        self.floor = floor

    def features(self, x: Tensor, support_x: Tensor) -> Tensor:
        """f(x) [n, features]."""
        return inner.upcast(self.net(x, support_x))

    def pairs(self, context: Context) -> tuple[Tensor, Tensor]:
        """f(x) of the support [n, features], and the same with the targets beside it [n, features + outputs]."""
        x, y = context.support
        features = self.features(x, x)
        return features, torch.cat([features, y], -1)

    def gaussian(self, numbers: Tensor) -> Gaussian:
        """The answers that ``numbers`` [..., n, 2 * outputs] stand for."""
        mean, raw = inner.upcast(numbers).chunk(2, -1)
        return Gaussian(mean, (self.floor + (1 - self.floor) * F.softplus(raw)).square())

    @abstractmethod
    def held(self, support: int, query: int) -> int:
        """How many numbers a task of so many points holds beside the net's."""

    def footprint(self, task: Task, train: bool) -> Footprint:
        numbers = self.held(task.context.support.y.shape[0], task.query.y.shape[0])
        return super().footprint(task, train)._replace(bytes=4 * numbers)


class Joined(nn.Module):
    """A first layer on two inputs, what is asked and what is told: a linear map of both side by side, or, with ``modulate``,

        (1 + γ) ∘ (W x + b) + β,   (γ, β) a linear map of what is told        (FiLM, Perez et al. 2018, arXiv:1709.07871)

    Args:
        asked, told: lengths of the inputs; nothing may be told.
        width: of the output.
    """

    def __init__(self, *, asked: int, told: int, width: int, modulate: bool) -> None:
        super().__init__()
        self.modulates = modulate and told > 0
        self.linear = nn.Linear(asked if self.modulates else asked + told, width)
        self.film = nn.Linear(told, 2 * width) if self.modulates else nn.Identity()

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """[n, width] of x [n, asked] and told [n, told], or [1, told] for all."""
        if not self.modulates:
            return self.linear(torch.cat([x, told.expand(x.shape[0], -1)], -1))
        scale, shift = self.film(told).chunk(2, -1)
        return self.linear(x) * (1 + scale) + shift


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers from each width to the next, with a ReLU between them: [..., first] to [..., last]."""
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def masked_mean(x: Tensor, seen: Tensor) -> Tensor:
    """The mean [d] of the rows of x [n, d] that are ``seen`` [n]; zeros where none is."""
    return (x * seen[:, None]).sum(0) / seen.sum().clamp(min=1)
