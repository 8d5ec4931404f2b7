"""Zero-shot relation networks: a learned comparison of an image with the attributes of a class.
Sung, Yang, Zhang, Xiang, Torr, Hospedales 2018, arXiv:1711.06025, section 3.4."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Metrics
from metarun.learners import ZeroShotLearner
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class ClassHalves(NamedTuple):
    """What the relation net's first layer makes of every class of the episode."""

    hidden: Tensor  # [way, hidden]


class ZeroShotRelation(ZeroShotLearner):
    """Relation networks for zero-shot classification.

        r(c, x) = σ(g([h(a_c), f(x)]))                                   (equation 3)
        min  mean over queries and classes of (r(c, x) − [x is of c])²    (equation 2)

    a_c: attributes of class c; h: a perceptron; g: a perceptron of one hidden layer, which is linear in its two halves, so that each is
    computed once and not for each pair. The answers are scores before σ.

    Deviations: (1) In the paper f is a net that was trained before; here it is learned with the rest. (2) ``loss: ce``, the default, as in
    ``algo=relation``.

    Args:
        net, problem: the backbone and the data's shape.
        sizes: widths of h's layers.
        hidden: width of g.
        loss: ``mse`` of σ, or ``ce``, the cross-entropy of the scores.
    """

    def __init__(self, net: Net, problem: Problem, *, hidden: Annotated[int, Ge(1)], loss: Literal["mse", "ce"], **settings: Any) -> None:
        super().__init__(net, problem, **settings)
        self.loss = loss
        self.of_class = nn.Linear(self.encoder.features, hidden)
        self.of_image = nn.Linear(net.features, hidden, bias=False)
        self.score = nn.Linear(hidden, 1)

    def begin(self, context: Context) -> ClassHalves:
        attributes, y = context.support
        return ClassHalves(inner.class_means(self.of_class(self.encoder(attributes)), y, context.classes.shape[0]))

    def predict(self, state: ClassHalves, x: Tensor) -> Tensor:
        pairs = self.of_image(self.net(x))[:, None] + state.hidden
        return self.score(F.relu(pairs)).squeeze(-1)

    def judged(self, prediction: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
        if self.loss == "ce":
            return super().judged(prediction, y)
        loss = inner.label_error(prediction, y)
        return loss, {"loss": loss, "accuracy": self.problem.score(prediction, y)}
