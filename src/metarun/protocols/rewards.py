"""``protocol=rewards``: the reward at every time of an episode, for learners that learn while they act, as of a bandit's arms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metarun.algorithm import Algorithm
from metarun.problem import Problem, Trajectories
from metarun.protocols.base import AfterAdaptation, Arrays, Scores, statistics
from metarun.task import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Rewards(AfterAdaptation):
    """The return after adaptation, as in ``protocol=episodes``; the curve is over the actions of these episodes, 1, 2, …"""

    name = "rewards"
    needs = "an environment to act in, as of data=bandits"

    def asks(self, algorithm: Algorithm) -> bool:
        return algorithm.problem.kind.acts

    def last(self, problem: Problem, prediction: Trajectories, query: Batch) -> dict[str, Tensor]:
        """``rewards`` [horizon], the mean over the query's episodes; where they are no numbers, none."""
        return {"rewards": torch.where(prediction.rewards.isfinite(), prediction.rewards, torch.nan).mean(0)}

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        points = [(time + 1, statistics(rewards)) for time, rewards in enumerate(arrays["rewards"].T)]
        curve = [{"step": time, "mean": point["mean"], "ci95": point["ci95"]} for time, point in points]
        return {problem.metric: statistics(arrays["rewards"].sum(1))}, curve

    def per_episode(self, arrays: Arrays) -> np.ndarray:
        return arrays["rewards"].sum(1)

    def figure(self, arrays: Arrays, title: str) -> tuple[str, Figure]:
        """The curve with its interval."""
        from matplotlib.figure import Figure

        points = [statistics(rewards) for rewards in arrays["rewards"].T]
        mean, wide = (np.array([point[name] for point in points]) for name in ("mean", "ci95"))
        times = np.arange(1, len(mean) + 1)
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(times, mean, color=LINE)
        axes.fill_between(times, mean - wide, mean + wide, color=LINE, alpha=0.2, linewidth=0)
        axes.set_title(title, fontsize=11, fontweight="bold", loc="left")
        axes.set_xlabel("action of an episode")
        axes.set_ylabel("mean reward")
        axes.spines[["top", "right"]].set_visible(False)
        return "rewards.png", figure


LINE = "#2f6690"
