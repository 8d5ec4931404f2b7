"""begin + K x step, the one inner loop of every method: in training, validation and test. Written for ONE task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metarun import inner
from metarun.algorithm import Algorithm, State
from metarun.errors import UserError
from metarun.inner import Kept
from metarun.runtime.private import tree_flatten, tree_map, tree_unflatten
from metarun.task import Context, Start


def adapt(algorithm: Algorithm, context: Context, steps: int, start: Start | tuple[()] = ()) -> Iterator[State]:
    """The states of one task after 0, 1, … ``steps`` inner steps, from its beginning or from ``start`` on."""
    state, first = begun(algorithm, context, start)
    yield state
    for k in range(steps):
        state = algorithm.step(state, context, first + k)
        yield state


def begun(algorithm: Algorithm, context: Context, start: Start | tuple[()]) -> tuple[State, Any]:
    """The state that a task's steps here set out from, and how many steps of it lie behind."""
    state = algorithm.begin(context)
    if not start:
        return state, 0
    return (state if start.state == () else resumed(state, start)), start.k


def resumed(fresh: State, start: Start) -> State:
    """The state that a task goes on from: what its learner begins with, or, unless it begins now, where it was.

    Raises:
        UserError: the learner's steps change the form of its state, which a loop that goes on later cannot have.
    """
    (new_leaves, form), (old_leaves, other) = tree_flatten(fresh), tree_flatten(start.state)
    if form != other or any(new.shape != old.shape for new, old in zip(new_leaves, old_leaves)):
        first, last = (tree_map(lambda leaf: list(leaf.shape), state) for state in (fresh, start.state))
        raise UserError(f"a method with unrolls > 1 keeps the form of its state: it begins with shapes {first}, and goes on with {last}")
    return tree_unflatten([torch.where(start.fresh, new, old) for new, old in zip(new_leaves, old_leaves)], form)


def walked(
    algorithm: Algorithm,
    context: Context,
    state: State,
    steps: int,
    ahead: Any = 0,
    read: Callable[[State], Any] | None = None,
    *,
    scanned: bool,
    kept: Kept = "auto",
) -> tuple[State, Any]:
    """The state after ``steps`` inner steps, ``ahead`` of which lie behind; and what ``read`` makes of it after each of them, stacked.

    Args:
        scanned: by ``inner.loop``, which records one step, however many there are.
        kept: see ``inner.loop``.
    """

    def step(state: State, k: Any) -> State:
        return algorithm.step(state, context, ahead + k)

    if scanned:
        made = inner.loop(step, state, steps, read=read, kept=kept)
        return made if read else (made, ())
    noted = []
    for k in range(steps):  # no more than two states are there at a time
        state = step(state, k)
        noted += [read(state)] if read else []
    return state, tree_map(lambda *rows: torch.stack(rows), *noted) if noted else ()


def asked(
    algorithm: Algorithm, context: Context, x: Tensor, points: Sequence[int], read: Callable[[State, Any], Any], *, scanned: bool
) -> Any:
    """What ``read`` makes of the states after the ``points`` inner steps, ascending numbers, and of their answers to x, stacked.

    Where every step is a point, that is one loop; otherwise a loop from each point to the next, so that nothing is asked between them.
    """
    held = [algorithm.begin(context)]  # so that nothing here keeps a state that the loop has left behind
    answer = algorithm.answers(held[0], x)
    steps = points[-1]
    if steps and [*points] == [*range(steps + 1)]:
        first = read(held[0], answer(held[0]))
        _, later = walked(algorithm, context, held.pop(), steps, 0, lambda state: read(state, answer(state)), scanned=scanned)
        return tree_map(lambda one, rest: torch.cat([one[None], rest]), first, later)
    done, noted = 0, []
    for point in points:
        held = [walked(algorithm, context, held.pop(), point - done, done, scanned=scanned)[0]]
        noted.append(read(held[0], answer(held[0])))
        done = point
    return tree_map(lambda *rows: torch.stack(rows), *noted)
