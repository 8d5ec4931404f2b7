"""What a task is: the tensors of one episode, the numbers that shape it, and how answers to it are scored.
Every tuple describes ONE task; stacking tasks adds one leading axis to every tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from metarun.inner import widen

Kind = Literal["classification", "regression"]


class Batch(NamedTuple):
    """Examples of one task."""

    x: Tensor  # [n, *input_shape] float
    y: Tensor  # [n] int64 in 0..way-1, or [n, outputs] float for regression


class Context(NamedTuple):
    """All that a learner may see before it is asked: no method can peek at the query."""

    support: Batch  # n = way * shot, grouped by class; zero-shot: n = way, and x [way, attributes] describes the classes
    classes: Tensor  # [way] int64, global class ids (zeros for regression)
    key: Tensor  # [] int64, the episode's own random key
    extras: dict[str, Tensor]  # what only some episodes have: "unlabelled" images [m, *input_shape], in random order

    @property
    def unlabelled(self) -> Tensor:
        """Images without labels [m, *input_shape], of the episode's classes and of distractor classes; m = 0 where none were asked for."""
        return self.extras.get("unlabelled", self.support.x[:0])


class Task(NamedTuple):
    """One episode."""

    context: Context
    query: Batch  # n = way * query


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
            mean, variance = map(widen, prediction)
            return 0.5 * ((mean - y).square() / variance + torch.log(2 * math.pi * variance)).mean()
        if self.kind == "classification":
            return F.cross_entropy(widen(prediction), y)
        return (widen(prediction) - y).square().mean()

    def score(self, prediction: Tensor | Gaussian, y: Tensor) -> Tensor:
        """The metric of one batch, a scalar."""
        guess = best_guess(prediction)
        if self.kind == "classification":
            return (guess.argmax(-1) == y).float().mean()
        return (widen(guess) - y).square().mean()


def stack(tasks: list[Task]) -> Task:
    """Single tasks to stacked tasks: one leading axis on every tensor."""
    return torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), *tasks)


def select(tasks: Task, index: int | slice) -> Task:
    """One task (an int) or a run of tasks (a slice) out of stacked tasks."""
    return torch.utils._pytree.tree_map(lambda leaf: leaf[index], tasks)


def count(tasks: Task) -> int:
    """How many tasks are stacked."""
    return tasks.query.y.shape[0]
