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

MATRICES = 3  # of nodes by nodes, as numbers, that a training holds at a time

Weights = dict[str, Tensor]  # "first" W₁ [features, models * hidden], "second" W₂ [models, hidden, classes]


class Trained(NamedTuple):
    """Models in training, each for itself."""

    weights: Weights
    moments: inner.Moments  # Adam's
    best: Weights  # of every model those with the least loss on the validation nodes so far
    least: Tensor  # [models], that loss
    hop: Hop  # Â
    smooth: Tensor  # ÂX [nodes, features]


class GCN(Algorithm):
    """Graph convolutional network of two layers, trained from random weights on the labelled nodes; a step is a step of training.

        logits = Â relu(Â X W₁) W₂,   Â = D^(-½) (A + I) D^(-½)                                          (equation 9)

    Of every model those weights answer which had the least loss on the validation nodes. Nothing is meta-learned, and the net is not used.

    Deviations: (1) Dropout leaves out hidden units, not features, so that ÂX is computed once. (2) Weight decay is on both layers, the
    paper's on the first. (3) All steps are taken, and the best of them answers; in the paper training ends when the validation loss has not
    fallen for ten.

    Args:
        net, problem: the backbone, which is left aside, and the data's shape.
        models: how many are trained side by side, from random weights of their own; the score is their mean.
        hidden: units of the hidden layer.
        lr, decay: of Adam, and what of the weights is added to their gradient.
        dropout: the share of hidden units that a step leaves out.
        test_steps: of training.
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
        features = context.shared.features
        inputs, classes = features.shape[1], context.classes.shape[0]
        drawn = {
            "first": glorot(context.key, (inputs, self.models * self.hidden), inputs + self.hidden, 0),
            "second": glorot(context.key, (self.models, self.hidden, classes), self.hidden + classes, 1),
        }
        weights = {name: w.to(features.dtype) for name, w in drawn.items()}
        hop = Hop.along(context.shared.adjacency().to(features.dtype))
        least = torch.full((self.models,), math.inf, dtype=features.dtype, device=features.device)
        return Trained(weights, inner.no_moments(weights), weights, least, hop, hop.spread(features))

    def step(self, state: Trained, context: Context, k: int | Tensor) -> Trained:
        weights, (x, y) = state.weights, context.support
        hidden = state.smooth @ weights["first"]  # for validation and training alike, as nothing is left out before it

        validation, validation_y = context.extras["validation"], context.extras["validation_y"]
        loss = self.losses({"hidden": hidden, "second": weights["second"]}, state.hop, validation, validation_y)
        better = loss < state.least
        best = {
            "first": torch.where(better.repeat_interleave(self.hidden), weights["first"], state.best["first"]),
            "second": torch.where(better[:, None, None], weights["second"], state.best["second"]),
        }

        kept = (inner.uniform(context.key, tuple(hidden.shape), 2 + k) >= self.dropout).to(hidden.dtype) / (1 - self.dropout)
        parts = inner.gradient(
            lambda *given: self.losses(*given).sum(), {"hidden": hidden, "second": weights["second"]}, state.hop, x, y, kept, mode="none"
        )
        slopes = {"first": state.smooth.T @ parts["hidden"], "second": parts["second"]}
        slopes = tree_map(lambda g, w: g + self.decay * w, slopes, weights)
        weights, moments = inner.adam(weights, slopes, state.moments, k, self.lr, beta1=0.9)
        return Trained(weights, moments, best, torch.where(better, loss, state.least), state.hop, state.smooth)

    def losses(self, parts: Weights, hop: Hop, x: Tensor, y: Tensor, kept: Tensor | float = 1.0) -> Tensor:
        """Mean cross-entropy of every model [models] on the nodes x, y [n]; arguments as of ``logits``."""
        logits = self.logits(parts["hidden"], parts["second"], hop, x, kept)
        return F.cross_entropy(logits, y[:, None].expand(-1, self.models), reduction="none").mean(0)

    def logits(self, hidden: Tensor, second: Tensor, hop: Hop, x: Tensor, kept: Tensor | float = 1.0) -> Tensor:
        """[n, classes, models] of the nodes x [n]; ``hidden`` is ÂXW₁ [nodes, models * hidden], of which dropout kept ``kept``."""
        active = (F.relu(hidden) * kept).unflatten(1, (self.models, self.hidden))
        classes = torch.einsum("nmh,mhc->ncm", active, second).flatten(1)
        return hop.to(x, classes).unflatten(1, (second.shape[2], self.models))

    def predict(self, state: Trained, x: Tensor) -> Tensor:
        return self.logits(state.smooth @ state.best["first"], state.best["second"], state.hop, x)

    def footprint(self, task: Task, train: bool) -> Footprint:
        features = task.context.shared.features
        return Footprint(0, bytes=(MATRICES * len(features) + features.shape[1]) * len(features) * features.element_size())
