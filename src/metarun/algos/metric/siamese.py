"""Siamese networks: are two examples of one class? A query belongs to the class of the support example that it most likely shares one with.
Koch, Zemel, Salakhutdinov 2015, "Siamese neural networks for one-shot image recognition", ICML deep learning workshop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Algorithm, Footprint, Metrics
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context, Task


class Examples(NamedTuple):
    """What a query is compared with."""

    features: Tensor  # [way * shot, features]
    member: Tensor  # [way * shot, way] bool
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class Siamese(Algorithm):
    """Siamese network.

        P(x, x' of one class) = σ(s),   s(x, x') = b + Σ_j w_j |f(x)_j − f(x')_j|      (section 3.1)
        min  ½ mean over same pairs of −log P + ½ mean over different pairs of −log(1 − P)
        logit_c(x) = mean over examples x_i of class c of s(x, x_i)

    Deviations: (1) The pairs are those of queries and support of an episode, all of them; the two means weigh them as the paper's
    sampling does, half same and half different. (2) With several shots scores are averaged; the paper has one. (3) f is the backbone as
    it is; the paper's ends in a layer of sigmoid units. (4) w and b do not begin at random but where what is near is alike, and a pair
    whose features differ by ½ on average is as likely same as different: w_j = −scale / features, b = scale / 2.
    (5) No penalty on weights, where the paper has one per layer; ``optim.weight_decay`` is one for all.

    Args:
        net, problem: the backbone, shared by both sides, and the data's shape.
        scale: of the scores before meta-training; with small ones it begins with a plateau.
    """

    kinds = frozenset({"classification"})
    pairwise = True
    encodes = True

    def __init__(self, net: Net, problem: Problem, *, scale: Annotated[float, Gt(0)]) -> None:
        super().__init__(net, problem)
        self.weight = nn.Parameter(torch.full((net.features,), -scale / net.features))
        self.bias = nn.Parameter(torch.tensor(scale / 2))

    def footprint(self, task: Task, train: bool) -> Footprint:
        # Differences of each query to all of the support.
        return super().footprint(task, train)._replace(bytes=len(task.query.y) * 2 * 4 * self.net.features * self.problem.most_support)

    def begin(self, context: Context) -> Examples:
        x, y = context.support
        return Examples(inner.upcast(self.net(x, x)), inner.one_hot(y, context.classes.shape[0]), x)

    def scores(self, state: Examples, x: Tensor) -> Tensor:
        """s [n, way * shot] of x [n, *input_shape] with every support example; before the sigmoid."""
        features = inner.upcast(self.net(x, state.support_x))
        return (features[:, None] - state.features).abs() @ self.weight + self.bias

    def predict(self, state: Examples, x: Tensor) -> Tensor:
        return self.by_class(self.scores(state, x), state.member)

    @staticmethod
    def by_class(scores: Tensor, member: Tensor) -> Tensor:
        """Scores [n, way * shot] averaged over the examples of a class, [n, way]; ``member`` [way * shot, way] says which those are."""
        number = member.sum(0)
        share = member / number.clamp(min=1)
        return torch.where(number > 0, scores @ share.to(scores.dtype), inner.below(scores))

    def objective(self, states: Sequence[Examples], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        scores, same = self.scores(states[-1], task.query.x), task.query.y[:, None] == task.context.support.y
        weight = torch.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())
        loss = F.binary_cross_entropy_with_logits(scores, same.to(scores.dtype), weight, reduction="sum")
        return loss, {"loss": loss, "accuracy": self.problem.score(self.by_class(scores, states[-1].member), task.query.y)}
