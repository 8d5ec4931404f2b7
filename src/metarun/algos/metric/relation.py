"""Relation networks: a learned comparison of two feature maps, in place of a distance.
Sung, Yang, Zhang, Xiang, Torr, Hospedales 2018, arXiv:1711.06025."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Algorithm, Footprint, Metrics
from metarun.kernels.ops.max_pool import max_pool
from metarun.nets.base import Net
from metarun.nets.conv import Conv
from metarun.problem import Problem
from metarun.task import Context, Task


class Classes(NamedTuple):
    """One map per class, as the relation net's first layer sees it."""

    maps: Tensor  # [way, hidden, height, width]
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class Relation(Algorithm):
    """Relation networks.

        r(c, x) = σ(g([Σ_k f(x_{c,k}), f(x)]))                 (equation 1; the maps side by side as channels)
        min  mean over queries and classes of (r(c, x) − [x is of c])²      (equation 2)

    g: two blocks of [3x3 conv, ReLU, 2x2 max-pool], then a layer of 8 and the score. Its first convolution is linear in the two
    maps, so it is computed for each of them once and not for each pair. The answers are scores before σ.

    Deviations: (1) ``shots: mean`` averages a class's maps, so that a run can be tested with other shots than it was trained with; the
    paper adds them. (2) g has no norm: the authors' batch norm mixes queries, and one of each pair alone forgets how far two maps are
    apart. (3) ``loss: ce``, the default, leaves the plateau of equal scores sooner than the paper's ``mse`` does. (4) Their embedding
    has two poolings and two unpadded convolutions; ``net.downs=2`` comes near it. (5) g begins with the difference of the two maps, its
    first weights on one being minus those on the other, which makes it learn several times faster.

    Args:
        net, problem: the backbone, whose features should be a map (``net.flatten``), and the data's shape.
        hidden: filters of g.
        shots: ``mean`` or ``sum`` of the maps of a class.
        loss: ``mse`` of σ, or ``ce``, the cross-entropy of the scores.
    """

    kinds = frozenset({"classification"})
    pairwise = True
    encodes = True

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        hidden: Annotated[int, Ge(1)],
        shots: Literal["mean", "sum"],
        loss: Literal["mse", "ce"],
    ) -> None:
        super().__init__(net, problem)
        self.shots, self.loss = shots, loss
        channels, height, width = net.map_shape
        self.of_class = Conv(channels, hidden, 3)
        self.of_query = Conv(channels, hidden, 3, bias=False)
        self.conv = Conv(hidden, hidden, 3)
        first = nn.Linear(hidden * -(-height // 4) * -(-width // 4), 8)
        self.score = nn.Sequential(first, nn.ReLU(), nn.Linear(8, 1))
        # Without a norm, He's initial weights keep the size of the signal, and with it what tells one pair from another.
        for weight in (self.of_class.weight, self.conv.weight, first.weight):
            weight.data.copy_(nn.init.kaiming_normal_(torch.empty(weight.shape)))  # drawn in the order of the axes, not of memory
        self.of_query.weight.data.copy_(-self.of_class.weight.data)
        self.map_bytes = 3 * 4 * hidden * height * width  # of a query with one class

    def footprint(self, task: Task, train: bool) -> Footprint:
        # Maps of each query with every class.
        return super().footprint(task, train)._replace(bytes=len(task.query.y) * self.problem.most_classes * self.map_bytes)

    def begin(self, context: Context) -> Classes:
        x, y = context.support
        way = context.classes.shape[0]
        means = inner.class_means(inner.upcast(self.net(x, x)), y, way)
        if self.shots == "sum":
            means = means * inner.one_hot(y, way).sum(0)[:, None]
        return Classes(self.of_class(means.unflatten(1, self.net.map_shape)), x)

    def predict(self, state: Classes, x: Tensor) -> Tensor:
        maps = self.of_query(self.net(x, state.support_x).unflatten(1, self.net.map_shape))
        pairs = (maps[:, None] + state.maps).flatten(0, 1)
        pairs = self._shrink(self.conv(self._shrink(pairs)))
        return self.score(pairs.flatten(1)).unflatten(0, (x.shape[0], -1)).squeeze(-1)

    def objective(self, states: Sequence[Classes], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        if self.loss == "ce":
            return super().objective(states, task, progress)
        scores = self.predict(states[-1], task.query.x)
        loss = inner.label_error(scores, task.query.y)
        return loss, {"loss": loss, "accuracy": self.problem.score(scores, task.query.y)}

    @staticmethod
    def _shrink(x: Tensor) -> Tensor:
        """ReLU and 2x2 max-pool, rounding up, so that maps of one pixel survive."""
        return max_pool(F.relu(x), ceil=True)
