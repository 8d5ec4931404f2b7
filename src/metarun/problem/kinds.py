"""Kinds of problem: how long an answer is, and how answers are judged. Nobody outside asks which kind it is: a kind answers for itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.errors import UserError
from metarun.inner import upcast
from metarun.problem.answers import Gaussian, Samples, Trajectories, best_guess, log_density, log_mean
from metarun.problem.space import Space
from metarun.problem.spec import EpisodeSpec


@dataclass(frozen=True)
class Kind(ABC):
    """A kind of problem: how long an answer is, and how answers are judged.

    Attributes:
        name: what algorithms declare in ``kinds``.
        metric: name of the score.
        higher_is_better: whether a larger score is the better one.
        labelled: whether targets are classes, 0..way-1.
        acts: whether answers are what is done in an environment, there being no examples.
        alone: whether an example can be answered by itself; a node of a graph cannot.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    labelled: ClassVar[bool] = False
    acts: ClassVar[bool] = False
    alone: ClassVar[bool] = True

    @property
    @abstractmethod
    def metric(self) -> str: ...

    @property
    def space(self) -> Space | None:
        """What is to be chosen from, where a task is a search."""
        return None

    @abstractmethod
    def outputs(self, spec: EpisodeSpec) -> int:
        """How many numbers an answer has in episodes of this shape."""

    @abstractmethod
    def loss(self, prediction: Any, y: Tensor) -> Tensor:
        """What a method minimises by default, a scalar."""

    @abstractmethod
    def score(self, prediction: Any, y: Tensor) -> Tensor:
        """The metric of one batch, a scalar."""

    def describe(self, spec: EpisodeSpec) -> str:
        """An episode of this shape in a few words."""
        return f"{spec.shot} support and {spec.query} query points"

    def check(self, spec: EpisodeSpec, key: Callable[[str], str], data: str) -> None:
        """Is this a shape of episodes that such problems have?

        Args:
            key: of a field of the spec, what the user calls it.
            data: the name of the data.

        Raises:
            UserError: it is not.
        """
        if spec.unlabelled:
            raise UserError(f"{key('unlabelled')}={spec.unlabelled} is not possible: data={data} has no images")
        if spec.uneven:
            raise UserError(f"{key('uneven')}=true is not possible: data={data} has no classes; leave it at false")
        if spec.clean or spec.corrupt != "none":
            wrong = f"{key('clean')}={spec.clean}" if spec.clean else f"{key('corrupt')}={spec.corrupt}"
            raise UserError(f"{wrong} is not possible: data={data} has no classes of images; leave it at {0 if spec.clean else 'none'}")
        if spec.unknown:
            raise UserError(f"{key('unknown')}={spec.unknown} is not possible: data={data} has no classes; leave it at 0")


@dataclass(frozen=True)
class Classification(Kind):
    """Telling ``way`` classes apart: predictions are logits [n, way], y [n] int64; the score is the accuracy, a fraction."""

    name = "classification"
    metric = "accuracy"
    higher_is_better = True
    labelled = True

    def outputs(self, spec: EpisodeSpec) -> int:
        return spec.way

    def describe(self, spec: EpisodeSpec) -> str:
        return f"{spec.way}-way {spec.shot}-shot{' (uneven)' * spec.uneven}, {spec.query} queries a class"

    def loss(self, prediction: Tensor | Samples, y: Tensor) -> Tensor:
        """Mean cross-entropy; of several members, −log of their mean probability."""
        if isinstance(prediction, Samples):
            return F.nll_loss(best_guess(prediction), y)
        return F.cross_entropy(upcast(prediction), y)

    def score(self, prediction: Tensor | Samples, y: Tensor) -> Tensor:
        return (best_guess(prediction).argmax(-1) == y).float().mean()

    def check(self, spec: EpisodeSpec, key: Callable[[str], str], data: str) -> None:
        if spec.way < 2:
            raise UserError(f"{key('way')}={spec.way} is out of range: telling classes apart needs way >= 2")
        if (spec.corrupt == "none") != (spec.rate == 0):
            raise UserError(
                f"{key('rate')}={spec.rate:g} does nothing with {key('corrupt')}=none: choose corrupt=labels, imbalance or noise"
                if spec.rate
                else f"{key('corrupt')}={spec.corrupt} needs {key('rate')} above 0, up to 1: how much of the support it takes"
            )
        if spec.uneven and (spec.clean or spec.corrupt != "none"):
            raise UserError(f"{key('uneven')}=true goes with neither clean nor corrupt: corrupt=imbalance makes classes of other sizes")


