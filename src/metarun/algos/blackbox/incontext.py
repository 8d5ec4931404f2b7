"""A Transformer sees examples beside codes of their labels, and a query beside none: classification as reading a context.
Fifty, Duan, Junkins, Amid, Leskovec, Ré, Thrun 2024, "Context-Aware Meta-Learning" (CAML), arXiv:2310.10971."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple, cast

import torch
from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.abilities import LimitedWay
from metarun.algorithm import Algorithm
from metarun.nets.attention import TransformerLayer
from metarun.nets.base import Net
from metarun.nets.norm import Norm
from metarun.problem import Problem
from metarun.task import Context


class Shown(NamedTuple):
    """The context of the queries."""

    tokens: tuple[Tensor, ...]  # [way * shot, width], examples with the codes of their labels as each layer finds them
    codes: Tensor  # [way, ways], of the classes of the episode
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


def equiangular(n: int) -> Tensor:
    """Codes [n, n] float32, one in a row, of length one and with the same angle between any two, the widest there is: the corners of a
    simplex (ELMES of the paper, definition 1). Products of two are −1 / (n − 1)."""
    return (torch.eye(n) - 1 / n) * math.sqrt(n / (n - 1))


class InContext(LimitedWay, Algorithm):
    """In-context learner.

        support token  W [f(x_i), e_{y_i}]          query token  W [f(x_q), u]
        logit_c(x_q) = ⟨H Transformer(tokens)_q, e_c⟩

    The codes e are rows of ``equiangular``, u is learned, W and H have biases. Layers of the Transformer normalise what they read
    (before attention and MLP, with GELU), and once more before H. There are no positions, so the order of the support means nothing;
    which of the ``ways`` codes a class has is drawn from the episode's key, so that all are trained, and an episode of fewer classes is
    nothing special.

    Deviations: (1) The encoder f is trained with the rest, unless ``net.frozen`` says otherwise, as in the paper. (2) Support tokens
    see the support, and a query sees the support and itself; in the paper support tokens see the query as well, which makes a pass of
    its own for every query. (3) Logits are products with the codes, in place of a layer with an output for every code. (4) W makes tokens
    of any width; the authors' are features and codes side by side, the codes times a learned number. (5) The first weights match: keys
    begin as queries do, the output of attention as the transpose of its values, and H as that of W's columns for codes.

    Args:
        net, problem: the backbone and the data's shape.
        ways: the most classes of an episode; training may have fewer than the test.
        width: numbers of a token.
        layers: of the Transformer.
        heads: of attention, which divide the width.
        hidden: of a layer's MLP.
    """

    kinds = frozenset({"classification"})
    label_dependent = True
    encodes = True

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        ways: Annotated[int, Ge(2)],
        width: Annotated[int, Ge(1)],
        layers: Annotated[int, Ge(1)],
        heads: Annotated[int, Ge(1)],
        hidden: Annotated[int, Ge(1)],
    ) -> None:
        if problem.most_classes > ways:
            raise ValueError(f"episodes have up to {problem.most_classes} classes, and algo.ways={ways} is the most; train with more")
        super().__init__(net, problem)
        self.most_classes = ways
        self.register_buffer("codes", equiangular(ways))
        self.codes: Tensor
        self.unknown = nn.Parameter(torch.zeros(ways))
        self.embed = nn.Linear(net.features + ways, width)
        self.layers = nn.ModuleList(TransformerLayer(width=width, heads=heads, hidden=hidden) for _ in range(layers))
        self.norm = Norm(width, "layer")
        self.head = nn.Linear(width, ways)
        self.match()

    @torch.no_grad()
    def match(self) -> None:
        """Begin with weights by which a query attends to its like, and takes up their codes."""
        for layer in self.layers:
            attention = cast(TransformerLayer, layer).attention
            attention.key.load_state_dict(attention.query.state_dict())
            cast(nn.Linear, attention.output).weight.copy_(attention.value.weight.T)
        self.head.weight.copy_(self.embed.weight[:, self.net.features :].T)

    def begin(self, context: Context) -> Shown:
        x, y = context.support
        codes = self.codes[inner.order(context.key, len(self.codes))[: context.classes.shape[0]]]
        return self.shown(self.net(x, x), y, codes, x)

    def shown(self, features: Tensor, y: Tensor, codes: Tensor, x: Tensor) -> Shown:
        """The context that examples x of these features [n, features] make, whose classes y have these codes [way, ways]."""
        tokens = [self.tokens(features, codes[y])]
        for layer in self.layers[:-1]:
            tokens.append(layer(tokens[-1]))
        return Shown(tuple(tokens), codes, x)

    def tokens(self, features: Tensor, codes: Tensor) -> Tensor:
        """[n, width] of features [n, features] and what is known of their labels [n, ways]."""
        return self.embed(torch.cat([inner.upcast(features), codes], 1))

    def predict(self, state: Shown, x: Tensor) -> Tensor:
        return self.answer(state, x, self.unknown.expand(x.shape[0], -1))

    def answer(self, state: Shown, x: Tensor, codes: Tensor) -> Tensor:
        """Logits [m, way] of queries [m, *input_shape], of whose labels this much is known: [m, ways]."""
        asked = self.tokens(self.net(x, state.support_x), codes)
        for layer, known in zip(self.layers, state.tokens):
            asked = layer(asked, known, own=True)
        return inner.upcast(self.head(self.norm(asked))) @ state.codes.T
