"""The modified Hausdorff distance between drawings, as sets of ink points: a classical baseline for handwriting.
Dubuisson & Jain 1994; on Omniglot by Lake, Salakhutdinov, Tenenbaum 2015, Science 350."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from metarun import inner
from metarun.algorithm import Algorithm, Footprint
from metarun.nets.base import Net, image_shape
from metarun.nets.pixels import Pixels
from metarun.problem import Problem
from metarun.task import Context, Task


class Ink(NamedTuple):
    """The ink points of n drawings, each about its own centre, with room for ``points`` of them."""

    at: Tensor  # [n, points, 2] rows and columns, pixels
    there: Tensor  # [n, points] bool; the rest is room that is not needed


class Drawings(NamedTuple):
    """What a query is compared with."""

    ink: Ink
    member: Tensor  # [way * shot, way] bool


class Hausdorff(Algorithm):
    """Modified Hausdorff distance.

        d(A, B) = mean over a in A of min over b in B of ‖a − b‖
        logit_c(x) = −min over drawings x_i of class c of max(d(x, x_i), d(x_i, x))

    A drawing without ink is the image's diagonal away from all others. Nothing is learned, and the net is not used.

    Deviation: (1) Of an image with more than ``points`` ink points so many are taken, evenly in reading order.

    Args:
        net, problem: the backbone, which is left aside, and the data's shape.
        threshold: pixels above it are ink (ink is 1, paper 0).
        points: most ink points of a drawing.
    """

    kinds = frozenset({"classification"})
    pairwise = True

    def __init__(self, net: Net, problem: Problem, *, threshold: Annotated[float, Gt(0), Lt(1)], points: Annotated[int, Ge(1)]) -> None:
        super().__init__(Pixels(problem.input_shape), problem)
        _, height, self.width = image_shape(problem.input_shape, "hausdorff")
        self.threshold, self.points = threshold, min(points, height * self.width)
        self.diagonal = float(height**2 + self.width**2) ** 0.5

    def footprint(self, task: Task, train: bool) -> Footprint:
        # Distances of all pairs of points, and what they are made of.
        return super().footprint(task, train)._replace(bytes=len(task.query.y) * 3 * 4 * self.points**2)

    def begin(self, context: Context) -> Drawings:
        x, y = context.support
        return Drawings(self.ink(x), inner.one_hot(y, context.classes.shape[0]))

    def predict(self, state: Drawings, x: Tensor) -> Tensor:
        query = self.ink(x)
        # One example after the other: all pairs of points of all pairs of drawings would be gigabytes.
        distances = [self.distance(query, Ink(at, there)) for at, there in zip(state.ink.at.unbind(), state.ink.there.unbind())]
        return inner.by_class(-torch.stack(distances, 1), state.member).amax(-1)

    def ink(self, x: Tensor) -> Ink:
        """The ink of x [n, channels, height, width]."""
        dark = (x.amax(1) > self.threshold).flatten(1)
        count, place = dark.sum(1, keepdim=True), torch.arange(self.points, device=x.device)
        # Ink comes first in this order; of more than there is room for, every so many-th.
        order = (~dark).int().argsort(dim=1, stable=True)
        index = order.gather(1, place * count.clamp(min=self.points) // self.points)
        there = place < count
        at = torch.stack([index // self.width, index % self.width], -1).to(x.dtype)
        centre = (at * there[..., None]).sum(1, keepdim=True) / there.sum(1).clamp(min=1)[:, None, None]
        return Ink(at - centre, there)

    def distance(self, a: Ink, b: Ink) -> Tensor:
        """[n] from drawings ``a`` [n, points, 2] to the drawing ``b`` [points, 2]."""
        rows, columns = (a.at[:, :, None] - b.at).unbind(-1)
        apart = torch.hypot(rows, columns)
        onto_b = torch.where(b.there, apart, self.diagonal).amin(2)
        onto_a = torch.where(a.there[:, :, None], apart, self.diagonal).amin(1)
        return torch.maximum(_mean(onto_b, a.there), _mean(onto_a, b.there))


def _mean(values: Tensor, there: Tensor) -> Tensor:
    """Mean of values [n, points] where ``there``, [n]; 0 where there is nothing."""
    return (values * there).sum(1) / there.sum(-1).clamp(min=1)
