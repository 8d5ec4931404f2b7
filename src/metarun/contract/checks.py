"""The checks: each takes a resolved configuration, returns what it found in a few words, and raises where a promise is not kept.
They are quick: three tasks of the configuration's own shape, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from metarun.algorithm import Algorithm
from metarun.contract.measures import answers, engine, in_float64, outcome, relative_error, slopes
from metarun.engine import Engine
from metarun.run import Run
from metarun.runtime.recording import EAGER
from metarun.task import Batch, Context, Task, select

SAME = 1e-9  # relative difference of float64 numbers that are the same but for rounding
DIFFERENT = 1e-6  # largest change of an answer, from which on it has changed
SLOPE = 1e-4  # relative difference between a meta-gradient and finite differences
Check = Callable[[dict[str, Any]], str]


class BrokenError(Exception):
    """A promise is not kept; the message is one line that says which, and by how much."""


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration as the checks run it: on the CPU, in full precision, from random weights."""
    return values | {"device": "cpu", "precision": "fp32", "init_from": None}


def require(kept: bool, line: str) -> None:
    """Raise ``BrokenError(line)`` unless the promise is kept."""
    if not kept:
        raise BrokenError(line)


def mapping(values: dict[str, Any]) -> str:
    """However tasks are mapped, the meta-gradient is the same, to 1e-9 in float64: a loop over tasks, ``torch.vmap``, chunks."""
    algorithm, tasks = in_float64(values)
    loop = outcome(algorithm, tasks, engine("loop"))
    require(bool(loop.isfinite().all()), "the meta-gradient is not finite")
    require(bool(loop.norm() > 0), "the meta-gradient is zero: nothing can be learned")
    errors = []
    for name, how in {"vmap": engine("vmap"), "vmap in chunks": engine("vmap", chunk=2)}.items():
        errors.append(relative_error(outcome(algorithm, tasks, how), loop))
        require(errors[-1] < SAME, f"{name} differs from a loop over tasks by {errors[-1]:.1e} of the meta-gradient's length")
    return f"vmap, chunks and a loop over tasks differ by {max(errors):.0e}"


def repetition(values: dict[str, Any]) -> str:
    """The same seed gives the same numbers, bit for bit."""
    first, again = (outcome(*in_float64(values), engine()) for _ in range(2))
    require(torch.equal(first, again), f"the same seed gives other numbers: a difference of {relative_error(again, first):.1e}")
    return "the same seed gives the same numbers, bit for bit"


def labels(values: dict[str, Any]) -> str:
    """Permuted labels permute the answers, if and only if the method does not say ``label_dependent``."""
    algorithm, task = _one(values)
    if task.query.y.is_floating_point():
        return "not asked: there are no classes"
    x, y = task.context.support
    way = task.context.classes.shape[0]
    new_label = torch.arange(way).roll(1)  # of the classes 0, 1, 2, …
    ordered = algorithm.ordered  # then the order stays; others are promised a support that is grouped by class
    regrouped = torch.arange(len(y)) if ordered else torch.argsort(new_label[y], stable=True)
    relabelled = Context(Batch(x[regrouped], new_label[y][regrouped]), task.context.classes[torch.argsort(new_label)], *task.context[2:])
    pairs = zip(answers(algorithm, task.context, task.query.x), answers(algorithm, relabelled, task.query.x))
    change = _largest(after[:, new_label] - before for before, after in pairs)
    return _if_and_only_if(algorithm.label_dependent, change, "label_dependent", "permuted labels permute the answers")


def order(values: dict[str, Any]) -> str:
    """The order of the support does not matter, if and only if the method does not say ``ordered``."""
    algorithm, task = _one(values)
    x, y = task.context.support
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    other = task.context._replace(
        support=Batch(x[shuffled], y[shuffled]), extras=task.context.extras | {"seen": task.context.seen[shuffled]}
    )
    pairs = zip(answers(algorithm, task.context, task.query.x), answers(algorithm, other, task.query.x))
    change = _largest(after - before for before, after in pairs)
    return _if_and_only_if(algorithm.ordered, change, "ordered", "the order of the support does not matter")


def recording(values: dict[str, Any]) -> str:
    """A recorded step has the bits of the step, whatever changes between calls."""
    recorded, eager = (_steps(Run(values), engine(record=record)) for record in (True, False))
    for i, (now, then) in enumerate(zip(recorded, eager, strict=True)):
        require(torch.equal(now, then), f"a recorded step differs from the step itself, from step {i} on: hidden state in the method?")
    return f"{len(eager)} steps recorded and not are equal, bit for bit"


def gradient(values: dict[str, Any]) -> str:
    """The meta-gradient is the slope of the mean objective along three random directions, by finite differences in float64.

    In a game it is, for every player, that of the player's own loss along directions of its own weights.
    """
    algorithm, tasks = in_float64(values)
    if not algorithm.learns:
        return "not asked: there is nothing to learn"
    found = []
    players = [group for group in algorithm.groups() if "descends" in group]
    for seed, player in product(range(3), players or (None,)):
        slope, difference = slopes(algorithm, tasks, seed, player=player)
        found.append(f"{slope:.6g} = {difference:.6g}")
        require(
            abs(slope - difference) <= SLOPE * max(abs(slope), abs(difference)),
            f"the meta-gradient says {slope:.6g} along a direction, finite differences of the objective {difference:.6g} "
            "(as it should be where the outer rule is another: first order, Reptile, implicit gradients)",
        )
    return f"meta-gradient and finite differences agree: {', '.join(found)}"


CONTRACT: dict[str, Check] = {"mapping": mapping, "repetition": repetition, "labels": labels, "order": order, "recording": recording}


def _one(values: dict[str, Any]) -> tuple[Algorithm, Task]:
    algorithm, tasks = in_float64(values, tasks=1)
    return algorithm, select(tasks, 0)


def _largest(changes: Iterable[Tensor]) -> float:
    return max(float(change.abs().max()) for change in changes)


def _if_and_only_if(declared: bool, change: float, name: str, promise: str) -> str:
    """A declaration is honest: answers change by it if and only if it is made."""
    require(declared or change < SAME, f"{promise}: answers change by {change:.1e}; set {name} = True in the class if that is meant")
    require(not declared or change > DIFFERENT, f"the class says {name} = True, but answers change by {change:.1e} only: leave it out")
    return f"{promise}" if not declared else f"{name}, as declared: answers change by {change:.1e}"


def _steps(run: Run, how: Engine) -> list[Tensor]:
    """Meta-gradients of steps on other tasks each, with weights that move in between; or losses where nothing is learned."""
    algorithm, episodes, found = run.algorithm, run.episodes("train"), []
    for i in range(EAGER + 3):
        tasks = episodes.batch(range(2 * i, 2 * i + 2))
        found.append(outcome(algorithm, tasks, how))
        for parameter in algorithm.parameters():
            if parameter.grad is not None:
                parameter.data.sub_(parameter.grad, alpha=0.01)
    return found
