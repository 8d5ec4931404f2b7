"""Who answers behind the page: whatever learns classes from pictures and says how sure it is. A trained run is one of them.
A learner without a run, and the answer "unknown", come in here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from metarun.algorithm import Algorithm
from metarun.errors import UserError
from metarun.predict.trained import file_reader, load


class Answer(NamedTuple):
    """What a learner says of one picture."""

    label: str | None  # None: of none of the classes, which the page shows as "unknown"
    probability: float  # of the label; of the most probable class where there is none
    probabilities: dict[str, float]  # by class


Ask = Callable[[Sequence[np.ndarray]], list[Answer]]  # a learner that has adapted: pictures, as ``see`` returns them, to answers


class Learner(Protocol):
    """What the page needs.

    Attributes:
        about: who it is, in a few words.
        ways: how many classes it tells apart, where that is fixed; None: any number from 2.
        steps: inner steps of an adaptation unless somebody asks for others; None: there is nothing to choose.
        together: whether the answer to a picture depends on the others that are asked with it.
        channels: 1 (grey: drawings are at home) or 3 (colour).
    """

    about: str
    ways: int | None
    steps: int | None
    together: bool
    channels: int

    def see(self, path: Path, /) -> np.ndarray:
        """A picture's file as the net will see it, [channels, height, width] uint8.

        Raises:
            UnreadableError: it is no picture, damaged, or has too many pixels.
        """

    def learn(self, pictures: Sequence[np.ndarray], labels: Sequence[str], steps: int | None) -> Ask:
        """Adapt to labelled pictures, as ``see`` returns them.

        Raises:
            UserError: more or fewer classes than it can tell apart, or steps that it does not take.
        """


class TrainedRun:
    """The meta-learner of a run, as ``metarun predict`` has it: the same reading of files, the same answers.

    Args:
        run: the run's folder.
        checkpoint: ``best`` on development tasks, or ``last``.

    Raises:
        UserError, RunError: see ``load``; or the run has nothing to do with pictures of classes.
    """

    def __init__(self, run: str, checkpoint: Literal["best", "last"] = "best") -> None:
        self.model = load(run, checkpoint)
        reader = file_reader(self.model, run)
        algorithm = self.model.algorithm
        if not algorithm.problem.kind.labelled:
            raise UserError(f"{run} answers with numbers, and the page asks for classes: use it from Python, metarun.load(RUN)")
        if reader.noun != "picture":
            raise UserError(f"{run} reads {reader.noun}s, and the page takes pictures: use metarun predict {run}")
        self.see = reader.read
        self.about = f"{self.model.algo} trained on {self.model.data}"
        self.ways = algorithm.problem.outputs if algorithm.fixed_way else None
        stepping = type(algorithm).step is not Algorithm.step and type(algorithm).steps is Algorithm.steps
        self.steps = algorithm.test_steps if stepping else None
        self.together = self.model.transductive
        self.channels = reader.shape[0]

    def learn(self, pictures: Sequence[np.ndarray], labels: Sequence[str], steps: int | None) -> Ask:
        """See ``Learner.learn``."""
        fitted = self.model.adapt(np.stack(pictures), labels, steps)

        def ask(queries: Sequence[np.ndarray]) -> list[Answer]:
            rows = fitted.probabilities(np.stack(queries)).tolist()
            return [Answer(fitted.classes[row.index(max(row))], max(row), dict(zip(fitted.classes, row))) for row in rows]

        return ask
