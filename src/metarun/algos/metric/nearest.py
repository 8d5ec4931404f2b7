"""The nearest neighbour in pixels: how far does one get without learning anything?
The "Pixels" row of Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016, arXiv:1606.04080."""

from __future__ import annotations

from math import prod
from typing import Literal, NamedTuple

from torch import Tensor

from metarun import inner
from metarun.algorithm import Algorithm, Footprint
from metarun.nets.base import Net
from metarun.nets.pixels import Pixels
from metarun.problem import Problem
from metarun.task import Context, Task


class Examples(NamedTuple):
    """What a query is compared with."""

    pixels: Tensor  # [way * shot, pixels]
    member: Tensor  # [way * shot, way] bool


class Nearest(Algorithm):
    """Nearest neighbour.

        logit_c(x) = max over examples x_i of class c of −‖x − x_i‖², or of cos(x, x_i)

    Nothing is learned, and the net is not used.

    Args:
        net, problem: the backbone, which is left aside, and the data's shape.
        distance: ``euclidean`` or ``cosine``.
    """

    kinds = frozenset({"classification"})
    pairwise = True

    def __init__(self, net: Net, problem: Problem, *, distance: Literal["euclidean", "cosine"]) -> None:
        super().__init__(Pixels(problem.input_shape), problem)
        self.distance = distance

    def begin(self, context: Context) -> Examples:
        x, y = context.support
        return Examples(self.net(x), inner.one_hot(y, context.classes.shape[0]))

    def predict(self, state: Examples, x: Tensor) -> Tensor:
        if self.distance == "euclidean":
            scores = -inner.squared_distances(self.net(x), state.pixels)
        else:
            scores = inner.directions(self.net(x)) @ inner.directions(state.pixels).T
        return inner.by_class(scores, state.member).amax(-1)

    def footprint(self, task: Task, train: bool) -> Footprint:
        """The differences of every query from every example, pixel by pixel and squared, are most of it."""
        pairs = len(task.query.y) * len(task.context.support.y)
        return super().footprint(task, train)._replace(bytes=8 * pairs * prod(self.problem.input_shape))
