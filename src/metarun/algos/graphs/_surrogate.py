"""The surrogate whose training an attack looks through: a graph convolutional network without its nonlinearity.
Zügner, Günnemann 2019, arXiv:1902.08412, equation 6."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from metarun import inner
from metarun.algos.graphs._propagation import Hop
from metarun.runtime.private import tree_map
from metarun.task import Context


def glorot(key: Tensor, shape: tuple[int, ...], widths: int, stream: int) -> Tensor:
    """Random weights, uniform within ± √(6 / widths), of the layers before and behind together (Glorot & Bengio 2010)."""
    return math.sqrt(6 / widths) * (2 * inner.uniform(key, shape, stream) - 1)


class Weights(NamedTuple):
    """Of the surrogate."""

    first: Tensor  # W₁ [features, hidden]
    second: Tensor  # W₂ [hidden, classes]

    @classmethod
    def drawn(cls, key: Tensor, features: Tensor, hidden: int, classes: int) -> Weights:
        inputs = features.shape[1]
        first, second = glorot(key, (inputs, hidden), inputs + hidden, 0), glorot(key, (hidden, classes), hidden + classes, 1)
        return cls(first.to(features.dtype), second.to(features.dtype))


class Training(NamedTuple):
    """The surrogate in training."""

    parts: dict[str, Tensor]  # "shift" C [labelled, hidden], see ``Surrogate``; "second" W₂
    speed: dict[str, Tensor]  # their momentum


class Surrogate(NamedTuple):
    """logits = Â² X W₁ W₂, trained on the labelled nodes by gradient descent with momentum.

    Training sees the graph in S = (Â² X) of the labelled nodes alone. Every gradient of W₁ is Sᵀ Δ, Δ that of S W₁, so that all steps
    together change W₁ by Sᵀ C, where C takes the steps that Δ says. So a step costs, and the way back holds, matrices of labelled nodes
    only; those of all nodes by all nodes come before the first and after the last step, however many there are.
    """

    hidden: int
    steps: int
    lr: float
    momentum: float

    def seen(self, hop: Hop, features: Tensor, x: Tensor) -> Tensor:
        """S [labelled, features] of the labelled nodes x."""
        return hop.spread(hop.columns(x)).T @ features

    def trained(self, seen: Tensor, y: Tensor, start: Weights, read: Callable[[Training], Any] | None = None) -> Any:
        """The last of ``Training``, or also what ``read`` notes after every step, for labels y [labelled] int64."""
        gram, base = seen @ seen.T, seen @ start.first

        def loss(layers: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
            hidden, second = layers
            return F.cross_entropy(hidden @ second, y)

        def step(state: Training, k: Tensor) -> Training:
            parts = state.parts
            hidden = base + gram @ parts["shift"]  # S W₁
            of_hidden, of_second = inner.gradient(loss, (hidden, parts["second"]), y, mode="mixed")
            slopes = {"shift": of_hidden, "second": of_second}
            speed = tree_map(lambda v, g: self.momentum * v + g, state.speed, slopes)
            return Training(inner.sgd(parts, speed, self.lr), speed)

        parts = {"shift": seen.new_zeros(seen.shape[0], self.hidden), "second": start.second}
        return inner.loop(step, Training(parts, tree_map(lambda w: w.new_zeros(w.shape), parts)), self.steps, read=read, kept="states")

    def weights(self, seen: Tensor, parts: dict[str, Tensor], start: Weights) -> Tensor:
        """W₁ W₂ [features, classes] of a training; of several, whose ``parts`` have a leading axis, with that axis."""
        return (start.first + seen.T @ parts["shift"]) @ parts["second"]


def self_trained(surrogate: Surrogate, context: Context, key: Tensor) -> Tensor:
    """The classes of all nodes [nodes] int64 as far as can be known: labels where they are given, else what a surrogate tells."""
    features, (x, y) = context.shared.features, context.support
    hop = Hop.along(context.shared.adjacency().to(features.dtype))
    start = Weights.drawn(key, features, surrogate.hidden, context.classes.shape[0])
    seen = surrogate.seen(hop, features, x)
    weights = surrogate.weights(seen, surrogate.trained(seen, y, start).parts, start)
    return hop.spread(hop.spread(features @ weights)).argmax(1).scatter(0, x, y)
