"""``protocol=continual``: one learner meets the tasks of a test one after the other, and is asked for all of them so far.
The protocol of OML (Javed, White 2019, arXiv:1905.12588, section 4); measures of Chaudhry et al. 2018, arXiv:1801.10112."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from metarun import inner
from metarun.abilities import Continues
from metarun.adaptation import walked
from metarun.algorithm import Algorithm, State
from metarun.data.base import Dataset
from metarun.data.episodes import Episodes
from metarun.errors import UserError
from metarun.inner import upcast
from metarun.problem import EpisodeSpec, Problem, best_guess
from metarun.protocols.base import Arrays, Protocol, Scores, statistics
from metarun.task import Batch, Context, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRIC = "stream_accuracy"
AT_ONCE = "at_once_"  # and of how many classes
MEASURES = (METRIC, "stream_average", "forgetting", "stream_at_once")
LINE, ONCE, FIRST, NEWEST, CHANCE = "#2f6690", "#3a7d5d", "#c8553d", "#8a5a9e", "#b9c6d0"


def prefixes(tasks: int) -> list[int]:
    """After how many tasks one learner is compared with another one that meets them all at once: 1, 2, 4, … and all."""
    return [*(2**i for i in range(tasks.bit_length()) if 2**i < tasks), tasks]


def forgetting(matrix: np.ndarray) -> np.ndarray:
    """How much the accuracy on a task fell from its best to the end, in the mean over all tasks but the last; [n] of [n, tasks, tasks]."""
    found: np.ndarray = (matrix[:, :-1, :-1].max(1) - matrix[:, -1, :-1]).mean(-1)
    return found


def so_far(matrix: np.ndarray) -> np.ndarray:
    """Accuracy on all tasks met so far, after each of them, [n, tasks] of [n, tasks, tasks]."""
    met = np.arange(1, matrix.shape[1] + 1)
    return np.tril(matrix).sum(-1) / met


@dataclass(frozen=True, kw_only=True)
class Continual(Protocol):
    """An episode is a stream: its ``way`` classes come in tasks of ``classes``, each with its support; earlier support does not come back.

    After each task the learner, which goes on from the state it is in, is asked for all queries of all classes that have come; no other
    class is a possible answer. What it knows is compared with what the same learner knows that meets all of these classes at once, in
    one adaptation from the start, as meta-learning has it: that is ``stream_at_once``.

    Args:
        classes: of a task.
    """

    name = "continual"
    needs = "a classifier that goes on from one task to the next, as protonet, maml, anil, oml or pretrain"
    classes: Annotated[int, Ge(1)] = 1

    def asks(self, algorithm: Algorithm) -> bool:
        return isinstance(algorithm, Continues) and algorithm.problem.kind.labelled and algorithm.problem.kind.alone

    def metric(self, problem: Problem) -> tuple[str, bool]:
        return METRIC, True

    def episodes(self, data: Dataset, split: str, spec: EpisodeSpec, seed: int, device: torch.device) -> Episodes:
        if spec.uneven or spec.corrupt != "none":
            raise UserError(
                "protocol=continual needs as many examples of every class: leave episode.uneven and episode.corrupt as they are"
            )
        if spec.way % self.classes or spec.way == self.classes:
            raise UserError(
                f"protocol.continual.classes={self.classes} does not divide way={spec.way} into tasks; choose way={4 * self.classes}"
            )
        return super().episodes(data, split, spec, seed, device)

    def measure(self, algorithm: Algorithm, task: Task, *, scanned: bool) -> dict[str, Tensor]:
        """``matrix`` [tasks, tasks], row t the accuracy on each task after t + 1 of them, 0 for what has not come; and ``at_once``, of
        learners that meet the first 1, 2, 4, … tasks at once, for these together.
        """
        assert isinstance(algorithm, Continues)
        context, query = task.context, task.query
        way, n = context.classes.shape[0], context.support.y.shape[0]
        tasks, each = way // self.classes, n // way * self.classes
        device = context.key.device

        def of(x: Tensor, y: Tensor) -> Context:
            return context._replace(support=Batch(x, y))

        def learned(now: Context, state: State) -> State:
            return walked(algorithm, now, state, algorithm.steps(now, False), scanned=scanned)[0]

        def right(state: State, met: Any) -> Tensor:
            """The accuracy on each task, when so many have been met."""
            logits = upcast(best_guess(algorithm.predict(state, query.x)))
            come = torch.arange(way, device=device) < met * self.classes
            answers = logits.masked_fill(~come, -torch.inf).argmax(1)
            return ((answers == query.y) & come[query.y]).float().reshape(tasks, -1).mean(1)

        def meet(before: tuple[State, Tensor], item: tuple[Tensor, Tensor, Tensor]) -> tuple[State, Tensor]:
            x, y, t = item
            now = of(x, y)
            state = learned(now, algorithm.carry_on(before[0], algorithm.begin(now), now))
            return state, right(state, t + 1)

        x, y = context.support
        stream = x.reshape(tasks, each, *x.shape[1:]), y.reshape(tasks, each), torch.arange(tasks, device=device)
        begun = algorithm.begin(of(stream[0][0], stream[1][0])), torch.zeros(tasks, device=device)
        _, matrix = inner.loop(meet, begun, tasks, stream, read=lambda after: after[1])
        at_once = []
        for met in prefixes(tasks):
            now = of(x[: met * each], y[: met * each])
            at_once.append(right(learned(now, algorithm.begin(now)), met)[:met].mean())
        return {"matrix": matrix, "at_once": torch.stack(at_once)}

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        matrix = arrays["matrix"]
        accuracy = so_far(matrix)
        points = [((t + 1) * self.classes, statistics(values)) for t, values in enumerate(accuracy.T)]
        found = accuracy[:, -1], accuracy.mean(1), forgetting(matrix), arrays["at_once"][:, -1]
        at_once = zip(prefixes(matrix.shape[1]), arrays["at_once"].T)
        named = {f"{AT_ONCE}{met * self.classes}": statistics(values) for met, values in at_once}
        return dict(zip(MEASURES, map(statistics, found))) | named, [
            {"step": step, "mean": point["mean"], "ci95": point["ci95"]} for step, point in points
        ]

    def per_episode(self, arrays: Arrays) -> np.ndarray:
        return so_far(arrays["matrix"])[:, -1]

    def figure(self, arrays: Arrays, title: str) -> tuple[str, Figure]:
        """Accuracy as classes come, and what is known of each task after each."""
        from matplotlib.figure import Figure

        matrix, at_once = arrays["matrix"], arrays["at_once"]
        tasks = matrix.shape[1]
        met = np.arange(1, tasks + 1) * self.classes
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        figure.suptitle(title, fontsize=10)
        curves, known = figure.subplots(1, 2, width_ratios=(1.25, 1))
        curves.plot(
            np.array(prefixes(tasks)) * self.classes, at_once.mean(0), "s--", color=ONCE, markersize=4, label="all so far, met at once"
        )
        lines = ((so_far(matrix), LINE, "all so far, one after the other"), (matrix[:, :, 0], FIRST, "the first task alone"))
        for values, colour, label in lines:
            points = [statistics(column) for column in values.T]
            mean, wide = (np.array([point[name] for point in points]) for name in ("mean", "ci95"))
            curves.plot(met, mean, "o-", color=colour, markersize=3.5, label=label)
            curves.fill_between(met, mean - wide, mean + wide, color=colour, alpha=0.2, linewidth=0)
        curves.plot(met, np.diagonal(matrix, axis1=1, axis2=2).mean(0), ":", color=NEWEST, label="the newest task alone")
        curves.plot(met, 1 / met, color=CHANCE, label="chance")
        curves.set(xlabel="classes met", ylabel="accuracy", ylim=(-0.02, 1.02))
        curves.spines[["top", "right"]].set_visible(False)
        curves.legend(frameon=False, fontsize=8)
        shown = np.ma.masked_array(matrix.mean(0), np.triu(np.ones((tasks, tasks), bool), 1))
        image = known.imshow(shown, vmin=0, vmax=1, cmap="viridis", origin="lower", extent=(0.5, tasks + 0.5, 0.5, tasks + 0.5))
        known.set(xlabel="task", ylabel="after how many tasks")
        figure.colorbar(image, ax=known, label="accuracy", shrink=0.85)
        return "continual.png", figure
