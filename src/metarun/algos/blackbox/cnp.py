"""Conditional neural process: examples are encoded one by one, and their mean is all that an answer knows of the task.
Garnelo et al. 2018, arXiv:1807.01613."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from metarun import inner
from metarun.algos.blackbox._neural_process import NeuralProcess, masked_mean, perceptron
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class Encoded(NamedTuple):
    """A support as one vector."""

    summary: Tensor  # r [width], or of a classification [way * width], class after class
    support_x: Tensor  # [n, *input_shape], for nets that normalise queries by the support


class CNP(NeuralProcess):
    """Conditional neural process.

        r = mean over i of h([f(x_i), y_i]),   answer(x) = g([f(x), r])                                (equations 2 to 4)
        regression      N(μ, σ²) of the two numbers that g makes of each output
        classification  r = [r_1, …, r_way],  r_c = mean over class c of h(f(x_i));  g makes logits      (section 4.3)

    Deviations: (1) The loss is on the queries; the paper's targets include the support. (2) How many examples a support has is as the
    data have it; the paper draws it anew for each batch. (3) A net f makes features of images; of plain numbers it may be none.

    Args:
        net, problem, floor: see ``NeuralProcess``.
        width: of the hidden layers and of r.
        encoder, decoder: how many linear layers h and g have, their last ones included.
    """

    kinds = frozenset({"classification", "regression", "density"})
    fixed_way = True
    label_dependent = True
    encodes = True

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        width: Annotated[int, Ge(1)],
        encoder: Annotated[int, Ge(1)],
        decoder: Annotated[int, Ge(1)],
        floor: Annotated[float, Gt(0), Lt(1)],
    ) -> None:
        super().__init__(net, problem, floor=floor)
        n, self.classifies = problem.outputs, problem.kind.labelled
        self.encoder = perceptron(net.features + (0 if self.classifies else n), *[width] * encoder)
        summary, answer = (n * width, n) if self.classifies else (width, 2 * n)
        self.decoder = perceptron(net.features + summary, *[width] * (decoder - 1), answer)
        self.numbers = width * max(encoder, decoder) + summary

    def held(self, support: int, query: int) -> int:
        return (support + query) * self.numbers

    def begin(self, context: Context) -> Encoded:
        x, y = context.support
        if self.classifies:
            summary = inner.class_means(self.encoder(self.features(x, x)), y, self.problem.outputs).flatten()
        else:
            summary = masked_mean(self.encoder(self.pairs(context)[1]), context.seen)
        return Encoded(summary, x)

    def predict(self, state: Encoded, x: Tensor) -> Any:
        features = self.features(x, state.support_x)
        numbers = self.decoder(torch.cat([features, state.summary.expand(x.shape[0], -1)], -1))
        return numbers if self.classifies else self.gaussian(numbers)
