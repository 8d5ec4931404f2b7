"""``protocol=presentations``: the support is a sequence, every example of which is asked for before its label is seen; how often is the
answer right at the 1st, 2nd, 3rd … time that a class comes? Santoro et al. 2016, arXiv:1605.06065, section 4.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metarun import inner
from metarun.algorithm import Algorithm, State
from metarun.data.base import Dataset
from metarun.data.episodes import Episodes
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Problem
from metarun.protocols.base import Arrays, Protocol, Scores, statistics
from metarun.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRIC, AT = "sequence_accuracy", "presentation_"


@dataclass(frozen=True, kw_only=True)
class Presentations(Protocol):
    """Accuracy at each presentation of a class; there are ``shot`` of them, and the query is not asked for.

    The answer to example k is what the learner predicts after the k examples before it, in the order in which it reads.
    """

    name = "presentations"
    needs = "a classifier that reads its support example by example, as lstm, mann or snail, and with it a net.norm other than batch"

    def asks(self, algorithm: Algorithm) -> bool:
        return algorithm.reads == "one_by_one" and algorithm.problem.kind.labelled and not algorithm.net.transductive

    def metric(self, problem: Problem) -> tuple[str, bool]:
        return METRIC, True

    def episodes(self, data: Dataset, split: str, spec: EpisodeSpec, seed: int, device: torch.device) -> Episodes:
        if spec.uneven:
            raise UserError("protocol=presentations needs as many examples of every class: leave episode.uneven at false")
        return super().episodes(data, split, spec, seed, device)

    def measure(self, algorithm: Algorithm, task: Task, *, scanned: bool) -> dict[str, Tensor]:
        """``right`` [shot], the fraction of the classes that are known at their 1st, 2nd … presentation; and ``way`` []."""
        context, problem = task.context, algorithm.problem
        way, n = context.classes.shape[0], context.support.y.shape[0]
        order = inner.order(context.key, n)
        x, y = context.support.x[order], context.support.y[order]

        def present(before: tuple[State, Tensor], example: tuple[Any, ...]) -> tuple[State, Tensor]:
            x, y, k = example
            right = problem.score(algorithm.predict(before[0], x[None]), y[None])
            return algorithm.step(before[0], context, k), right

        places = torch.arange(n, device=y.device)
        begun = algorithm.begin(context), torch.zeros((), device=y.device)
        _, right = inner.loop(present, begun, n, (x, y, places), read=lambda after: after[1])
        times = inner.one_hot(y, way).cumsum(0).gather(1, y[:, None])[:, 0] - 1  # that its class has come before
        at = inner.one_hot(times, n // way).to(right.dtype)
        return {"right": right @ at / way, "way": torch.tensor(way, device=y.device)}

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        named = {f"{AT}{time}": statistics(right) for time, right in enumerate(arrays["right"].T, 1)}
        return {METRIC: statistics(arrays["right"].mean(1)), **named}, []

    def per_episode(self, arrays: Arrays) -> np.ndarray:
        return arrays["right"].mean(1)

    def figure(self, arrays: Arrays, title: str) -> tuple[str, Figure]:
        """Accuracy over presentations, with 1.96 standard errors, above chance."""
        from matplotlib.figure import Figure

        points = [statistics(right) for right in arrays["right"].T]
        times, mean, ci95 = np.arange(1, len(points) + 1), *(np.array([point[name] for point in points]) for name in ("mean", "ci95"))
        figure = Figure(figsize=(5.6, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, fontsize=10)
        axes.fill_between(times, mean - ci95, mean + ci95, color="#2f6690", alpha=0.2, linewidth=0)
        axes.plot(times, mean, "o-", color="#2f6690", markersize=4)
        axes.axhline(1 / float(arrays["way"][0]), color="#b9c6d0", linewidth=1, label="chance")
        axes.set_xlabel("presentation of a class")
        axes.set_ylabel("accuracy")
        axes.set_ylim(-0.02, 1.02)
        axes.set_xticks(times)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right", fontsize=9)
        return "presentations.png", figure