@dataclass(frozen=True)
class Regression(Kind):
    """Predicting numbers: predictions [n, size] or a ``Gaussian``, or Gaussian ``Samples``; y [n, size].

    Args:
        size: numbers per target.
        summed: the squared error is summed over examples, as of the loss of a training problem, in place of their mean.
    """

    name = "regression"
    higher_is_better = False
    size: int = 1
    summed: bool = False

    @property
    def metric(self) -> str:
        return "sse" if self.summed else "mse"

    def outputs(self, spec: EpisodeSpec) -> int:
        return self.size

    def loss(self, prediction: Tensor | Gaussian | Samples, y: Tensor) -> Tensor:
        """Squared error, or −log density a number: of several members, of their mixture."""
        if isinstance(prediction, Gaussian):
            return -log_density(prediction, y).mean()
        if isinstance(prediction, Samples):
            members = prediction.members
            if not isinstance(members, Gaussian):
                raise TypeError("members of a regression are Gaussian: those that predict points name their noise")
            return -log_mean(log_density(members, y).sum(-1)).mean() / self.size
        return self._error(prediction, y)

    def score(self, prediction: Tensor | Gaussian | Samples, y: Tensor) -> Tensor:
        return self._error(best_guess(prediction), y)

    def _error(self, guess: Tensor, y: Tensor) -> Tensor:
        squares = (upcast(guess) - y).square()
        return squares.sum() if self.summed else squares.mean()


@dataclass(frozen=True)
class Density(Regression):
    """Predicting numbers and how sure one is of them, by a ``Gaussian`` or Gaussian ``Samples``; the score is −loss, in nats a number."""

    name = "density"
    higher_is_better = True

    @property
    def metric(self) -> str:
        return "ll"

    def score(self, prediction: Tensor | Gaussian | Samples, y: Tensor) -> Tensor:
        if isinstance(prediction, Tensor):
            raise TypeError("an answer without a density cannot be judged by it: predict a Gaussian")
        return -self.loss(prediction, y)


@dataclass(frozen=True)
class NodeClassification(Kind):
    """Telling the classes of a graph's nodes: x [n] int64 are nodes, y [n] int64 their classes, 0..size-1.

    Predictions are logits [n, size], or [n, size, models] of several models that are judged one by one; the score is the error, the
    fraction of nodes that are misclassified, in the mean over models.

    Args:
        size: classes of the graph.
    """

    name = "node classification"
    metric = "error"
    higher_is_better = False
    labelled = True
    alone = False
    size: int = 2

    def outputs(self, spec: EpisodeSpec) -> int:
        return self.size

    def describe(self, spec: EpisodeSpec) -> str:
        return f"a graph with {spec.way} classes of nodes, about {spec.shot} labelled and {spec.query} to be told in each"

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy over nodes and models."""
        logits = upcast(prediction).reshape(*prediction.shape[:2], -1)
        return F.cross_entropy(logits, y[:, None].expand(-1, logits.shape[2]))

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction.reshape(*prediction.shape[:2], -1).argmax(1) != y[:, None]).float().mean()


@dataclass(frozen=True)
class Control(Kind):
    """Acting: x [n] int64 are keys of episodes of an environment, y [n, 0] is empty; the score is the mean return.

    Args:
        size: numbers per action, where actions are numbers.
        choices: how many actions there are to choose from, 0..choices-1; 0 where actions are numbers.
    """

    name = "control"
    metric = "return"
    higher_is_better = True
    acts = True
    size: int = 1
    choices: int = 0

    def outputs(self, spec: EpisodeSpec) -> int:
        return self.choices or self.size

    def describe(self, spec: EpisodeSpec) -> str:
        return f"{spec.shot} trajectories to adapt by, {spec.query} to be judged by"

    def loss(self, prediction: Trajectories, y: Tensor) -> Tensor:
        """Minus the mean return, a value to look at: through it no gradient reaches a policy whose actions are drawn."""
        return -prediction.returns.mean()

    def score(self, prediction: Trajectories, y: Tensor) -> Tensor:
        return prediction.returns.mean()

    def none(self, like: Tensor) -> Tensor:
        """What stands for the last action before there is one, for rows ``like`` [n]: zeros [n, size], or choices −1 [n]."""
        return torch.full_like(like, -1, dtype=torch.int64) if self.choices else like.new_zeros(like.shape[0], self.size)


@dataclass(frozen=True)
class Bandit(Control):
    """Pulling arms: control without a state, whose choices are the arms and whose rewards are 0 or 1, an episode being many pulls."""

    name = "bandits"


@dataclass(frozen=True)
class Search(Kind):
    """Choosing by trying: to try a candidate of ``space`` tells its accuracy on validation data, and the score is the choice's on the test.

    There are no examples: ``Context.extras["validation"]`` [candidates] holds what trying tells, the query's y [1, candidates] what the
    choice is worth, and the answer is a word of decisions [1, decisions] int64.

    Args:
        options: of every decision, see ``Space``.
    """

    name = "search"
    metric = "accuracy"
    higher_is_better = True
    options: tuple[int, ...] = ()

    @property
    def space(self) -> Space:
        return Space(self.options)

    def outputs(self, spec: EpisodeSpec) -> int:
        return len(self.options)

    def describe(self, spec: EpisodeSpec) -> str:
        return f"one search among {self.space.size:,} candidates"

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The error of the choice, a value to look at: it has no gradient."""
        return 1 - self.score(prediction, y)

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        return self.space.value(y[0], prediction[0])
