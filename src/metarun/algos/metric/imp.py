"""Infinite mixture prototypes: a class has as many prototypes as its support calls for.
Allen, Shelhamer, Shin, Tenenbaum 2019, arXiv:1902.04552."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from annotated_types import Gt
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Algorithm
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class Clusters(NamedTuple):
    """Candidate clusters: one at every class mean, then one at every support example."""

    means: Tensor  # [way + way * shot, features]
    member: Tensor  # [way + way * shot, way] bool: of which class; no class where there is no cluster
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class IMP(Algorithm):
    """Infinite mixture prototypes.

    Clusters begin at the class means. An example whose squared distance to all clusters of its class is above λ founds one (DP-means):

        λ = −2σ ln(α / (1 + ρ/σ)^(d/2))          σ: variance of a cluster, learned; ρ: variance of the class means; d: features
        μ_c = Σ_i z_ic f(x_i) / Σ_i z_ic,         z_ic = N(f(x_i); μ_c, σ) over the clusters of its class
        logit_k(x) = max over clusters c of class k of −‖f(x) − μ_c‖² / 2σ

    One cluster per class and σ = 1/2 are ProtoNet (λ → ∞); σ, λ → 0 is the nearest neighbour.

    Deviations: (1) Examples are visited from the farthest to the nearest to their class mean, so that their order does not matter.
    (2) A cluster that is no example's nearest is dropped. (3) Labelled clusters only.

    Args:
        net, problem: the backbone and the data's shape.
        variance: σ before meta-training.
        concentration: α; the smaller, the fewer clusters.
    """

    kinds = frozenset({"classification"})
    pairwise = True  # but for λ: all classes have a say in how many clusters there are
    encodes = True

    def __init__(self, net: Net, problem: Problem, *, variance: Annotated[float, Gt(0)], concentration: Annotated[float, Gt(0)]) -> None:
        super().__init__(net, problem)
        self.log_variance = nn.Parameter(torch.tensor(math.log(variance)))
        self.concentration = concentration

    def begin(self, context: Context) -> Clusters:
        x, y = context.support
        way = context.classes.shape[0]
        features = inner.upcast(self.net(x, x))
        means = inner.class_means(features, y, way)
        variance = self.log_variance.exp()
        with torch.no_grad():
            member = self._found(features, means, y, self._threshold(means, variance))
        # Responsibilities of the clusters for the examples [way * shot, clusters], then the share of each example in each cluster.
        owned = inner.one_hot(y, way).to(features.dtype) @ member.T.to(features.dtype) > 0
        centres = torch.cat([means, features])
        closeness = -inner.squared_distances(features, centres) / (2 * variance)
        responsibility = torch.where(owned, closeness, -torch.inf).log_softmax(1)
        # A cluster without examples keeps its centre, as its softmax would be that of nothing.
        empty = ~member.any(1)
        share = torch.where(empty, 0.0, responsibility).softmax(0)
        return Clusters(torch.where(empty[:, None], centres, share.T @ features), member, x)

    def predict(self, state: Clusters, x: Tensor) -> Tensor:
        distances = inner.squared_distances(inner.upcast(self.net(x, state.support_x)), state.means)
        return inner.by_class(-distances / (2 * self.log_variance.exp()), state.member).amax(-1)

    def _threshold(self, means: Tensor, variance: Tensor) -> Tensor:
        """λ [] from the class means [way, d]."""
        spread = means.var(0).mean()
        return -2 * variance * math.log(self.concentration) + means.shape[1] * variance * torch.log1p(spread / variance)

    def _found(self, features: Tensor, means: Tensor, y: Tensor, threshold: Tensor) -> Tensor:
        """Which candidates are clusters, and of which class: [way + n, way] bool, for features [n, d] of classes y [n]."""
        n, way = features.shape[0], means.shape[0]
        own_mean = (inner.squared_distances(features, means) * inner.one_hot(y, way)).sum(1)
        order = own_mean.argsort(descending=True)
        between = inner.squared_distances(features, features)[order][:, order]
        between = torch.where(y[order][:, None] == y[order][None, :], between, torch.inf)
        nearest = own_mean[order]  # of each example to any cluster of its class so far
        founds = []
        for i in range(n):
            founds.append(nearest[i] > threshold)
            nearest = torch.where(founds[i], torch.minimum(nearest, between[i]), nearest)
        founder = torch.stack(founds)[order.argsort()]
        classes = torch.cat([torch.eye(way, dtype=torch.bool, device=y.device), inner.one_hot(y, way) & founder[:, None]])
        distances = inner.by_class(inner.squared_distances(features, torch.cat([means, features])), classes)
        own = torch.where(inner.one_hot(y, way)[:, :, None], distances, -torch.inf).amax(1)
        closest = torch.where(own.isfinite(), own, torch.inf).argmin(1)
        return classes & inner.one_hot(closest, way + n).any(0)[:, None]
