"""Meta-gradients without derivatives: evolution strategies, whole or over a cut inner loop.
Salimans et al. 2017, arXiv:1703.03864; persistent: Vicol, Metz, Sohl-Dickstein 2021, arXiv:2112.13835."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun import inner
from metarun.algorithm import Algorithm, State
from metarun.data.episodes import Episodes
from metarun.data.slots import Slots
from metarun.engine import Engine, objective
from metarun.runtime.private import tree_map
from metarun.task import Start, Task

STREAM = 2**20  # of the episode's key, where the perturbations begin: no learner draws from there


class Evolution:
    """Antithetic evolution strategies, a perturbation of its own for every task.

        ε ~ N(0, σ²),   L± = objective at θ ± ε,   gradient = mean over tasks and pairs of ξ (L⁺ − L⁻) / 2σ²

    ξ is ε, and of a task that goes on both begin where θ + ε has left it; or, ``persistent``, ξ is the sum of the ε of all meta-updates
    since the task began, and each of θ ± ε goes on from its own state: so a gradient of the whole inner loop is found, though each
    meta-update sees but a part.

    Args:
        sigma: σ.
        pairs: of perturbations for each task.
        persistent: see above.
    """

    def __init__(self, sigma: float, pairs: int, *, persistent: bool) -> None:
        self.sigma, self.pairs, self.persistent = sigma, pairs, persistent

    @torch.no_grad()
    def train_on(
        self, engine: Engine, algorithm: Algorithm, episodes: Episodes, slots: Slots, carried: State, progress: float
    ) -> tuple[dict[str, float], State]:
        """As ``Engine.train_on``, with another gradient."""
        share, total = engine.world.share(range(len(slots.indices))), len(slots.indices)
        parameters = {name: p for name, p in algorithm.named_parameters() if p.requires_grad}
        sums: dict[str, float] = {}
        if share:
            tasks = slots.tasks(episodes, share, carried, algorithm.unrolls)
            algorithm.anneal(progress)
            gradients, metrics, carried = engine.over(
                algorithm, partial(self.estimate, engine.scans(algorithm)), tasks, progress, ("evolution", *vars(self).values())
            )
            for name, p in parameters.items():
                gradient = gradients[name].sum(0) / total
                p.grad = gradient if p.grad is None else p.grad + gradient
            sums = {name: float(values.sum()) for name, values in metrics.items()}
        engine.world.sum_gradients(parameters.values())
        return {name: value / total for name, value in engine.world.sum(sums).items()}, carried

    def carries(self, algorithm: Algorithm, begun: State) -> State:
        """A tree of the form that is carried on: of every pair the two states and ξ."""
        total = {name: p for name, p in algorithm.named_parameters() if p.requires_grad}
        return ((begun, begun, total),) * self.pairs

    def estimate(
        self, scanned: bool, learner: Algorithm, task: Task, progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], State]:
        """Of one task: the gradient by parameter, metrics, and what to carry on; ``scanned`` as in ``engine.objective``."""
        parameters = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        start, whole = task.start, Objective(learner, scanned)
        found, told, carried = [], [], []
        for pair in range(self.pairs):
            noise = self.noise(task, parameters, pair)
            before = start.state[pair] if start and start.state != () else ((), (), None)
            losses, states = [], []
            for sign, state in zip((1, -1), before):
                moved = {f"learner.{name}": p + sign * noise[name] for name, p in parameters.items()}
                mine = task._replace(start=start._replace(state=state)) if start else task
                loss, metrics, last = functional_call(whole, moved, (progress, mine))
                losses.append(loss)
                told.append(metrics)
                states.append(last)
            total = self.accumulated(noise, before[2], start)
            slope = (losses[0] - losses[1]) / (2 * self.sigma**2 * self.pairs)
            found.append({name: slope * value for name, value in total.items()})
            # Of one part alone, ε says nothing of how states came apart before: states of their own would be noise.
            kept = states if self.persistent else states[:1] * 2
            carried.append((*kept, total) if start else ())
        mean = tree_map(lambda *values: torch.stack(values).mean(0), *told)
        return tree_map(lambda *parts: torch.stack(parts).sum(0), *found), mean, tuple(carried)

    def noise(self, task: Task, parameters: Mapping[str, Tensor], pair: int) -> dict[str, Tensor]:
        """ε of one task and pair, by parameter: other numbers in every meta-update."""
        key, k = task.context.key, task.start.k if task.start else 0
        first = STREAM + (k * self.pairs + pair) * len(parameters)
        return {
            name: self.sigma * inner.normal(key, tuple(p.shape), first + i).to(p.dtype) for i, (name, p) in enumerate(parameters.items())
        }

    def accumulated(self, noise: dict[str, Tensor], before: dict[str, Tensor] | None, start: Start | tuple[()]) -> dict[str, Tensor]:
        """ξ, from what it was in the last meta-update."""
        if not (self.persistent and start and before):
            return noise
        return {name: value + torch.where(start.fresh, 0.0, before[name]) for name, value in noise.items()}


class Objective(nn.Module):
    """``engine.objective`` of a learner as a module, so that ``functional_call`` can move the learner's parameters."""

    learner: Algorithm
    scanned: bool

    def __init__(self, learner: Algorithm, scanned: bool) -> None:
        super().__init__()
        self.learner, self.scanned = learner, scanned

    def forward(self, progress: float, task: Task) -> tuple[Tensor, dict[str, Tensor], Any]:
        return objective(self.learner, progress, task, scanned=self.scanned)
