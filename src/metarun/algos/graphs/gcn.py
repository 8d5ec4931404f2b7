"""A graph convolutional network: what a node is follows from the features of its neighbours, and of theirs.
Kipf, Welling 2017, arXiv:1609.02907."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from metarun import inner
from metarun.algorithm import Algorithm, Footprint
from metarun.algos.graphs._propagation import Hop
from metarun.algos.graphs._surrogate import glorot
from metarun.nets.base import Net
from metarun.nets.pixels import Pixels
from metarun.problem import Problem
from metarun.runtime.private import tree_map
from metarun.task import Context, Task

Weights = dict[str, Tensor]  # "first" [features, models * hidden], "second" [models, hidden, classes]


class Trained(NamedTuple):
    """Models in training."""

    weights: Weights
    moments: inner.Moments  # Adam's
    best: Weights  # of every model those that were best on the validation nodes
    merit: Tensor  # [models], how good these were
    hop: Hop  # Â
    smooth: Tensor  # ÂX [nodes, features]


class GCN(Algorithm):
    """Graph convolutional network of two layers, trained from random weights; a step is a step of training.

        logits = Â relu(Â X W₁) W₂,   Â = D^(-½) (A + I) D^(-½)                                          (equation 9)

    Weights of the step that does best on the validation nodes are those that answer.
    """

    kinds = frozenset({"node classification"})
    label_dependent = True

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        models: Annotated[int, Ge(1)],
        hidden: Annotated[int, Ge(1)],
        lr: Annotated[float, Gt(0)],
        decay: Annotated[float, Ge(0)],
        dropout: Annotated[float, Ge(0), Lt(1)],
        test_steps: Annotated[int, Ge(1)],
    ) -> None:
        super().__init__(Pixels(problem.input_shape), problem)
        self.models, self.hidden, self.lr, self.decay, self.dropout, self.test_steps = models, hidden, lr, decay, dropout, test_steps

    def begin(self, context: Context) -> Trained:
        graph, key = context.shared, context.key
        x, width = graph.features, self.models * self.hidden
        hop = Hop.along(graph.adjacency().to(x.dtype))
        classes = context.classes.shape[0]
        weights = {
            "first": glorot(key, (x.shape[1], width), x.shape[1] + self.hidden, 0).to(x.dtype),
            "second": glorot(key, (self.models, self.hidden, classes), self.hidden + classes, 1).to(x.dtype),
        }
        worst = torch.full((self.models,), -math.inf, dtype=x.dtype, device=x.device)
        return Trained(weights, inner.no_moments(weights), weights, worst, hop, hop.spread(x))

    def step(self, state: Trained, context: Context, k: int | Tensor) -> Trained:
        weights, (x, y) = state.weights, context.support
        hidden = state.smooth @ weights["first"]
        merit = self.merit(self.logits(hidden, weights["second"], state.hop, context.extras["validation"]), context.extras["validation_y"])
        better = merit >= state.merit
        best = self.chosen(better, weights, state.best)
        kept = (inner.uniform(context.key, tuple(hidden.shape), 2 + k) >= self.dropout).to(hidden.dtype) / (1 - self.dropout)

        def loss(parts: Weights, hop: Hop, kept: Tensor, x: Tensor, y: Tensor) -> Tensor:
            logits = self.logits(parts["hidden"], parts["second"], hop, x, kept)
            return self.models * self.problem.loss(logits, y)

        parts = inner.gradient(loss, {"hidden": hidden, "second": weights["second"]}, state.hop, kept, x, y, mode="none")
        slopes = {"first": state.smooth.T @ parts["hidden"], "second": parts["second"]}
        slopes = tree_map(lambda g, w: g + self.decay * w, slopes, weights)
        weights, moments = inner.adam(weights, slopes, state.moments, k, self.lr, beta1=0.9)
        return state._replace(weights=weights, moments=moments, best=best, merit=torch.where(better, merit, state.merit))

    def merit(self, logits, y):
        return -F.cross_entropy(logits, y[:, None].expand(-1, self.models), reduction="none").mean(0)

    def chosen(self, better: Tensor, new: Weights, old: Weights) -> Weights:
        return {
            "first": torch.where(better.repeat_interleave(self.hidden), new["first"], old["first"]),
            "second": torch.where(better[:, None, None], new["second"], old["second"]),
        }

    def logits(self, hidden: Tensor, second: Tensor, hop: Hop, x: Tensor, kept: Tensor | float = 1.0) -> Tensor:
        """[n, classes, models] of the nodes x [n]; ``hidden`` is ÂXW₁ [nodes, models * hidden]."""
        active = (F.relu(hidden) * kept).unflatten(1, (self.models, self.hidden))
        return hop.to(x, torch.einsum("nmh,mhc->ncm", active, second).flatten(1)).unflatten(1, (second.shape[2], self.models))

    def predict(self, state: Trained, x: Tensor) -> Tensor:
        return self.logits(state.smooth @ state.best["first"], state.best["second"], state.hop, x)

