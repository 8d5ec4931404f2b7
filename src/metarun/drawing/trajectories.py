"""Pictures of policies that act on a plane: their trajectories before adaptation and after, as a whole or as a film."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarun.adaptation import adapt
from metarun.run import Run
from metarun.task import Task

BEFORE, AFTER, GOAL = "#b9c6d0", "#2f6690", "#c8553d"
FRAMES = 50  # of a film, at most: of long episodes not every action has one
APART = 0.3  # of a cell: how far the ways through a grid are drawn from each other, which lie upon each other


@torch.no_grad()
def figure(run: Run, task: Task, title: str) -> Figure:
    """The query trajectories of one task, by the learner as it is and by the learner adapted as in a test; observations are places."""
    learner = run.algorithm.eval()
    steps = learner.steps(task.context, False)
    states = list(adapt(learner, task.context, steps))
    drawn = Figure(figsize=(7.2, 6.4), layout="constrained")
    axes: Axes = drawn.add_subplot()
    for state, colour, when in ((states[0], BEFORE, "before"), (states[-1], AFTER, f"after {steps} inner steps"))[: 1 + bool(steps)]:
        done = learner.predict(state, task.query.x)
        label = f"{when}: return {float(done.returns.mean()):.1f}"
        grid = not done.actions.is_floating_point()
        for path, aside in zip(done.observations.cpu(), torch.linspace(-APART, APART, len(task.query.x))):
            axes.plot(*(path + grid * aside).T, color=colour, linewidth=0.9, alpha=0.8, label=label)
            label = ""
    if "goal" in task.context.extras:
        axes.plot(*task.context.extras["goal"].cpu(), "*", color=GOAL, markersize=16, linewidth=0, label="goal")
    axes.set_title(title, fontsize=11, fontweight="bold", loc="left")
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return drawn


def film(run: Run, task: Task, title: str) -> Iterator[Figure]:
    """``figure`` from the first action on, as the trajectories grow; the same figure again and again, to be drawn at once."""
    drawn = figure(run, task, title)
    axes = drawn.axes[0]
    ways = [line for line in axes.lines if len(np.asarray(line.get_xydata())) > 1]  # the goal is a single point
    paths = [np.asarray(line.get_xydata()) for line in ways]
    drawn.draw_without_rendering()  # settles the limits, which are to be those of all that will be seen
    limits = axes.get_xlim(), axes.get_ylim()
    axes.set_aspect("equal", adjustable="box")
    axes.set(xlim=limits[0], ylim=limits[1])
    heads = axes.plot(*([[], []] * len(ways)), marker="o", markersize=4, linewidth=0)
    length = max(map(len, paths))
    for shown in sorted({length, *range(1, length, -(-length // FRAMES))}):
        for line, head, path in zip(ways, heads, paths):
            line.set_data(*path[:shown].T)
            head.set_data(*path[:shown][-1:].T)
            head.set_color(line.get_color())
        axes.set_xlabel(f"action {shown} of {length}")
        yield drawn
