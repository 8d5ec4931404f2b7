"""``protocol=readings``: a few examples may be read in several ways; do a learner's samples cover them, or agree on one in between?
After the judgement of samples in Finn, Xu, Levine 2018, arXiv:1806.02817, section 5.1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metarun.algorithm import Algorithm
from metarun.data.episodes import Episodes
from metarun.problem import Gaussian, Problem, Samples
from metarun.protocols.base import AfterAdaptation, Arrays, Scores, statistics
from metarun.task import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEST, ONE, MEAN, FARTHER = "best_sample_mse", "sample_mse", "mean_of_samples_mse", "readings"
SHOWN = 6  # episodes of the picture, the first ones
SAMPLE, TRUTH, SUPPORT = "#2f6690", "#b9c6d0", "#c8553d"  # colours


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
        """``by_sample`` [members], mean squared errors, and ``of_mean`` []; of one number by one number ``answers`` [members, n], too."""
        if isinstance(prediction, Samples):
            prediction = prediction.members
        answers = prediction.mean if isinstance(prediction, Gaussian) else prediction
        members = answers if answers.dim() > query.y.dim() else answers[None]
        found = {"by_sample": _mse(members, query.y), "of_mean": _mse(members.mean(0), query.y)}
        one = query.x.shape[1:] == query.y.shape[1:] == (1,)
        return found | ({"answers": members[..., 0]} if one else {})

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

    def pictures(self, arrays: Arrays, title: str, episodes: Episodes) -> Iterator[tuple[str, Figure]]:
        """Every sample over the number that it answers, in the first episodes; none where examples or answers are more than one number."""
        if "answers" in arrays:
            yield "readings.png", figure(arrays["answers"][:SHOWN], title, episodes)

    def per_episode(self, arrays: Arrays) -> np.ndarray:
        found: np.ndarray = arrays["by_sample"].min(1)
        return found


def figure(answers: np.ndarray, title: str, episodes: Episodes) -> Figure:
    """A panel for each of the first episodes: its support, its query, and the answers [episodes, members, n] to that."""
    from matplotlib.figure import Figure

    columns = min(3, len(answers))
    rows = -(-len(answers) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.5 * rows + 0.4), layout="constrained")
    figure.suptitle(f"samples of the first {len(answers)} episodes  {title}", fontsize=10)
    (support, *_), query, *_ = episodes.batch(range(len(answers)))
    for i, (axes, members) in enumerate(zip(figure.subplots(rows, columns, squeeze=False).flat, answers)):
        x = query.x[i, :, 0].cpu().numpy()
        order = x.argsort()
        axes.scatter(x, query.y[i].cpu(), s=12, color=TRUTH, label="query", zorder=2)
        axes.plot(x[order], members[:, order].T, color=SAMPLE, linewidth=0.9, alpha=0.7, label=["samples", *[None] * (len(members) - 1)])
        axes.scatter(support.x[i].cpu(), support.y[i].cpu(), s=34, color=SUPPORT, edgecolor="white", label="support", zorder=3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def _mse(answers: Tensor, y: Tensor) -> Tensor:
    """Mean squared error over queries and outputs, the last two axes."""
    return torch.square(answers - y).mean((-2, -1))
