"""Conditional neural process: examples are encoded one by one, and their mean is all that an answer knows of the task.
Garnelo et al. 2018, arXiv:1807.01613."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from metarun import inner
from metarun.algos.blackbox._neural_process import Joined, NeuralProcess, masked_mean, perceptron
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class Encoded(NamedTuple):
    """A support as one vector."""

    summary: Tensor  # r [width], or of a classification [way * width], class after class
    support_x: Tensor  # [n, *input_shape], for nets that normalise queries by the support


class CNP(NeuralProcess):
    """Conditional neural process.

        r = mean over i of h(f(x_i), y_i),   answer(x) = g(f(x), r)                                    (equations 2 to 4)
        regression      N(μ, σ²) of the two numbers that g makes of each output
        classification  r = [r_1, …, r_way],  r_c = mean over class c of h(f(x_i));  g makes logits      (section 4.3)

    Deviations: (1) The loss is on the queries; the paper's targets include the support. (2) How many examples a support has is as the
    data have it; the paper draws it anew for each batch. (3) A net f makes features first. (4) With ``modulate`` the first layers of h
    and g have x scaled and shifted by y and by r; the paper's have both side by side, and take several times as long to learn that an
    answer is a sum of products. (5) With ``pool=sum`` r is the sum over examples, divided by the root of the training's ``shot``, and so
    tells how many there are, which a mean hides. (6) By default g is the deeper one; of the authors' it is h (four layers of 128, and two
    before g's output).

    Args:
        net, problem, floor: see ``NeuralProcess``.
        width: of the hidden layers and of r.
        encoder, decoder: how many layers h and g have, their first and last ones included.
        modulate: see deviation 4; false: the paper's.
        pool: see deviation 5; ``mean``: the paper's, in which a support that comes twice says what it says once. Classes have means.
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
        encoder: Annotated[int, Ge(2)],
        decoder: Annotated[int, Ge(2)],
        modulate: bool,
        pool: Literal["mean", "sum"],
        floor: Annotated[float, Gt(0), Lt(1)],
    ) -> None:
        super().__init__(net, problem, floor=floor)
        n, self.classifies = problem.outputs, problem.kind.labelled
        self.share = 1 / math.sqrt(problem.train.shot) if pool == "sum" else None
        told, summary, answer = (0, n * width, n) if self.classifies else (n, width, 2 * n)
        self.joined = Joined(asked=net.features, told=told, width=width, modulate=modulate)
        self.encoder = nn.Sequential(nn.ReLU(), perceptron(*[width] * encoder))
        self.asked = Joined(asked=net.features, told=summary, width=width, modulate=modulate)
        self.decoder = nn.Sequential(nn.ReLU(), perceptron(*[width] * (decoder - 1), answer))
        self.numbers = width * max(encoder, decoder) + summary

    def held(self, support: int, query: int) -> int:
        return (support + query) * self.numbers

    def begin(self, context: Context) -> Encoded:
        x, y = context.support
        features = self.features(x, x)
        if self.classifies:
            encoded = self.encoder(self.joined(features, features[:, :0]))
            return Encoded(inner.class_means(encoded, y, self.problem.outputs).flatten(), x)
        encoded = self.encoder(self.joined(features, y))
        summary = self.share * (encoded * context.seen[:, None]).sum(0) if self.share else masked_mean(encoded, context.seen)
        return Encoded(summary, x)

    def predict(self, state: Encoded, x: Tensor) -> Any:
        numbers = self.decoder(self.asked(self.features(x, state.support_x), state.summary[None]))
        return numbers if self.classifies else self.gaussian(numbers)
