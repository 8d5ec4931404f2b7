"""begin + K x step, the one inner loop of every method: in training, validation and test. Written for ONE task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from metarun import inner
from metarun.algorithm import Algorithm, State
from metarun.errors import UserError
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


def adapted(
    algorithm: Algorithm,
    context: Context,
    steps: int,
    read: Callable[[State], Any] | None,
    start: Start | tuple[()] = (),
    *,
    scanned: bool,
) -> tuple[Any, State, Any]:
    """What ``read`` makes of the first of the states of ``adapt``, the last state, and what it makes of every state after a step, stacked.

    ``scanned``: by ``inner.loop``, which records one step, however many there are.
    """
    if not scanned:
        states, noted = adapt(algorithm, context, steps, start), []
        last = next(states)
        first = read(last) if read else ()
        for last in states:  # no more than two are there at a time
            noted += [read(last)] if read else []
        return first, last, tree_map(lambda *rows: torch.stack(rows), *noted) if noted else ()
    state, ahead = begun(algorithm, context, start)
    made = inner.loop(lambda state, k: algorithm.step(state, context, ahead + k), state, steps, read=read, kept=algorithm.keeps)
    return (read(state), *made) if read else ((), made, ())


def visited(
    algorithm: Algorithm, context: Context, points: Sequence[int], read: Callable[[State], Any], *, scanned: bool
) -> tuple[Any, State]:
    """What ``read`` makes of the states after the ``points`` inner steps, ascending numbers, stacked; and the last of these states.

    Where every step is a point, that is one loop; otherwise a loop from each point to the next, so that the steps between are not read.
    """
    if [*points] == [*range(points[-1] + 1)]:
        first, state, later = adapted(algorithm, context, points[-1], read, scanned=scanned)
        return tree_map(lambda one, *rest: torch.cat([one[None], *rest]), first, *([later] if points[-1] else [])), state
    state, done, noted = algorithm.begin(context), 0, []
    for point in points:
        state = onward(algorithm, context, state, range(done, point), scanned=scanned)
        noted.append(read(state))
        done = point
    return tree_map(lambda *rows: torch.stack(rows), *noted), state


def onward(algorithm: Algorithm, context: Context, state: State, steps: range, *, scanned: bool) -> State:
    """The state after these inner steps."""
    if not scanned:
        for k in steps:
            state = algorithm.step(state, context, k)
        return state
    return inner.loop(lambda state, k: algorithm.step(state, context, steps.start + k), state, len(steps), kept=algorithm.keeps)
