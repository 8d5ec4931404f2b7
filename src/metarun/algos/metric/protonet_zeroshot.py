"""Zero-shot prototypical networks: the prototype of a class is an embedding of its attributes.
Snell, Swersky, Zemel 2017, arXiv:1703.05175, section 2.7."""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.learners import ZeroShotLearner
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context

SCALE = 5.0  # τ before meta-training


class ClassPoints(NamedTuple):
    """One prototype per class of the episode."""

    prototypes: Tensor  # [way, width], of length 1


class ZeroShotProtoNet(ZeroShotLearner):
    """Prototypical networks for zero-shot classification.

        p_c = g(a_c) / ‖g(a_c)‖,   logit_c(x) = −‖W f(x) − p_c‖²

    a_c: attributes of class c; g: linear, or a multilayer perceptron. With ``unit`` images lie on the sphere as well:

        logit_c(x) = −τ ‖W f(x) / ‖W f(x)‖ − p_c‖²,   τ meta-learned

    which leaves the answers to one image as alike, and puts the scores of different images on one scale: without it the length of W f(x)
    decides which image is nearest to a class (``protocol=retrieval``).

    Deviations: (1) In the paper f is a net that was trained before, and only the linear maps W and g are learned; here all three are.
    (2) Default: g has one hidden layer; the paper's is linear, ``sizes=[]``.

    Args:
        net, problem: the backbone and the data's shape.
        sizes: widths of g's hidden layers; none for the paper's linear g.
        width: numbers in a prototype.
        unit: bring image embeddings to the length 1, as prototypes are.
    """

    def __init__(self, net: Net, problem: Problem, *, width: Annotated[int, Ge(1)], unit: bool = False, **settings: Any) -> None:
        super().__init__(net, problem, **settings)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE))) if unit else None
        self.of_class = nn.Linear(self.encoder.features, width)
        self.of_image = nn.Linear(net.features, width)

    def begin(self, context: Context) -> ClassPoints:
        attributes, y = context.support
        embedded = inner.directions(self.of_class(self.encoder(attributes)))
        return ClassPoints(inner.class_means(embedded, y, context.classes.shape[0]))

    def predict(self, state: ClassPoints, x: Tensor) -> Tensor:
        embedded = inner.upcast(self.of_image(self.net(x)))
        if self.log_scale is None:
            return -inner.squared_distances(embedded, state.prototypes)
        return -self.log_scale.exp() * inner.squared_distances(inner.directions(embedded), state.prototypes)
