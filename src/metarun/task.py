"""What a task is: the tensors of one episode, as named tuples.
Every tuple describes ONE task; stacking tasks adds one leading axis to every tensor but to what all of them share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.runtime.private import tree_map


def to_float(images: Tensor) -> Tensor:
    """uint8 images as a net wants them, 0..1; other whole numbers and truths as they are; what is floating already stays so."""
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    return images if images.is_floating_point() else images.float()


class Batch(NamedTuple):
    """Examples of one task."""

    x: Tensor  # [n, *input_shape] float; for control int64 keys of episodes [n]; of a whole training set rows of ``Context.shared`` [n]
    y: Tensor  # [n] int64 in 0..way-1, or [n, outputs] float for regression, [n, 0] for control, [n, candidates] for search


class Context(NamedTuple):
    """All that a learner may see before it is asked: no method can peek at the query."""

    support: Batch  # n = way * shot, grouped by class; zero-shot: n = way, and x [way, attributes] describes the classes
    classes: Tensor  # [way] int64, global class ids (zeros where there are none)
    key: Tensor  # [] int64, the episode's own random key
    extras: dict[str, Tensor]  # what only some episodes have, see the properties below; a simulator's numbers
    shared: Any = ()  # tensors that all tasks of a run have in common, without an axis of tasks: a training set, a table, a graph

    def examples(self, chosen: Tensor | slice = slice(None)) -> Batch:
        """Examples of the support, all of them or the ``chosen`` places [n] int64 of it, wherever they lie."""
        x, y = self.support.x[chosen], self.support.y[chosen]
        return Batch(to_float(self.shared[x]), y) if isinstance(self.shared, Tensor) else Batch(x, y)

    @property
    def unlabelled(self) -> Tensor:
        """Images without labels [m, *input_shape], of the episode's classes and of distractor classes; m = 0 where none were asked for."""
        return self.extras.get("unlabelled", self.support.x[:0])

    @property
    def clean(self) -> Batch:
        """Examples with labels beside a support that may be corrupt, n = way * clean; n = 0 where none were asked for."""
        return Batch(self.extras.get("clean_x", self.support.x[:0]), self.extras.get("clean_y", self.support.y[:0]))

    @property
    def seen(self) -> Tensor:
        """Which rows of the support are examples, [n] bool: all, but where episodes differ in their number; the other rows are zeros."""
        y = self.support.y
        return self.extras.get("seen", torch.ones(y.shape[0], dtype=torch.bool, device=y.device))


class Start(NamedTuple):
    """Where the inner loop of a task goes on that was begun in an earlier meta-update (``Algorithm.unrolls``)."""

    state: Any  # the learner's, after the last step so far; () where no task has been begun
    fresh: Tensor  # [] bool: the task begins now, so ``state`` is another one's
    k: Tensor  # [] int64: inner steps taken since the task began


class Task(NamedTuple):
    """One episode."""

    context: Context
    query: Batch  # n = way * query
    start: Start | tuple[()] = ()
    corrupt: Tensor | tuple[()] = ()  # [n] bool, which examples of the support are, for whoever judges a learner; () where none are


# Where the axis of stacked tasks is, for torch.vmap.
AXES = Task(Context(Batch(0, 0), 0, 0, 0, None), Batch(0, 0), 0, 0)  # type: ignore[arg-type]


def own(task: Task) -> Task:
    """A task, or stacked tasks, without what all tasks share."""
    return task._replace(context=task.context._replace(shared=()))


def stack(tasks: list[Task]) -> Task:
    """Single tasks to stacked tasks: one leading axis on every tensor that is a task's own."""
    stacked: Task = tree_map(lambda *leaves: torch.stack(leaves), *map(own, tasks))
    return stacked._replace(context=stacked.context._replace(shared=tasks[0].context.shared))


def select(tasks: Task, index: int | slice) -> Task:
    """One task (an int) or a run of tasks (a slice) out of stacked tasks."""
    chosen: Task = tree_map(lambda leaf: leaf[index], own(tasks))
    return chosen._replace(context=chosen.context._replace(shared=tasks.context.shared))


def rows(tree: Any, index: int) -> Any:
    """Row ``index`` of every tensor in nested values."""
    return tree_map(lambda leaf: leaf[index], tree)


def count(tasks: Task) -> int:
    """How many tasks are stacked."""
    return tasks.query.y.shape[0]
