"""Semi-supervised prototypical networks: unlabelled images of the episode move the prototypes, as in k-means.
Ren, Triantafillou, Ravi, Snell, Swersky, Tenenbaum, Larochelle, Zemel 2018, arXiv:1803.00676."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from metarun import inner
from metarun.learners import PrototypeLearner, Prototypes
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class SemiProtoNet(PrototypeLearner):
    """Prototypes refined by unlabelled images x̃_j, whose share z̃_jc in class c is guessed; d_jc = ‖f(x̃_j) − p_c‖².

        p_c ← (Σ_{i of c} f(x_i) + Σ_j z̃_jc f(x̃_j)) / (shot + Σ_j z̃_jc),   starting from ProtoNet's p_c      (equation 4)

    soft:    z̃_jc = softmax_c(−d_jc)                                                                          (section 3.1.1)
    cluster: as soft, with one more cluster at the origin that takes what is of no class; its logit is
             −‖f(x̃_j)‖²/r² − ln r, with r learned                                                            (section 3.1.2)
    masked:  as soft, times m_jc = σ(e^{γ_c} (β_c − d_jc / mean_j d_jc)), with β_c, γ_c = MLP of five statistics
             over j of these relative distances: least, greatest, variance, skewness, kurtosis                (section 3.1.3)

    Without unlabelled images (``episode.unlabelled=0``) all are ProtoNet.

    Deviations: (1) Every image of a training class may be labelled in one episode and unlabelled in another; in the paper 10 % of a
    class's images are labelled for good. (2) The slope of the mask is e^γ, as in the authors' code, so near images are kept; the code
    applies the mask twice, this once. (3) The origin stays where it is; the code's moves. (4) Gradients flow through all shares; the code
    stops them in ``soft``. (5) Support and unlabelled images pass the net in one batch, queries in another.

    Args:
        net, problem: the backbone and the data's shape.
        refine: ``soft``, ``cluster`` or ``masked``.
        refine_steps: how often prototypes and shares are computed anew.
        radius: r before meta-training (``cluster``).
        hidden: width of the MLP (``masked``).
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        refine: Literal["soft", "cluster", "masked"],
        refine_steps: Annotated[int, Ge(1)],
        radius: Annotated[float, Gt(0)],
        hidden: Annotated[int, Ge(1)],
    ) -> None:
        super().__init__(net, problem)
        self.refine, self.refine_steps = refine, refine_steps
        self.pairwise = not problem.eval.unlabelled  # the classes share unlabelled images out among themselves
        if refine == "cluster":
            self.log_radius = nn.Parameter(torch.tensor(math.log(radius)))
        if refine == "masked":
            self.mask = nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    def begin(self, context: Context) -> Prototypes:
        (x, y), way = context.support, context.classes.shape[0]
        features = inner.upcast(self.net(torch.cat([x, context.unlabelled]), x))
        support, unlabelled = features[: x.shape[0]], features[x.shape[0] :]
        means, size = inner.class_means(support, y, way), inner.one_hot(y, way).sum(0)
        prototypes = means
        for _ in range(self.refine_steps if unlabelled.shape[0] else 0):
            share = self.share(unlabelled, prototypes)
            prototypes = (size[:, None] * means + share.T @ unlabelled) / (size + share.sum(0))[:, None]
        return Prototypes(prototypes, x)

    def share(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """z̃ [m, way], with the mask if there is one, of unlabelled ``features`` [m, d] for ``prototypes`` [way, d]."""
        distances = inner.squared_distances(features, prototypes)
        if self.refine == "cluster":
            other = -features.square().sum(1, keepdim=True) * torch.exp(-2 * self.log_radius) - self.log_radius
            return torch.cat([-distances, other], 1).softmax(1)[:, :-1]
        share = torch.softmax(-distances, 1)
        return share * self.masks(distances) if self.refine == "masked" else share

    def masks(self, distances: Tensor) -> Tensor:
        """m [m, way] from squared distances [m, way]."""
        relative = distances / distances.mean(0).clamp(min=1e-8)
        centred = relative - relative.mean(0)
        variance = centred.square().mean(0)
        score = centred / (variance + 1e-8).sqrt()
        statistics = [relative.amin(0), relative.amax(0), variance, score.pow(3).mean(0), score.pow(4).mean(0) - 3]
        threshold, slope = self.mask(torch.stack(statistics, 1)).unbind(1)
        return torch.sigmoid(slope.exp() * (threshold - relative))
