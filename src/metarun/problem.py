"""What is to be solved: the shape of its episodes, the kind of answers, and how they are judged.
A problem knows nothing of data sets, methods or devices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from metarun.inner import upcast

Kind = Literal["classification", "regression"]


class Gaussian(NamedTuple):
    """A prediction with its uncertainty, for regression."""

    mean: Tensor  # [n, outputs]
    variance: Tensor  # [n, outputs], > 0


def best_guess(prediction: Tensor | Gaussian) -> Tensor:
    """Logits as they are, or the mean of predictions [n, outputs]."""
    return prediction.mean if isinstance(prediction, Gaussian) else prediction


@dataclass(frozen=True, kw_only=True)
class EpisodeSpec:
    """The shape of an episode. For regression ``shot`` and ``query`` count points and ``way`` is 1.

    With ``shot`` 0 the support is one attribute vector per class.
    ``unlabelled`` images per class come from the ``way`` classes and from ``distractors`` classes more, of which there is nothing else.
    """

    way: Annotated[int, Ge(1)]
    shot: Annotated[int, Ge(0)]
    query: Annotated[int, Ge(1)]
    unlabelled: Annotated[int, Ge(0)] = 0
    distractors: Annotated[int, Ge(0)] = 0

    @property
    def images(self) -> int:
        """How many there are in an episode."""
        return (self.shot + self.query) * self.way + self.unlabelled * (self.way + self.distractors)

    def __str__(self) -> str:
        words = f"{self.way}-way {self.shot}-shot, {self.query} queries per class"
        if self.unlabelled:
            words += f", {self.unlabelled} unlabelled" + (f" (and of {self.distractors} further classes)" if self.distractors else "")
        return words


@dataclass(frozen=True)
class Problem:
    """What a net and an algorithm need to know of the data, and how a prediction is judged.

    ``outputs`` is the number of classes of an episode (classification) or the size of a target (regression);
    ``classes`` the number of training classes (0 for regression); ``input_shape`` one example's shape, no batch axis;
    ``attributes`` the length of a class's attribute vector (0: the data have none).
    """

    kind: Kind
    input_shape: tuple[int, ...]
    outputs: int
    classes: int
    train: EpisodeSpec
    eval: EpisodeSpec
    attributes: int = 0

    @property
    def most_classes(self) -> int:
        """The largest way of an episode."""
        return max(self.train.way, self.eval.way)

    @property
    def most_support(self) -> int:
        """The largest number of labelled examples of an episode."""
        return max(self.train.way * self.train.shot, self.eval.way * self.eval.shot)

    @property
    def metric(self) -> str:
        """Name of the score: ``accuracy`` (a fraction, higher is better) or ``mse`` (lower is better)."""
        return "accuracy" if self.kind == "classification" else "mse"

    @property
    def higher_is_better(self) -> bool:
        return self.kind == "classification"

    def loss(self, prediction: Tensor | Gaussian, y: Tensor) -> Tensor:
        """A scalar: mean cross-entropy of logits [n, way], squared error of predictions [n, outputs], or −log density under a Gaussian."""
        if isinstance(prediction, Gaussian):
            mean, variance = map(upcast, prediction)
            return 0.5 * ((mean - y).square() / variance + torch.log(2 * math.pi * variance)).mean()
        if self.kind == "classification":
            return F.cross_entropy(upcast(prediction), y)
        return (upcast(prediction) - y).square().mean()

    def score(self, prediction: Tensor | Gaussian, y: Tensor) -> Tensor:
        """The metric of one batch, a scalar."""
        guess = best_guess(prediction)
        if self.kind == "classification":
            return (guess.argmax(-1) == y).float().mean()
        return (upcast(guess) - y).square().mean()
