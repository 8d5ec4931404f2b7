"""What learners from scratch share: keyed random weights, minibatches of the support, gradients that nothing goes back through."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.func import functional_call

from metarun import inner
from metarun.algorithm import Footprint
from metarun.learners import GradientLearner
from metarun.nets.base import Net, draw, inputs_of
from metarun.problem import Problem
from metarun.runtime.private import tree_map
from metarun.task import Batch, Context, Task

Fast = dict[str, Tensor]


class FromScratch(GradientLearner):
    """A net with a linear head that every task trains from random weights of its own; the net's own weights only tell shapes.

    Args:
        net, problem: the backbone and the data's shape.
        batch: examples of the support in a minibatch; 0 for all of them.
        bias: whether the head has one.
        init: standard deviation of normal initial weights; 0 for those that torch's layers begin with.
    """

    label_dependent = True
    reads = "minibatches"

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        batch: Annotated[int, Ge(0)] = 0,
        bias: bool = True,
        init: Annotated[float, Ge(0)] = 0.0,
        test_steps: Annotated[int, Gt(0)],
    ) -> None:
        if net.norm == "running":
            raise ValueError("net.norm=running is not for nets that every task trains from scratch: choose support, batch, group or layer")
        super().__init__(net, problem)
        self.head = nn.Linear(net.features, problem.outputs, bias=bias)
        for weight in self.learner().values():
            weight.requires_grad_(False)
        self.batch, self.init, self.test_steps = batch, init, test_steps
        self.ordered = batch > 0

    def weights(self, key: Tensor) -> Fast:
        """Random initial weights by parameter name, determined by a task's key [] int64."""
        if self.init:
            apart = key + 1  # minibatches are drawn by the key itself
            drawn_anew = inputs_of(self)
            return {
                name: self.init * inner.normal(apart, tuple(w.shape), i).to(w.dtype) if name in drawn_anew else w
                for i, (name, w) in enumerate(self.learner().items())
            }
        drawn = {"net": self.net.draw(key + len("net")), "head": draw(self.head, key + len("head"))}
        return {f"{part}.{name}": w for part, weights in drawn.items() for name, w in weights.items()}

    def places(self, context: Context, k: int | Tensor) -> Tensor | slice:
        """Which examples of the support the minibatch of step k has."""
        return inner.places(context.key, context.support.y.shape[0], self.batch, k)

    def examples(self, context: Context, k: int | Tensor) -> Batch:
        """The minibatch of step k."""
        return context.examples(self.places(context, k))

    def norms_by(self, context: Context) -> Tensor:
        """The support as nets see it that normalise queries by it; for others it does not matter, and nothing is fetched."""
        return context.examples().x if self.net.norm == "support" else context.support.x

    def footprint(self, task: Task, train: bool) -> Footprint:
        n = task.context.support.y.shape[0]
        batch = min(self.batch or n, n)
        return Footprint(batch + task.query.y.shape[0], batch if train else 0)

    def slope(self, fast: Fast, context: Context, k: int | Tensor) -> Fast:
        """The gradient of the loss of minibatch k, through which nothing is differentiated."""
        x, y = self.examples(context, k)
        grads = inner.gradient(self.support_loss, inner.constant(fast), {}, x, y, mode="none")
        return tree_map(lambda g: g.detach(), grads)

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return functional_call(self, state.fast, (x, state.support_x))


def flat(fast: Fast) -> Tensor:
    """All weights beside each other, [coordinates]."""
    return torch.cat([w.flatten() for w in fast.values()])


def shaped(coordinates: Tensor, like: Fast) -> Fast:
    """The inverse of ``flat``: [coordinates] as weights of the names and shapes of ``like``."""
    parts = coordinates.split([w.numel() for w in like.values()])
    return {name: part.view(w.shape) for (name, w), part in zip(like.items(), parts)}
