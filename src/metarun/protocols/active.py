"""``protocol=active``: the support comes without labels, and the learner says which example shall be labelled next; what does that gain
over labels at random? Finn, Xu, Levine 2018 (arXiv:1806.02817, section 5); Lewis and Gale 1994 (arXiv:cmp-lg/9407020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from metarun import inner
from metarun.adaptation import walked
from metarun.algorithm import Algorithm, State
from metarun.data.base import Dataset
from metarun.data.episodes import Episodes
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Gaussian, Problem, Samples, best_guess, spread
from metarun.protocols.base import Arrays, Protocol, Scores, statistics
from metarun.task import Batch, Context, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHOSEN, AT_RANDOM, GAIN = "active", "random", "active_gain"
COLOURS = {CHOSEN: "#2f6690", AT_RANDOM: "#c8553d"}


@dataclass(frozen=True, kw_only=True)
class Active(Protocol):
    """The score of the query after 0, 1, … ``labels`` labels beyond the first, of examples that the learner chose, and of others at random.

    Both begin with one labelled example of every class (of a regression, with one example). At each turn the learner adapts to what is
    labelled, anew, and answers the rest of the support; next comes the label of that whose answer has the largest entropy (of a
    regression, the largest variance). Random choice is an order that the episode's key determines.

    Args:
        labels: how many are asked for, at most as many as there are examples beyond the first.
    """

    name = "active"
    needs = "a learner from examples with labels, of classes or of numbers"
    labels: Annotated[int, Ge(1)] = 10

    def asks(self, algorithm: Algorithm) -> bool:
        kind = algorithm.problem.kind
        return algorithm.reads in ("examples", "one_by_one") and (kind.labelled or kind.name == "regression")

    def metric(self, problem: Problem) -> tuple[str, bool]:
        return f"{CHOSEN}_{problem.metric}", problem.higher_is_better

    def episodes(self, data: Dataset, split: str, spec: EpisodeSpec, seed: int, device: torch.device) -> Episodes:
        if spec.uneven:
            raise UserError("protocol=active needs as many examples of every class: leave episode.uneven at false")
        classes = spec.way if data.kind.labelled else 1
        if classes * spec.shot < classes + self.labels:
            raise UserError(
                f"protocol.active.labels={self.labels} are more than a support of {classes * spec.shot} examples has beyond the first"
                f"{' of each class' if data.kind.labelled else ''}: choose shot={1 + -(-self.labels // classes)} or more, or fewer labels"
            )
        return super().episodes(data, split, spec, seed, device)

    def measure(self, algorithm: Algorithm, task: Task, *, scanned: bool) -> dict[str, Tensor]:
        """Scores of the query, [labels + 1], by rule; and ``first`` [], the number of labels at the beginning."""
        context, problem = task.context, algorithm.problem
        (x, y), way = context.support, context.classes.shape[0]
        n = y.shape[0]
        places = torch.arange(n, device=y.device)
        first = places[:: n // way] if problem.kind.labelled else places[:1]  # the support is grouped by class
        turns = inner.order(context.key, n).argsort().to(x.dtype)  # of every example, in an order at random

        def scores(wanted: Callable[[State], Tensor]) -> Tensor:
            labelled, noted = first, []
            for turn in range(self.labels + 1):
                known = self._known(context, labelled, problem)
                state = walked(algorithm, known, algorithm.begin(known), algorithm.steps(known, False), scanned=scanned)[0]
                noted.append(problem.score(algorithm.predict(state, task.query.x), task.query.y))
                if turn < self.labels:
                    open_to = (places[:, None] != labelled).all(1)
                    labelled = torch.cat([labelled, torch.where(open_to, wanted(state), -torch.inf).argmax()[None]])
            return torch.stack(noted)

        rules = {CHOSEN: lambda state: self._doubt(algorithm, state, x), AT_RANDOM: lambda state: -turns}
        found = {rule: scores(wanted) for rule, wanted in rules.items()}
        return found | {"first": torch.tensor(len(first), device=y.device)}

    @staticmethod
    def _known(context: Context, labelled: Tensor, problem: Problem) -> Context:
        """The task with these places of its support [m], grouped by class as supports are."""
        x, y = context.support.x[labelled], context.support.y[labelled]
        order = y.argsort(stable=True) if problem.kind.labelled else torch.arange(y.shape[0], device=y.device)
        return context._replace(support=Batch(x[order], y[order]))

    @staticmethod
    def _doubt(algorithm: Algorithm, state: State, x: Tensor) -> Tensor:
        """How unsure the learner is of every example, [n]: entropy of its probabilities, or variance of its number."""
        prediction = algorithm.predict(state, x)
        if algorithm.problem.kind.labelled:
            logs = torch.log_softmax(inner.upcast(best_guess(prediction)), -1)
            return -(logs.exp() * logs).sum(-1)
        if not isinstance(prediction, (Gaussian, Samples)):
            raise UserError("protocol=active needs numbers with their uncertainty, as of algo=alpaca, dkt, emaml or platipus")
        return inner.upcast(spread(prediction)).sum(-1)

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        """After the last label, by rule, and ``GAIN``: what choice is better by, in mean over the labels asked for."""
        better = 1 if problem.higher_is_better else -1
        gain = better * (arrays[CHOSEN] - arrays[AT_RANDOM])[:, 1:].mean(1)
        found = {f"{rule}_{problem.metric}": statistics(arrays[rule][:, -1]) for rule in (CHOSEN, AT_RANDOM)}
        return found | {GAIN: statistics(gain)}, []

    def per_episode(self, arrays: Arrays) -> np.ndarray:
        return arrays[CHOSEN][:, -1]

    def figure(self, arrays: Arrays, title: str) -> tuple[str, Figure]:
        """Both curves over the number of labels, with 1.96 standard errors."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, fontsize=10)
        for rule, colour in COLOURS.items():
            points = [statistics(scores) for scores in arrays[rule].T]
            mean, wide = (np.array([point[name] for point in points]) for name in ("mean", "ci95"))
            labels = int(arrays["first"][0]) + np.arange(len(points))
            axes.fill_between(labels, mean - wide, mean + wide, color=colour, alpha=0.2, linewidth=0)
            axes.plot(labels, mean, "o-", color=colour, markersize=4, label=f"labels chosen {'by the learner' if rule == CHOSEN else rule}")
        axes.set(xlabel="labelled examples", ylabel="score of the query")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
        return "active.png", figure
