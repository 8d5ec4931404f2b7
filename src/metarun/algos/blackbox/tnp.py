"""Transformer neural process: examples look at each other through the layers of a transformer, and queries at the examples.
Nguyen & Grover 2022, arXiv:2207.04179 (TNP-D, independent answers)."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from metarun.algos.blackbox._neural_process import NeuralProcess, perceptron
from metarun.nets.attention import TransformerLayer
from metarun.nets.base import Net
from metarun.nets.norm import Norm
from metarun.problem import Gaussian, Problem
from metarun.task import Context


class Tokens(NamedTuple):
    """A support as every layer finds it."""

    layers: tuple[Tensor, ...]  # [n, width] for each layer
    seen: Tensor  # [n] bool
    support_x: Tensor  # [n, *input_shape], for nets that normalise queries by the support


class TNP(NeuralProcess):
    """Transformer neural process, diagonal.

        tokens  e([f(x_i), y_i, 1]) of examples, e([f(x), 0, 0]) of queries, without positions
        mask    everybody looks at the examples, nobody at a query                                       (section 4.1)
        answer  N(μ, σ²) of the numbers that the last layer's token of the query stands for

    As no example looks at a query, the examples go through the layers once, and every query after them by itself.

    Deviations: (1) Norms come before attention and MLP. (2) A query does not look at itself by attention, but for the residual path; as
    in the authors' code. (3) The third input tells an example from a query; the paper's y = 0 may be either. (4) e has two layers, the
    answer is a norm and a linear map of the token, and MLPs of layers have GELU; in the authors' code e has four, the answer is an MLP,
    and all have ReLU. (5) σ has a floor; the authors' is exp(s) unless they bound it. (6) and (7): as (1) and (2) of ``CNP``.

    Args:
        net, problem, floor: see ``NeuralProcess``.
        width: of tokens.
        heads: of attention; they divide the width.
        hidden: of a layer's MLP.
        layers: how many.
    """

    encodes = True

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        width: Annotated[int, Ge(1)],
        heads: Annotated[int, Ge(1)],
        hidden: Annotated[int, Ge(1)],
        layers: Annotated[int, Ge(1)],
        floor: Annotated[float, Gt(0), Lt(1)],
    ) -> None:
        super().__init__(net, problem, floor=floor)
        self.embed = perceptron(net.features + problem.outputs + 1, width, width)
        self.layers = nn.ModuleList(TransformerLayer(width=width, heads=heads, hidden=hidden) for _ in range(layers))
        self.norm, self.head = Norm(width, "layer"), nn.Linear(width, 2 * problem.outputs)
        self.numbers, self.scores = layers * (10 * width + 2 * hidden), 3 * layers * heads

    def held(self, support: int, query: int) -> int:
        return (support + query) * (self.numbers + self.scores * support)

    def begin(self, context: Context) -> Tokens:
        pairs, seen = self.pairs(context)[1], context.seen
        tokens = [self.embed(torch.cat([pairs, torch.ones_like(pairs[:, :1])], -1))]
        for layer in self.layers[:-1]:
            tokens.append(layer(tokens[-1], mask=seen))
        return Tokens(tuple(tokens), seen, context.support.x)

    def predict(self, state: Tokens, x: Tensor) -> Gaussian:
        features = self.features(x, state.support_x)
        query = self.embed(torch.cat([features, features.new_zeros(x.shape[0], self.problem.outputs + 1)], -1))
        for layer, tokens in zip(self.layers, state.layers):
            query = layer(query, tokens, state.seen)
        return self.gaussian(self.head(self.norm(query)))
