"""Temporal convolutions that gather and attention that picks out, over the examples read so far.
Mishra, Rohaninejad, Chen, Abbeel 2018, "A Simple Neural Attentive Meta-Learner", arXiv:1707.03141."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Algorithm
from metarun.nets.attention import MultiHeadAttention
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class Gather(nn.Module):
    """One dense block of the paper: a causal convolution over two places in time, gated, appended to what it sees."""

    def __init__(self, inputs: int, filters: int, dilation: int) -> None:
        super().__init__()
        self.dilation, self.outputs = dilation, inputs + filters
        self.both = nn.Linear(2 * inputs, 2 * filters)

    def forward(self, x: Tensor, past: Tensor, before: Tensor) -> Tensor:
        """[m, outputs] of items x [m, inputs], item i coming after the first ``before`` [m] int64 of ``past`` [n, inputs]."""
        place = before - self.dilation
        earlier = torch.where(place[:, None] >= 0, past[place.clamp(min=0)], 0.0)
        value, gate = self.both(torch.cat([earlier, x], 1)).chunk(2, -1)
        return torch.cat([x, torch.tanh(value) * torch.sigmoid(gate)], 1)


class Attend(nn.Module):
    """Attention to what came before and to oneself, appended to what it sees."""

    def __init__(self, inputs: int, keys: int, values: int) -> None:
        super().__init__()
        self.outputs = inputs + values
        self.attention = MultiHeadAttention(queries=inputs, keys=inputs, values=inputs, heads=1, size=keys, read=values)
        self.attention.key.load_state_dict(self.attention.query.state_dict())

    def forward(self, x: Tensor, past: Tensor, before: Tensor) -> Tensor:
        """[m, outputs] of x; arguments as of ``Gather``."""
        places = torch.arange(past.shape[0], device=x.device)
        oneself = torch.eye(x.shape[0], dtype=torch.bool, device=x.device)
        items = torch.cat([past, x])
        return torch.cat([x, self.attention(x, items, items, torch.cat([places < before[:, None], oneself], 1))], 1)


class Reading(NamedTuple):
    """A support that is read up to somewhere."""

    layers: tuple[Tensor, ...]  # [n, inputs of the layer] each: what every layer sees of the support, in the order of reading
    read: Tensor  # [] int64, examples read so far
    support_x: Tensor  # [n, *input_shape], for nets that normalise queries by the support


class SNAIL(Algorithm):
    """SNAIL.

        sequence  (f(x_1), y_1), …, (f(x_n), y_n), (f(x_q), 0)
        Gather    x ↦ [x, tanh(W_f [x_{t−d}, x_t]) ∘ σ(W_g [x_{t−d}, x_t])],   d = 1, 2, 4, … < T  (a TC block)
        Attend    x ↦ [x, softmax(q_t K_{≤t}ᵀ / √keys) V_{≤t}]
        answer    linear(Attend ∘ TC ∘ Attend ∘ TC ∘ Attend)

    Nothing depends on what comes later, so the support passes once, whole, and inner step k only moves the place of the queries behind
    example k of ``inner.order``; the adaptation curve is the accuracy after so many examples.

    Deviations: (1) Dilations are 1, 2, 4, …; with the paper's 2, 4, 8, … a TC block sees even lags alone. (2) The paper trains one model
    with 1 to 5 shots; here it is trained with those of ``episode.train``. (3) T is a setting, not the length of the episodes, so that
    a trained net reads more examples than that, too: attention reaches all of them. (4) Keys begin with the weights of queries, so that
    items first attend to their like.

    Args:
        net, problem: the backbone and the data's shape.
        length: T, how far back a TC block looks.
        filters: of a convolution.
        keys, values: sizes of the three attentions.
    """

    fixed_way = True
    label_dependent = True
    ordered = True
    encodes = True
    reads = "one_by_one"

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        length: Annotated[int, Ge(2)],
        filters: Annotated[int, Ge(1)],
        keys: list[Annotated[int, Ge(1)]],
        values: list[Annotated[int, Ge(1)]],
    ) -> None:
        if not len(keys) == len(values) == 3:
            raise ValueError(f"algo.keys={keys} and algo.values={values} are sizes of three attentions: give three of each")
        super().__init__(net, problem)
        width, layers = net.features + problem.outputs, nn.ModuleList()
        for i, (key, value) in enumerate(zip(keys, values)):
            for power in range(math.ceil(math.log2(length)) if i else 0):
                layers.append(Gather(width, filters, 2**power))
                width += filters
            layers.append(Attend(width, key, value))
            width += value
        self.layers, self.head = layers, nn.Linear(width, problem.outputs)

    def steps(self, context: Context, train: bool) -> int:
        return context.support.y.shape[0]

    def begin(self, context: Context) -> Reading:
        n = context.support.y.shape[0]
        order = inner.order(context.key, n)
        x, y = context.support.x, context.support.y[order]
        features = inner.upcast(self.net(x, x))[order]
        answers = inner.one_hot(y, self.problem.outputs).to(features.dtype) if self.problem.kind.labelled else y
        x, before, seen = torch.cat([features, answers], 1), torch.arange(n, device=features.device), []
        for layer in self.layers:
            seen.append(x)
            x = layer(x, x, before)
        return Reading(tuple(seen), torch.zeros_like(before[0]), context.support.x)

    def step(self, state: Reading, context: Context, k: int) -> Reading:
        return state._replace(read=(state.read + 1).clamp(max=context.support.y.shape[0]))

    def predict(self, state: Reading, x: Tensor) -> Tensor:
        features = inner.upcast(self.net(x, state.support_x))
        x = torch.cat([features, features.new_zeros(x.shape[0], self.problem.outputs)], 1)
        before = state.read.expand(x.shape[0])
        for layer, past in zip(self.layers, state.layers):
            x = layer(x, past, before)
        return self.head(x)
