"""Matching networks: the labels of the support, weighted by attention, with or without full context embeddings.
Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016, arXiv:1606.04080."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from metarun import inner
from metarun.algorithm import Algorithm
from metarun.nets.base import Net
from metarun.nets.lstm import LSTMCell
from metarun.problem import Problem
from metarun.task import Context


class Memory(NamedTuple):
    """What a query attends to."""

    features: Tensor  # [way * shot, features], g(x_i)
    member: Tensor  # [way * shot, way] bool
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class Matching(Algorithm):
    """Matching networks.

        P(c | x) = Σ_{i of class c} a(x, x_i),   a = softmax_i s(f(x), g(x_i)) / T      (equation 1)

    The answers are log P, so the loss is that of the summed probabilities. Without full context embeddings f = g = the net. With them
    (``fce``, appendix A) a bidirectional LSTM over the support adds what it has read up to x_i, from either side, to g(x_i), and a query
    takes ``reads`` steps of an LSTM that attends to the support:

        ĥ, c = LSTM(f'(x), [h, r], c),   h ← ĥ + f'(x),   r = Σ_i softmax_i(h · g(x_i)) g(x_i)      (equations 3 to 6)

    Deviations: (1) The paper's softmax is over bare cosines, T = 1, which is nearly flat. (2) The LSTM starts from h = f'(x), so no read
    is no change. (3) The LSTM reads the support in an order drawn from the episode's key, since classes come one after the other.

    Args:
        net, problem: the backbone and the data's shape.
        similarity: s, ``cosine`` or ``euclidean`` (minus the squared distance; with one example per class ProtoNet, at T = 1).
        temperature: T.
        fce: full context embeddings; answers then depend on the order of the support.
        reads: attention steps of a query with ``fce``.
    """

    kinds = frozenset({"classification"})
    encodes = True

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        similarity: Literal["cosine", "euclidean"],
        temperature: Annotated[float, Gt(0)],
        fce: bool,
        reads: Annotated[int, Ge(0)],
    ) -> None:
        super().__init__(net, problem)
        self.similarity, self.temperature, self.readings = similarity, temperature, reads
        self.fce = self.label_dependent = self.ordered = fce
        if fce:
            width = net.features
            self.onwards, self.backwards = LSTMCell(2 * width, width), LSTMCell(2 * width, width)
            self.reader = LSTMCell(3 * width, width)

    def begin(self, context: Context) -> Memory:
        x, y = context.support
        features = inner.upcast(self.net(x, x))
        if self.fce:
            order = inner.uniform(context.key, y.shape).argsort()
            features = self._read_support(features[order])[order.argsort()]
        return Memory(features, inner.one_hot(y, context.classes.shape[0]), x)

    def predict(self, state: Memory, x: Tensor) -> Tensor:
        query, support = inner.upcast(self.net(x, state.support_x)), state.features
        if self.fce:
            query = self._read_by_query(query, support)
        if self.similarity == "cosine":
            scores = inner.directions(query) @ inner.directions(support).T
        else:
            scores = -inner.squared_distances(query, support)
        attention = F.log_softmax(scores / self.temperature, dim=-1)
        return inner.by_class(attention, state.member).logsumexp(-1)

    def _read_support(self, features: Tensor) -> Tensor:
        """g [n, features] of the support's plain features [n, features], in the order given."""

        def run(cell: LSTMCell, sequence: tuple[Tensor, ...]) -> list[Tensor]:
            hidden = memory = torch.zeros_like(sequence[0])
            outputs = []
            for x in sequence:
                hidden, memory = cell(torch.cat([x, hidden]), memory)
                outputs.append(hidden)
            return outputs

        sequence = features.unbind()
        return features + torch.stack(run(self.onwards, sequence)) + torch.stack(run(self.backwards, sequence[::-1])[::-1])

    def _read_by_query(self, plain: Tensor, support: Tensor) -> Tensor:
        """f [n, features] of the queries' plain features [n, features]; ``support`` [m, features] is g."""
        hidden, memory = plain, torch.zeros_like(plain)
        for _ in range(self.readings):
            found = (hidden @ support.T).softmax(-1) @ support
            hidden, memory = self.reader(torch.cat([plain, hidden, found], -1), memory)
            hidden = hidden + plain
        return hidden
