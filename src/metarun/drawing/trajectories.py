"""Pictures of policies that act on a plane: their trajectories before adaptation and after."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarun.adaptation import adapt
from metarun.run import Run
from metarun.task import Task

BEFORE, AFTER, GOAL = "#b9c6d0", "#2f6690", "#c8553d"
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
