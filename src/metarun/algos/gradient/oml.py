"""OML: a representation in which learning one thing after another does not undo what was learned before.
Javed, White 2019, arXiv:1905.12588."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor
from torch.func import functional_call

from metarun import inner
from metarun.algorithm import Algorithm
from metarun.learners import CarriesWeights
from metarun.nets.base import Net
from metarun.nets.mlp import MLP
from metarun.problem import Problem
from metarun.task import Context


class Online(NamedTuple):
    """A learner between two examples of its stream."""

    fast: dict[str, Tensor]  # of the prediction network: hidden layers by parameter name, and ``head`` [way, width + 1]
    features: Tensor  # [n, features] of the stream's examples, in the graph of the representation
    support_x: Tensor  # [n, *input_shape], for nets that normalise queries by the support


class OML(Algorithm, CarriesWeights):
    """Online-aware meta-learning.

        W_0 = (w, 0),   W_{k+1} = W_k − α ∇ ℓ(g_{W_k}(f_θ(x_k)), y_k)     one step per example, class after class (algorithm 2)
        min_{θ, w}  mean over streams of the loss of g_{W_n} ∘ f_θ on examples of all classes of the stream

    f: the net, which is not changed by a stream, the representation (RLN); g: hidden layers and a linear head, the prediction network
    (PLN). An episode is a stream: its support, in the order of its classes, so that examples are as correlated as they can be. The query
    asks for all of its classes, so that forgetting the first of them costs.

    Deviations: (1) The query takes the place of the paper's random batch of all training classes, beside which the stream's own examples
    count too. (2) The head has one output per class of the stream, each beginning at zero, where the paper has one for every training
    class and draws those of the stream's classes anew; streams of any number of classes can be met so.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: α, on the loss of a single example.
        sizes: widths of g's hidden layers.
        first_order: drop the second derivatives.
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
    """

    kinds = frozenset({"classification"})
    encodes = True
    ordered = True

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        inner_lr: Annotated[float, Gt(0)],
        sizes: list[Annotated[int, Ge(1)]],
        first_order: bool,
        mode: inner.Mode,
    ) -> None:
        super().__init__(net, problem)
        self.inner_lr, self.mode = inner_lr, "none" if first_order else mode
        self.plastic = MLP((net.features,), sizes=sizes, activation="relu", norm="none")

    def steps(self, context: Context, train: bool) -> int:
        return context.support.y.shape[0]

    def begin(self, context: Context) -> Online:
        x = context.support.x
        features = inner.upcast(self.net(x, x))
        head = features.new_zeros(context.classes.shape[0], self.plastic.features + 1)
        return Online(dict(self.plastic.named_parameters()) | {"head": head}, features, x)

    def step(self, state: Online, context: Context, k: int) -> Online:
        example = state.features[k][None], context.support.y[k][None]
        return state._replace(fast=inner.sgd(state.fast, inner.gradient(self.loss, state.fast, *example, mode=self.mode), self.inner_lr))

    def loss(self, fast: dict[str, Tensor], features: Tensor, y: Tensor) -> Tensor:
        """Mean loss of the prediction network on features [n, features]; pure, as ``inner.gradient`` asks."""
        return self.problem.loss(self.answer(fast, features), y)

    def answer(self, fast: dict[str, Tensor], features: Tensor) -> Tensor:
        """Logits [n, way] of features [n, features]."""
        hidden = {name: weight for name, weight in fast.items() if name != "head"}
        return F.linear(inner.with_ones(functional_call(self.plastic, hidden, features)), fast["head"])

    def answers(self, state: Online, x: Tensor) -> Callable[[Online], Tensor]:
        features = inner.upcast(self.net(x, state.support_x))
        return lambda state: self.answer(state.fast, features)

    def predict(self, state: Online, x: Tensor) -> Tensor:
        return self.answers(state, x)(state)
