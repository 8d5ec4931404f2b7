"""What the checks measure of a method: its meta-gradient, its answers, slopes by finite differences; in float64, on few tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metarun.adaptation import adapt
from metarun.algorithm import Algorithm
from metarun.engine import Engine
from metarun.problem import Samples, best_guess
from metarun.protocols.episodes import EVERY
from metarun.run import Run
from metarun.runtime.private import tree_leaves, tree_map
from metarun.task import Context, Task, count, select, to_float

Group = dict[str, Any]  # of meta-parameters, see ``Algorithm.groups``


def engine(map: Any = "vmap", chunk: Any = 1000, record: bool = True, device: str = "cpu", kernels: Any = "auto") -> Engine:
    """An engine in fp32, whose precision is that of the weights; all tasks in one chunk by default."""
    return Engine(torch.device(device), "fp32", map=map, chunk=chunk, record=record, kernels=kernels)


def double(tasks: Any) -> Any:
    """The same tasks (or any tree) with every float in float64."""
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tasks)


def in_float64(values: dict[str, Any], tasks: int = 3) -> tuple[Algorithm, Task]:
    """The algorithm of a config and its first training tasks, all in float64."""
    run = Run(values)
    found: Task = double(run.episodes("train").batch(range(tasks)))
    if isinstance(shared := found.context.shared, Tensor):  # images of whole training sets, as they are stored
        found = found._replace(context=found.context._replace(shared=to_float(shared).double()))
    return run.algorithm.double(), found


def meta_gradient(algorithm: Algorithm, tasks: Task, how: Engine) -> Tensor:
    """The meta-gradient as one vector; parameters without a gradient count as zeros."""
    algorithm.zero_grad(set_to_none=True)
    how.meta_gradient(algorithm, tasks, 0.0)
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in algorithm.parameters()])


def outcome(algorithm: Algorithm, tasks: Task, how: Engine) -> Tensor:
    """The meta-gradient, or, where there is nothing to learn, the losses after every inner step, [tasks * (test_steps + 1)]."""
    if algorithm.learns:
        return meta_gradient(algorithm, tasks, how)
    algorithm.eval()
    return how.evaluate(algorithm, tasks, EVERY)["loss"].flatten()


def relative_error(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def answers(algorithm: Algorithm, context: Context, x: Tensor) -> list[Tensor]:
    """What the adapted learner predicts for x, as in evaluation: one or more tensors [n, ...]; of several members, their one answer."""
    algorithm.eval()
    *_, state = adapt(algorithm, context, algorithm.steps(context, False))
    prediction = algorithm.predict(state, x)
    return tree_leaves(best_guess(prediction) if isinstance(prediction, Samples) else prediction)


def mean_objective(algorithm: Algorithm, tasks: Task, player: Group | None = None) -> float:
    """The mean meta-training loss over tasks, one by one; or, in a game, that of a player, one of ``groups``."""
    total = 0.0
    for i in range(count(tasks)):
        task = select(tasks, i)
        loss, metrics = algorithm.objective(list(adapt(algorithm, task.context, algorithm.steps(task.context, True))), task, 0.0)
        total += float((metrics[player["descends"]] if player else loss).detach())
    return total / count(tasks)


def slopes(algorithm: Algorithm, tasks: Task, seed: int = 0, step: float = 1e-7, player: Group | None = None) -> tuple[float, float]:
    """How steep the mean objective is along a random direction of length 1: by the meta-gradient, and by finite differences.

    Frozen weights stay. ``step`` is small, as a large one crosses kinks of ReLU and max-pool. In a game, ``player`` is one of
    ``groups``, whose loss is meant, and whose weights move.
    """
    gradient = meta_gradient(algorithm, tasks, engine())
    parameters = list(algorithm.parameters())
    moves = {id(p) for p in (player["params"] if player else parameters) if p.requires_grad}
    draw = torch.Generator().manual_seed(seed)
    direction = [torch.randn(p.shape, generator=draw, dtype=p.dtype) * (id(p) in moves) for p in parameters]
    length = torch.cat([along.flatten() for along in direction]).norm()
    direction = [along / length for along in direction]
    values = []
    for stride in (step, -2 * step):  # there, and from there back to the other side
        for parameter, along in zip(parameters, direction):
            parameter.data.add_(along, alpha=stride)
        values.append(mean_objective(algorithm, tasks, player))
    for parameter, along in zip(parameters, direction):
        parameter.data.add_(along, alpha=step)
    return float(gradient @ torch.cat([along.flatten() for along in direction])), (values[0] - values[1]) / (2 * step)
