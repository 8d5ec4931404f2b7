"""``protocol=rivals``: a learned method and its rivals of old on the same episodes, the rate of each rival tuned on development tasks.
One command, one curve: as in figure 4 of Andrychowicz et al. 2016, arXiv:1606.04474, whose baselines are tuned so."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge
from torch import Tensor

from metarun.abilities import HasRivals
from metarun.algorithm import Algorithm
from metarun.errors import UserError, nearest
from metarun.problem import Problem
from metarun.protocols.base import Arrays, Protocol, Scores, statistics
from metarun.protocols.episodes import LAST, OfEpisodes
from metarun.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF = "rival_"  # how names of rivals' scores begin
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Grid(Protocol):
    """The last score of every rival at every rate.

    Args:
        pairs: of name and rate.
    """

    name = "grid"
    pairs: tuple[tuple[str, float], ...]

    def measure(self, algorithm: Algorithm, task: Task, *, scanned: bool) -> dict[str, Tensor]:
        assert isinstance(algorithm, HasRivals)
        return {
            f"{name} {rate}": LAST.measure(algorithm.rival(name, rate), task, scanned=scanned)["score"][-1] for name, rate in self.pairs
        }

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        return {name: statistics(scores) for name, scores in arrays.items()}, []


@dataclass(frozen=True, kw_only=True)
class Rivals(Protocol):
    """The scores and the curve of ``protocol=episodes``, and beside them those of rivals.

    Args:
        only: names of rivals; none for all that the method has.
        sparse: of the rates of a rival every so many-th is tried.

    Attributes:
        tuned: of every rival its name and the rate that was best on development tasks, by the score after the last step.
    """

    name = "rivals"
    needs = "a learned optimizer, as lstm_optimizer or mlp_optimizer"
    only: list[str] = field(default_factory=list, hash=False, compare=False)
    sparse: Annotated[int, Ge(1)] = 1
    tuned: tuple[tuple[str, float], ...] = field(default=(), kw_only=False)

    def asks(self, algorithm: Algorithm) -> bool:
        if not isinstance(algorithm, HasRivals):
            return False
        if unknown := next((name for name in self.only if name not in algorithm.rivals), None):
            known = ", ".join(algorithm.rivals)
            raise UserError(f"protocol.rivals.only: there is no rival '{unknown}'{nearest(unknown, algorithm.rivals)} (known: {known})")
        return True

    @property
    def own(self) -> OfEpisodes:
        """How each of them is asked."""
        return OfEpisodes(self.curve)

    def on_development(self) -> Protocol:
        return LAST

    def rehearsal(self, algorithm: Algorithm) -> Protocol:
        assert isinstance(algorithm, HasRivals)
        names = self.only or algorithm.rivals
        return Grid(pairs=tuple((name, rate) for name in names for rate in algorithm.rivals[name][:: self.sparse]))

    def decided(self, problem: Problem, arrays: Arrays) -> Protocol:
        means: dict[str, dict[float, float]] = {}
        for pair, scores in arrays.items():
            name, _, number = pair.partition(" ")
            mean = float(scores.mean())
            means.setdefault(name, {})[float(number)] = np.inf if np.isnan(mean) else -mean if problem.higher_is_better else mean
        best = {name: min(found, key=lambda rate: found[rate]) for name, found in means.items()}
        for name, rate in best.items():
            if rate in (min(means[name]), max(means[name])):
                log.warning("the best rate of %s, %g, is an end of those that were tried", name, rate)
        return replace(self, tuned=tuple(best.items()))

    def measure(self, algorithm: Algorithm, task: Task, *, scanned: bool) -> dict[str, Tensor]:
        """What ``protocol=episodes`` measures, and the same of every rival, under names that begin with its own."""
        assert isinstance(algorithm, HasRivals)
        found = self.own.measure(algorithm, task, scanned=scanned)
        for name, rate in self.tuned:
            theirs = self.own.measure(algorithm.rival(name, rate), task, scanned=scanned)
            found |= {f"{name} {what}": theirs[what] for what in ("score", "loss")}
        return found

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        found, curve = self.own.summarise(problem, arrays)
        for name, rate in self.tuned:
            theirs = arrays[f"{name} score"]
            apart = statistics(arrays["score"][:, -1] - theirs[:, -1])
            found[f"{OF}{name}"] = statistics(theirs[:, -1]) | {
                "rate": rate,
                "loss": float(arrays[f"{name} loss"][:, -1].mean()),
                "difference": apart["mean"],
                "difference_ci95": apart["ci95"],
            }
            for point, scores in zip(curve, theirs.T):
                point.setdefault("rivals", {})[name] = {key: statistics(scores)[key] for key in ("mean", "ci95")}
        return found, curve

    def per_episode(self, arrays: Arrays) -> np.ndarray:
        return self.own.per_episode(arrays)

    def figure(self, arrays: Arrays, title: str) -> tuple[str, Figure] | None:
        """Loss over steps with its 95 % bands, and the score where that is another number."""
        if arrays["step"].shape[1] == 1:
            return None
        from matplotlib.figure import Figure

        panels = ["loss"] if np.array_equal(arrays["loss"], arrays["score"], equal_nan=True) else ["loss", "score"]
        figure = Figure(figsize=(1 + 4.6 * len(panels), 4.2), layout="constrained")
        figure.suptitle(title, fontsize=11, fontweight="bold")
        for axes, what in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            for name, rate in [("learned", 0.0), *self.tuned]:
                values = arrays[what if name == "learned" else f"{name} {what}"]
                mean, wide = values.mean(0), 1.96 * values.std(0) / np.sqrt(len(values))
                label = name if name == "learned" else f"{name}, rate {rate:g}"
                (line,) = axes.plot(arrays["step"][0], mean, label=label, linewidth=2.4 if name == "learned" else 1.2)
                axes.fill_between(arrays["step"][0], mean - wide, mean + wide, color=line.get_color(), alpha=0.2, linewidth=0)
            axes.set_xlabel("inner step")
            axes.set_ylabel(what)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
            if what == "loss":
                axes.set_yscale("log")
                axes.legend(frameon=False, fontsize=9)
        return "rivals.png", figure
