"""``protocol=readings``: a few examples may be read in several ways; do a learner's samples cover them, or agree on one in between?
After the judgement of samples in Finn, Xu, Levine 2018, arXiv:1806.02817, section 5.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.algorithm import Algorithm
from metarun.problem import Gaussian, Problem, Samples
from metarun.protocols.base import AfterAdaptation, Arrays, Scores, statistics
from metarun.task import Batch

BEST, ONE, MEAN, FARTHER = "best_sample_mse", "sample_mse", "mean_of_samples_mse", "readings"


@dataclass(frozen=True, kw_only=True)
class Readings(AfterAdaptation):
    """Squared errors of a regression's samples over the query: of the best of them (by the query, as an oracle would choose), of one on
    average, and of their mean; and how many times the error of one is that of the best, in geometric mean over episodes.

    A learner of one answer has 1 of the last. Samples that cover several readings have much more: one of them is right.
    """

    name = "readings"
    needs = "numbers to predict"

    def asks(self, algorithm: Algorithm) -> bool:
        return algorithm.problem.kind.name == "regression"

    def metric(self, problem: Problem) -> tuple[str, bool]:
        return BEST, False

    def last(self, problem: Problem, prediction: Any, query: Batch) -> dict[str, Tensor]:
        """``by_sample`` [members], mean squared errors, and ``of_mean`` []."""
        if isinstance(prediction, Samples):
            prediction = prediction.members
        answers = prediction.mean if isinstance(prediction, Gaussian) else prediction
        members = answers if answers.dim() > query.y.dim() else answers[None]
        return {"by_sample": _mse(members, query.y), "of_mean": _mse(members.mean(0), query.y)}

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        best, one = arrays["by_sample"].min(1), arrays["by_sample"].mean(1)
        ratio = statistics(np.log(one / best))
        times = np.exp(ratio["mean"])
        return {
            BEST: statistics(best),
            ONE: statistics(one),
            MEAN: statistics(arrays["of_mean"]),
            FARTHER: {"mean": float(times), "ci95": float(times * ratio["ci95"]), "n": ratio["n"]},
        }, []

    def per_episode(self, arrays: Arrays) -> np.ndarray:
        found: np.ndarray = arrays["by_sample"].min(1)
        return found


def _mse(answers: Tensor, y: Tensor) -> Tensor:
    """Mean squared error over queries and outputs, the last two axes."""
    return torch.square(answers - y).mean((-2, -1))
