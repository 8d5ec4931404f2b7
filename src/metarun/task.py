"""What a task is: the tensors of one episode, as named tuples.
Every tuple describes ONE task; stacking tasks adds one leading axis to every tensor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metarun.runtime.private import tree_map


class Batch(NamedTuple):
    """Examples of one task."""

    x: Tensor  # [n, *input_shape] float
    y: Tensor  # [n] int64 in 0..way-1, or [n, outputs] float for regression


class Context(NamedTuple):
    """All that a learner may see before it is asked: no method can peek at the query."""

    support: Batch  # n = way * shot, grouped by class; zero-shot: n = way, and x [way, attributes] describes the classes
    classes: Tensor  # [way] int64, global class ids (zeros for regression)
    key: Tensor  # [] int64, the episode's own random key
    extras: dict[str, Tensor]  # what only some episodes have: "unlabelled" images [m, *input_shape], in random order

    @property
    def unlabelled(self) -> Tensor:
        """Images without labels [m, *input_shape], of the episode's classes and of distractor classes; m = 0 where none were asked for."""
        return self.extras.get("unlabelled", self.support.x[:0])


class Task(NamedTuple):
    """One episode."""

    context: Context
    query: Batch  # n = way * query


def stack(tasks: list[Task]) -> Task:
    """Single tasks to stacked tasks: one leading axis on every tensor."""
    return tree_map(lambda *leaves: torch.stack(leaves), *tasks)


def select(tasks: Task, index: int | slice) -> Task:
    """One task (an int) or a run of tasks (a slice) out of stacked tasks."""
    return tree_map(lambda leaf: leaf[index], tasks)


def count(tasks: Task) -> int:
    """How many tasks are stacked."""
    return tasks.query.y.shape[0]
