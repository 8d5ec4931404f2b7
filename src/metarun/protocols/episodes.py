"""``protocol=episodes``: adapt to the support, answer the query; the adaptation curve shows the score over inner steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.problem import Problem
from metarun.protocols.base import AfterAdaptation, Arrays, Scores, statistics
from metarun.task import Batch

LONG = 20  # inner steps up to which ``auto`` shows every one


@dataclass(frozen=True, kw_only=True)
class OfEpisodes(AfterAdaptation):
    """The score of every episode's query, after inner steps.

    ``curve``: after which: ``all``; ``log``, 0, 1, 2, 4, 8, … and the last; the ``last`` alone; or ``auto``: all up to ``LONG`` steps,
    and where there are as many steps as examples, each of which then reads one; ``log`` beyond.
    """

    name = "episodes"

    def points(self, steps: int, examples: int) -> Sequence[int]:
        """The inner steps, ascending, after which the learner is asked."""
        if self.curve == "last":
            return [steps]
        if self.curve == "log" or (self.curve == "auto" and steps > LONG and steps != examples):
            return [0, *(2**i for i in range(steps.bit_length()) if 2**i < steps), *([steps] if steps else [])]
        return range(steps + 1)

    def read(self, problem: Problem, prediction: Any, query: Batch) -> dict[str, Tensor]:
        """``score`` and ``loss`` []; where the loss is no number, the score is none."""
        score, loss = problem.score(prediction, query.y), problem.loss(prediction, query.y)
        # Whatever class the largest of numbers that are none would point at, it is no answer.
        return {"score": torch.where(loss.isfinite(), score, torch.nan), "loss": loss}

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        found = {problem.metric: statistics(arrays["score"][:, -1]), "loss": statistics(arrays["loss"][:, -1])}
        points = [(int(step), statistics(score)) for step, score in zip(arrays["step"][0], arrays["score"].T)]
        return found, [{"step": step, "mean": point["mean"], "ci95": point["ci95"]} for step, point in points]

    def on_development(self) -> OfEpisodes:
        return LAST

    def per_episode(self, arrays: Arrays) -> np.ndarray:
        return arrays["score"][:, -1]


LAST, EVERY = OfEpisodes("last"), OfEpisodes("all")
