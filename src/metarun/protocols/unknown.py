"""``protocol=unknown``: does a learner notice that a query belongs to no class of the support? Episodes with queries of other classes.
The area below the ROC curve of known against unknown queries, as open-set recognition reports it, by two scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metarun.adaptation import asked
from metarun.algorithm import Algorithm, State
from metarun.data.base import Dataset
from metarun.data.episodes import ClassEpisodes, Episodes
from metarun.errors import UserError
from metarun.inner import upcast
from metarun.problem import EpisodeSpec, Problem, best_guess
from metarun.protocols.base import Arrays, Protocol, Scores, statistics
from metarun.protocols.belonging import belonging
from metarun.protocols.verification import ROC, roc
from metarun.task import Task, rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCEPTED = 0.95  # of the known queries, at which the share of unknown ones that are accepted as well is reported
MEASURES = ("auroc_unknown", "auroc_unknown_softmax", "fpr_unknown")
POINTS, LINE, MARK = np.linspace(0, 1, 201), "#2f6690", "#c8553d"  # of the picture


@dataclass(frozen=True, kw_only=True)
class Unknown(Protocol):
    """Queries of the support's classes, and of ``episode.unknown`` others; how well a score of belonging tells the two apart.

    A method that sees images through its net alone (``Algorithm.encodes``) is asked by ``belonging``, in its features; of any other, whose
    features adapt, the score is the largest probability, which for all of them is reported beside (Hendrycks, Gimpel 2017,
    arXiv:1610.02136). One number for every episode, and their mean.
    """

    name = "unknown"
    needs = "queries of no class, episode.unknown=1 or more, and a method that tells classes apart by examples"

    def asks(self, algorithm: Algorithm) -> bool:
        problem = algorithm.problem
        return problem.eval.unknown > 0 and problem.kind.labelled and problem.kind.alone and algorithm.reads != "attributes"

    def metric(self, problem: Problem) -> tuple[str, bool]:
        return MEASURES[0], True

    def episodes(self, data: Dataset, split: str, spec: EpisodeSpec, seed: int, device: torch.device) -> Episodes:
        found = data.episodes(split, spec, seed, device)
        if not isinstance(found, ClassEpisodes):
            raise UserError(f"protocol=unknown is not possible: the {split} split of these data has no classes beside an episode's own")
        return found.open_set()

    def measure(self, algorithm: Algorithm, task: Task, *, scanned: bool) -> dict[str, Tensor]:
        """``belonging`` and ``softmax`` [known + unknown], scores of the queries, the known ones first, and ``known`` [known + unknown]."""
        context, x = task.context, task.query.x
        steps = algorithm.steps(context, False)

        def surest(state: State, prediction: Any) -> Tensor:
            return upcast(best_guess(prediction)).softmax(-1).max(-1).values

        softmax = rows(asked(algorithm, context, x, [steps], surest, scanned=scanned), -1)
        found = softmax
        if algorithm.encodes:
            support, y = context.examples()
            found = belonging(algorithm.net(x, support), algorithm.net(support, support), y, context.classes.shape[0])
        return {"belonging": found, "softmax": softmax, "known": task.query.y >= 0}

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        belongs, softmax = (curves(arrays, name) for name in ("belonging", "softmax"))
        measured = (
            [curve.auc for curve in belongs],
            [curve.auc for curve in softmax],
            [float(curve.far_at(ACCEPTED)) for curve in belongs],
        )
        return {name: statistics(np.array(values)) for name, values in zip(MEASURES, measured)}, []

    def per_episode(self, arrays: Arrays) -> np.ndarray:
        return np.array([curve.auc for curve in curves(arrays, "belonging")])

    def figure(self, arrays: Arrays, title: str) -> tuple[str, Figure]:
        """The mean ROC curve over episodes, by both scores."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.8, 4.6), layout="constrained")
        figure.suptitle(f"of no class?  {title}", fontsize=10)
        axes = figure.subplots()
        for name, said, color in (("softmax", "largest probability", MARK), ("belonging", "belonging", LINE)):
            found = curves(arrays, name)
            mean = np.mean([np.interp(POINTS, curve.far, curve.tar) for curve in found], 0)
            axes.plot(POINTS, mean, color=color, label=f"{said}, area {np.mean([curve.auc for curve in found]):.4f}")
        axes.plot([0, 1], [0, 1], color="#b9c6d0", linewidth=1, label="chance")
        axes.set(xlabel="share of unknown queries accepted", ylabel="share of known queries accepted", xlim=(0, 1), ylim=(0, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right", fontsize=9)
        return "unknown.png", figure


def curves(arrays: Arrays, name: str) -> list[ROC]:
    """Of every episode the curve of its known against its unknown queries by the score ``name``."""
    known = arrays["known"].astype(bool)
    return [roc(scores[row], scores[~row]) for scores, row in zip(np.nan_to_num(arrays[name], nan=-np.inf), known)]
