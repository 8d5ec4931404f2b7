"""Meta Networks: nets that read the gradients of the examples and write fast weights from them, which a query then looks up.
Munkhdalai, Yu 2017, "Meta Networks", arXiv:1703.00837."""

from __future__ import annotations

from typing import Annotated, NamedTuple, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Algorithm, Footprint
from metarun.nets.base import Net
from metarun.nets.lstm import LSTMCell
from metarun.problem import Problem
from metarun.task import Context, Task

LEAST = 10.0  # gradients are told apart down to e^−LEAST


class Slopes(NamedTuple):
    """Gradients, or fast weights, of a net of two layers for each of n examples."""

    hidden: Tensor  # [n, hidden, inputs + 1]
    outputs: Tensor  # [n, way, hidden + 1]


class Written(NamedTuple):
    """What was made of the examples."""

    embedder: Tensor  # Q* [embedding, features + 1]
    keys: Tensor  # r_i [n, embedding]
    values: Slopes  # W*_i, by example
    support_x: Tensor  # [n, *input_shape], for nets that normalise queries by the support


class MetaNet(Algorithm):
    """MetaNet.

        Q* = d(∇_Q L(x_1), …, ∇_Q L(x_n)),   W*_i = m(∇_W L(x_i))            d an LSTM, m an MLP; each weight alike (equations 1 to 3)
        r = u(x) = ReLU(Q f(x)) + ReLU(Q* f(x))                               also the examples' keys r_i            (equations 4, 6)
        W*(x) = Σ_i softmax_i(cos(r, r_i)) W*_i                                                                      (equations 7, 8)
        logits(x) = (V + V*) [ReLU(W f(x)) + ReLU(W* f(x))]                                                          (section 2.2)

    L is the cross-entropy of a net with slow weights alone. Its gradients are inputs: nothing is differentiated through them. d reads the
    examples in an order that the episode's key determines.

    Deviations: (1) Fast weights are those of fully connected layers on features f of the backbone; in the paper of upper convolutions, too.
    (2) Embedder and base learner share f. (3) d reads all examples; the paper draws some of each class. (4) L of the embedder is that of a
    linear layer on it, whatever shot is; the paper compares pairs where there are several shots. (5) V* is added to V, since there is no
    ReLU behind logits. (6) Outputs of d and m begin at ``start`` of torch's size, so that slow weights speak first.

    Args:
        net, problem: the backbone f and the data's shape.
        embedding: numbers of a key.
        hidden: units of the base learner's hidden layer.
        units: of d and of m's two hidden layers.
        start: see deviation 6.
    """

    kinds = frozenset({"classification"})
    fixed_way = True
    label_dependent = True
    ordered = True
    encodes = True

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        embedding: Annotated[int, Ge(1)],
        hidden: Annotated[int, Ge(1)],
        units: Annotated[int, Ge(1)],
        start: Annotated[float, Ge(0)],
    ) -> None:
        super().__init__(net, problem)
        way = problem.outputs
        self.embed, self.tell = nn.Linear(net.features, embedding), nn.Linear(embedding, way)
        self.tell.requires_grad_(False)  # it matters for gradients alone, through which nothing is differentiated
        self.base, self.answer = nn.Linear(net.features, hidden), nn.Linear(hidden, way)
        self.reader, self.write_embedder = LSTMCell(2 + units, units), nn.Linear(units, 1)
        self.writer = nn.Sequential(nn.Linear(2, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, 1))
        with torch.no_grad():
            for layer in (self.write_embedder, cast(nn.Linear, self.writer[-1])):
                layer.weight.mul_(start)
                layer.bias.zero_()  # so that fast weights have either sign, and none of their layers begins dead

    def begin(self, context: Context) -> Written:
        x, y = context.support
        features = inner.upcast(self.net(x, x))
        target = inner.one_hot(y, self.problem.outputs).to(features.dtype)
        embedder = self.read(slopes(features, target, self.embed, self.tell).hidden[inner.order(context.key, len(y))])
        values = Slopes(*map(self.write, slopes(features, target, self.base, self.answer)))
        return Written(embedder, self.key(features, embedder), values, x)

    def read(self, gradients: Tensor) -> Tensor:
        """Q* [embedding, features + 1], from ∇_Q of one example after the other [n, embedding, features + 1]."""
        output = cell = gradients.new_zeros(*gradients.shape[1:], self.reader.hidden)
        for gradient in inner.log_and_sign(gradients, LEAST):
            output, cell = self.reader(torch.cat([gradient, output], -1), cell)
        return inner.upcast(self.write_embedder(output)).squeeze(-1)

    def write(self, gradient: Tensor) -> Tensor:
        """Fast weights for gradients of any shape."""
        return inner.upcast(self.writer(inner.log_and_sign(gradient, LEAST))).squeeze(-1)

    def key(self, features: Tensor, embedder: Tensor) -> Tensor:
        """r [n, embedding] of features [n, features]."""
        return F.relu(self.embed(features)) + F.relu(inner.with_ones(features) @ embedder.T)

    def predict(self, state: Written, x: Tensor) -> Tensor:
        features = inner.upcast(self.net(x, state.support_x))
        heed = (inner.directions(self.key(features, state.embedder)) @ inner.directions(state.keys).T).softmax(-1)
        hidden = F.relu(self.base(features)) + F.relu(looked_up(heed, state.values.hidden, features))
        return self.answer(hidden) + looked_up(heed, state.values.outputs, hidden)

    def footprint(self, task: Task, train: bool) -> Footprint:
        # Of each example's gradients, what the nets that read them make of each number, and again on the way back.
        numbers = (self.base.out_features + self.embed.out_features) * (self.net.features + 1)
        return super().footprint(task, train)._replace(bytes=len(task.context.support.y) * numbers * 4 * 8 * self.reader.hidden)


@torch.no_grad()
def slopes(features: Tensor, target: Tensor, first: nn.Linear, second: nn.Linear) -> Slopes:
    """∇ of the cross-entropy of second(ReLU(first(x))) by both layers' weights, biases last; for each of n examples by itself.

    Args:
        features: [n, inputs].
        target: [n, way], one-hot.
    """
    before = first(features)
    hidden = F.relu(before)
    of_logits = second(hidden).softmax(-1) - target
    of_hidden = (of_logits @ second.weight) * (before > 0)
    return Slopes(of_hidden[..., None] * inner.with_ones(features)[:, None], of_logits[..., None] * inner.with_ones(hidden)[:, None])


def looked_up(heed: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    """Σ_i heed_i W*_i x for m queries, [m, outputs], without a matrix for each of them.

    Args:
        heed: [m, n].
        weights: [n, outputs, inputs + 1].
        x: [m, inputs].
    """
    return torch.einsum("mn,noi,mi->mo", heed, weights, inner.with_ones(x))
