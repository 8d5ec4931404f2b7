"""Prototypical networks: a class is the mean of its support embeddings, a query belongs to the nearest one.
Snell, Swersky, Zemel 2017, arXiv:1703.05175."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor

from metarun import inner
from metarun.algos.metric._views import views
from metarun.learners import PrototypeLearner, Prototypes
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class ProtoNet(PrototypeLearner):
    """Prototypical networks.

        p_c = mean over class c of f(x)                        (equation 1)
        logit_c(x) = −‖f(x) − p_c‖²                            (equation 2)

    Two options change answers after training, and nothing in training; neither is the paper's, and both are off by default.

    Deviation: (1) support and query pass the net one after the other, so with ``net.norm=batch`` each has statistics of its own;
    the authors embed both in one batch while training and use running statistics at test (``net.norm=running`` does the latter).

    Args:
        net, problem: the backbone and the data's shape.
        views: f(x) is the mean over so many views of an image: itself, and itself turned and moved a little. 1: itself alone.
        matching: every class is given equally many of the queries that are asked at once (``inner.balanced``), as where each of twenty
            drawings is of another character. Transductive; wrong where classes are not equally frequent.
    """

    def __init__(self, net: Net, problem: Problem, *, views: Annotated[int, Ge(1)] = 1, matching: bool = False) -> None:
        super().__init__(net, problem)
        if views > 1 and (net.frozen or len(problem.input_shape) != 3):
            shape = "features of a frozen net" if net.frozen else f"examples of shape {list(problem.input_shape)}"
            raise ValueError(f"algo.views={views} needs images, these are {shape}; leave it at 1")
        self.views, self.matching = views, matching
        self.pairwise = not matching

    @property
    def transductive(self) -> bool:
        return self.matching or super().transductive

    def features_of(self, x: Tensor, support_x: Tensor | None = None) -> Tensor:
        if self.training or self.views == 1 or x.dim() == 2:  # features, not images
            return self.net(x, support_x)
        pairs = zip(views(x, self.views), views(x if support_x is None else support_x, self.views))
        return sum(self.net(one, support) for one, support in pairs) / self.views

    def begin(self, context: Context) -> Prototypes:
        x, y = context.support
        return Prototypes(inner.class_means(self.features_of(x, x), y, context.classes.shape[0]), x)

    def predict(self, state: Prototypes, x: Tensor) -> Tensor:
        logits = super().predict(state, x)
        return inner.balanced(logits) if self.matching and not self.training else logits

    def found(self) -> dict[str, Any]:
        matched = {"matching": "every class is given equally many of the queries (transductive)"}
        return super().found() | (matched if self.matching else {})
