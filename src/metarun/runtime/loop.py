"""``loop``: the same step of nested tensors again and again, as a ``Scan`` of all tensors that it depends on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from metarun.runtime.private import function_modes, tree_flatten, tree_map, tree_unflatten, under_vmap_only
from metarun.runtime.replica import lifted
from metarun.runtime.scan import scan
from metarun.runtime.settings import Unseen
from metarun.runtime.steps import Kept, Repeated, Tensors, Unsteady

Tree = Any  # nested tuples, named tuples, dicts and lists of tensors
LEAST = 3  # steps that are worth a scan


def loop(
    step: Callable[[Any, Any], Any], state: Tree, steps: int, xs: Tree | None, read: Callable[[Any], Any] | None, kept: Kept
) -> tuple[Tree, Tree]:
    """See ``inner.loop``."""
    if steps < LEAST or not under_vmap_only():
        return plain(step, state, steps, 0, xs, read)
    # The first step tells what the others are: which parts of the state change, their strides, and which depend on the task.
    first, noted = plain(step, state, 1, 0, xs, read)
    try:
        state, rest = scanned(step, state, first, steps, xs, read, kept)
    except (Unseen, Unsteady):
        state, rest = plain(step, first, steps - 1, 1, xs, read)
    return state, tree_map(lambda *parts: torch.cat(parts), noted, rest)


def plain(step: Any, state: Tree, steps: int, first: int, xs: Tree | None, read: Any) -> tuple[Tree, Tree]:
    """``loop`` in Python, from step ``first`` on."""
    noted = []
    for k in range(first, first + steps):
        number = torch.tensor(k)
        state = step(state, number if xs is None else tree_map(lambda x, k=k: x[k], xs))
        noted.append(() if read is None else read(state))
    return state, tree_map(lambda *rows: torch.stack(rows), *noted) if noted else ()


def scanned(step: Any, before: Tree, state: Tree, steps: int, xs: Tree | None, read: Any, kept: Kept) -> tuple[Tree, Tree]:
    """``loop`` from step 1 on, as a scan; ``before`` and after step 0 the state was ``before`` and ``state``.

    Raises:
        Unseen: the step closes over an object that may hold tensors out of sight.
        Unsteady: the state changes its form, or a part of it that the first step left alone.
    """
    leaves, form = tree_flatten(state)
    earlier, earlier_form = tree_flatten(before)
    if form != earlier_form or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise Unsteady
    moves = [a is not b for a, b in zip(leaves, earlier)]
    captured, of = lifted((step, read))
    rows, xs_form = tree_flatten(xs if xs is not None else ())
    modes = function_modes()
    carry, still = ([leaf for leaf, yes in zip(leaves, moves) if yes is wanted] for wanted in (True, False))
    if not carry:
        raise Unsteady
    y_form: list[Any] = []

    def body(k: Tensor, carry: Tensors, constants: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
        step, read = of(constants[len(still) :])
        parts = iter(carry), iter(constants)
        given = [next(parts[0] if yes else parts[1]) for yes in moves]
        with ExitStack() as stack:
            for mode in modes:  # as ``BFloat16``, which torch leaves outside of an autograd.Function under torch.func
                if mode not in function_modes():
                    stack.enter_context(mode)
            state = step(tree_unflatten(given, form), k if xs is None else tree_unflatten(x, xs_form))
            y, found = tree_flatten(() if read is None else read(state))
        y_form[:] = [found]
        made, made_form = tree_flatten(state)
        if made_form != form or any(_kind(a) != _kind(b) or not (a is b or yes) for a, b, yes in zip(made, given, moves)):
            raise Unsteady
        return [leaf for leaf, yes in zip(made, moves) if yes], y

    repeated = Repeated(body, range(1, steps), len(carry), len(still) + len(captured), torch.is_grad_enabled(), kept)
    carry, ys = scan(repeated, *carry, *still, *captured, *(row[1:] for row in rows))
    parts = iter(carry), iter(still)
    return tree_unflatten([next(parts[0] if yes else parts[1]) for yes in moves], form), tree_unflatten(ys, *y_form)


def _kind(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf
