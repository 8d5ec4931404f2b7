"""What every protocol is: it turns a trained learner and its data into named scores, a curve and a picture."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor

from metarun.adaptation import asked
from metarun.algorithm import Algorithm, State
from metarun.data.base import Dataset
from metarun.data.episodes import Episodes
from metarun.problem import EpisodeSpec, Problem
from metarun.task import Batch, Task, rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = dict[str, dict[str, float]]
Curve = Literal["auto", "all", "log", "last"]
Arrays = dict[str, np.ndarray]  # by name, [episodes, …] float64
BLOCKS = 20  # of episodes, between which the spread of a measure over all of them is taken


def statistics(values: np.ndarray) -> dict[str, float]:
    """Mean and 1.96 standard errors over episodes (population standard deviation, handbook convention) of [n] scores."""
    return {"mean": float(values.mean()), "ci95": float(1.96 * values.std() / math.sqrt(len(values))), "n": len(values)}


def pooled(measure: Callable[..., Sequence[float] | np.ndarray], names: Sequence[str], *arrays: np.ndarray) -> Scores:
    """What ``measure`` makes of all episodes together, by these names, with 1.96 standard errors from blocks of episodes.

    Args:
        measure: several numbers of arrays like these, of any number of episodes.
        arrays: [episodes, …].
    """
    n = len(arrays[0])
    blocks = min(BLOCKS, n)
    parts = np.array([measure(*part) for part in zip(*(np.array_split(array, blocks) for array in arrays))])
    ci95 = 1.96 * parts.std(0) / math.sqrt(max(1, blocks - 1))
    return {name: {"mean": float(mean), "ci95": float(ci), "n": n} for name, mean, ci in zip(names, measure(*arrays), ci95)}


@dataclass(frozen=True, kw_only=True)
class Protocol(ABC):
    """A way of asking a trained learner; its further fields are the keys of its YAML. Engine and trainer know none by name.

    Equal protocols measure the same, so that a recording of one serves the other.

    Args:
        curve: the run's ``trainer.curve``, after which inner steps a curve over these shows the score.

    Attributes:
        name: of the option, as in ``protocol=episodes``.
        needs: what a method must be for it, in words that follow "it needs".
    """

    name: ClassVar[str]
    needs: ClassVar[str] = ""
    curve: Curve = field(default="auto", kw_only=False)

    def asks(self, algorithm: Algorithm) -> bool:
        """Whether a method can be asked so."""
        return True

    def metric(self, problem: Problem) -> tuple[str, bool]:
        """The name of the score that runs are compared by, and whether a larger one is better."""
        return problem.metric, problem.higher_is_better

    def episodes(self, data: Dataset, split: str, spec: EpisodeSpec, seed: int, device: torch.device) -> Episodes:
        """What it asks of a split: by default the episodes of this shape.

        Raises:
            UserError: the data have no such episodes.
        """
        return data.episodes(split, spec, seed, device)

    @abstractmethod
    def measure(self, algorithm: Algorithm, task: Task, *, scanned: bool) -> dict[str, Tensor]:
        """What comes of ONE task, tensors by name; mapped over tasks by the engine. ``scanned`` as in ``adaptation``."""

    @abstractmethod
    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        """Scores by name, each with mean, ci95 and n, and a curve: points of step, mean and ci95, or none."""

    def per_episode(self, arrays: Arrays) -> np.ndarray | None:
        """One score for every episode [n], for comparisons pair by pair; None where there is none."""
        return None

    def figure(self, arrays: Arrays, title: str) -> tuple[str, Figure] | None:
        """A picture and its file name, for the run's folder."""
        return None

    def pictures(self, arrays: Arrays, title: str, episodes: Episodes) -> Iterator[tuple[str, Figure]]:
        """All pictures, with file names; for one that shows the data, the episodes that were asked."""
        if drawn := self.figure(arrays, title):
            yield drawn

    def on_development(self) -> Protocol:
        """As validation asks, which may find out more than a test."""
        return self

    def after(self, development: Scores) -> Protocol:
        """As a test asks that knows the scores of validation."""
        return self

    def rehearsal(self, algorithm: Algorithm) -> Protocol | None:
        """What is asked of development tasks once, before the test, to choose by; None where there is nothing to choose."""
        return None

    def decided(self, problem: Problem, arrays: Arrays) -> Protocol:
        """As a test asks after a rehearsal that has measured ``arrays``."""
        return self

    @property
    def parts(self) -> tuple[Protocol, ...]:
        """The protocols that are measured here."""
        return (self,)


@dataclass(frozen=True, kw_only=True)
class AfterAdaptation(Protocol):
    """One that lets the learner adapt as always, and looks at its answers to the query, or at what it
    is by then; several share one adaptation and its answers."""

    def points(self, steps: int, examples: int) -> Sequence[int]:
        """The inner steps, ascending, after which the learner answers, ``steps`` the last of them; by default after no other."""
        return [steps]

    def read(self, problem: Problem, prediction: Any, query: Batch) -> dict[str, Tensor]:
        """What to note of the answers at each of the points."""
        return {}

    def last(self, problem: Problem, prediction: Any, query: Batch) -> dict[str, Tensor]:
        """What to note of the last answers alone."""
        return {}

    def learned(self, algorithm: Algorithm, state: State, task: Task) -> dict[str, Tensor]:
        """What to note of the last state itself."""
        return {}

    def measure(self, algorithm: Algorithm, task: Task, *, scanned: bool) -> dict[str, Tensor]:
        """What was read, with a leading axis of points, ``step`` [points] among them; and what was noted of the last answers."""
        context, query, problem = task.context, task.query, algorithm.problem
        points = self.points(algorithm.steps(context, False), context.support.y.shape[0])

        def noted(state: State, prediction: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            last = self.last(problem, prediction, query) | self.learned(algorithm, state, task)
            return self.read(problem, prediction, query), last

        read, last = asked(algorithm, context, query.x, points, noted, scanned=scanned)
        # What is noted is little: it costs less at every point than another prediction after the last.
        return read | {"step": torch.tensor([*points], device=context.key.device)} | rows(last, -1)


@dataclass(frozen=True, kw_only=True)
class Together(AfterAdaptation):
    """Several over one adaptation, at the points of the one that has most."""

    these: tuple[AfterAdaptation, ...]

    @property
    def parts(self) -> tuple[Protocol, ...]:
        return self.these

    def after(self, development: Scores) -> Protocol:
        return replace(self, these=cast(tuple[AfterAdaptation, ...], tuple(part.after(development) for part in self.these)))

    def points(self, steps: int, examples: int) -> Sequence[int]:
        return max((part.points(steps, examples) for part in self.these), key=len)

    def read(self, problem: Problem, prediction: Any, query: Batch) -> dict[str, Tensor]:
        return {name: value for part in self.these for name, value in part.read(problem, prediction, query).items()}

    def last(self, problem: Problem, prediction: Any, query: Batch) -> dict[str, Tensor]:
        return {name: value for part in self.these for name, value in part.last(problem, prediction, query).items()}

    def learned(self, algorithm: Algorithm, state: State, task: Task) -> dict[str, Tensor]:
        return {name: value for part in self.these for name, value in part.learned(algorithm, state, task).items()}

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        found = [part.summarise(problem, arrays) for part in self.these]
        return {name: value for scores, _ in found for name, value in scores.items()}, next((curve for _, curve in found if curve), [])

    def per_episode(self, arrays: Arrays) -> np.ndarray | None:
        return self.these[0].per_episode(arrays)  # the first also names the score that runs are compared by
