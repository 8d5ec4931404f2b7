"""A loop whose derivative is a loop: the same step again and again, of which one alone is ever recorded.

Under torch.vmap a scan is the scan of the vmapped step. The way back goes from the last step to the first, by what each step kept, or by
computing steps again from the states that were kept (rematerialisation). A derivative that is to be differentiated again is a scan, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.runtime import tracer as tracing
from metarun.runtime.steps import Cache, Eager, Plan, Repeated, Tensors, Traced, gradients
from metarun.runtime.tracer import CannotRepeat

PAYS = 8  # steps from which on recording one pays within a single call


def scan(repeated: Repeated, *tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The last carry, and every y with a leading axis of length K.

    Raises:
        Unsteady: a step depends on more than its arguments.
    """
    made = _Scan.apply(_Run(repeated), *tensors)
    return list(made[: repeated.carried]), list(made[repeated.carried :])


class _Scan(torch.autograd.Function):
    """``scan``."""

    @staticmethod
    def forward(run: _Run, *tensors: Tensor) -> tuple[Tensor, ...]:
        return run.forward(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.run, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*(t for t, yes in zip(output, ctx.run.steps.flags.outputs) if not yes))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            return None, *ctx.run.backward_in_a_graph(ctx.saved_tensors, cotangents)
        return None, *ctx.run.backward(cotangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], run: _Run, *tensors: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        repeated = run.repeated
        carry, constants, xs = repeated.split(tensors)
        carry_dims, constant_dims, xs_dims = repeated.split(in_dims[1:])
        carry = [t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip(carry, carry_dims)]
        xs = [x if dim is None else x.movedim(dim, 1) for x, dim in zip(xs, xs_dims)]
        dims = [0] * len(carry), constant_dims, [None if dim is None else 0 for dim in xs_dims]

        def body(k: Tensor, carry: Tensors, constants: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
            step = torch.vmap(partial(repeated.body, k), in_dims=dims, randomness=info.randomness)
            return step(list(carry), list(constants), list(x))

        made = _Scan.apply(_Run(replace(repeated, body=body)), *carry, *constants, *xs)
        return made, (*[0] * repeated.carried, *[1] * (len(made) - repeated.carried))


class _Run:
    """One execution of a scan, on plain tensors."""

    steps: Eager | Traced
    token: Tensor

    def __init__(self, repeated: Repeated) -> None:
        self.repeated = repeated

    def forward(self, tensors: Tensors) -> tuple[Tensor, ...]:
        tracer, eager = tracing.active(), Eager(self.repeated, tensors)
        self.steps, made = eager, None
        if tracer or (tracing.loops_recorded() and len(self.repeated.numbers) >= PAYS):
            traced = Traced(eager)
            try:
                made = _once(tracer, partial(forward, traced), *tensors)
                self.steps = traced
                traced.close()
            except CannotRepeat:
                pass
        *outputs, self.token = made or forward(eager, *tensors)
        return tuple(outputs)

    def backward(self, cotangents: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        tracer = tracing.active() if isinstance(self.steps, Traced) else None
        return _once(tracer, partial(backward, self.steps), self.token, *cotangents)

    def backward_in_a_graph(self, tensors: Tensors, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """``backward`` that can be differentiated: the forward pass once more for its carries, then a scan from the last to the first."""
        repeated, flags = self.repeated, self.steps.flags
        carry, constants, xs = repeated.split(tensors)
        of_carry, of_constants, _ = repeated.split(flags.inputs)
        at_end, of_ys = cotangents[: repeated.carried], cotangents[repeated.carried :]

        def tracking(k: Tensor, carry: Tensors, constants: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
            return repeated.body(k, carry, constants, x)[0], carry

        _, carries = scan(replace(repeated, body=tracking), *tensors)
        last = [torch.zeros_like(t) if g is None else g for g, t, yes in zip(at_end, carry, of_carry) if yes]
        totals = [torch.zeros_like(t) for t, yes in zip(constants, of_constants) if yes]
        rows = [*carries, *xs, *(g for g in of_ys if g is not None)]
        ends = len(last), len(last) + len(totals), len(carry), len(carry) + len(xs)

        def back(k: Tensor, running: Tensors, constants: Tensors, row: Tensors) -> tuple[Tensors, Tensors]:
            create = torch.is_grad_enabled()
            inputs = [*row[: ends[2]], *constants, *row[ends[2] : ends[3]]]
            with torch.enable_grad():
                leaves = [_variable(t) if yes else t for t, yes in zip(inputs, flags.inputs)]
                outputs = [t for part in repeated.body(k, *repeated.split(leaves)) for t in part]
            of_next, of_y = iter(running[: ends[0]]), iter(row[ends[3] :])
            given = [*(next(of_next) if yes else None for yes in of_carry), *(None if g is None else next(of_y) for g in of_ys)]
            pairs = [(t, g) for t, g in zip(outputs, given) if g is not None and t.requires_grad]
            wanted = [t for t, yes in zip(leaves, flags.inputs) if yes]
            grads = [torch.zeros_like(t) if g is None else g for g, t in zip(gradients(pairs, wanted, create_graph=create), wanted)]
            summed = [a + b for a, b in zip(running[ends[0] :], grads[ends[0] : ends[1]])]
            return [*grads[: ends[0]], *summed], grads[ends[1] :]

        reverse = Repeated(back, repeated.numbers[::-1], ends[1], len(constants), repeated.derives, repeated.kept)
        first, of_xs = scan(reverse, *last, *totals, *constants, *(row.flip(0) for row in rows))
        found = iter([*first, *(grad.flip(0) for grad in of_xs)])
        return [next(found) if yes else None for yes in flags.inputs]


def _variable(tensor: Tensor) -> Tensor:
    """The same numbers as a tensor to differentiate by; in the graph of ``tensor``, if that has one."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


def _once(tracer: tracing.Tracer | None, function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result; a tracer notes the call as one operation."""
    return tracer.once(function, arguments, new=False) if tracer else function(*arguments)


class Tape(NamedTuple):
    """What a forward pass keeps for the way back."""

    tensors: Tensors  # all inputs of the scan
    plan: Plan
    carries: list[list[Tensor]]  # at the start of every segment
    residuals: list[Any]  # of the last steps, all of which is kept
    cache: Cache  # what depends on the constants alone


def forward(steps: Eager | Traced, *tensors: Tensor) -> tuple[Tensor, ...]:
    """All steps: the last carry, stacked ys, and an empty tensor whose attribute ``tape`` is the ``Tape``."""
    repeated, derives = steps.repeated, any(steps.flags.inputs)
    carry, constants, xs = repeated.split(tensors)
    tape = Tape(tensors, steps.plan(tensors) if derives else Plan(1, 0), [], [], {})
    ys: list[list[Tensor]] = []
    for i in range(len(repeated.numbers)):
        inputs = repeated.at(i, carry, constants, xs)
        if i < len(repeated.numbers) - tape.plan.whole:
            if derives and i % tape.plan.segment == 0:
                tape.carries.append(carry)
            outputs = steps.values(i, inputs, tape.cache)
        else:
            outputs, residual = steps.advance(i, inputs, tape.cache)
            tape.residuals.append(residual)
        carry = outputs[: repeated.carried]
        ys.append(outputs[repeated.carried :])
    token = tensors[0].new_empty(0)
    token.tape = tape  # type: ignore[attr-defined]
    return *carry, *map(torch.stack, zip(*ys)), token


def backward(steps: Eager | Traced, token: Tensor, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of all inputs of ``forward`` from those of its outputs; None where there is none."""
    repeated, tape = steps.repeated, token.tape  # type: ignore[attr-defined]
    count, first, last = len(repeated.numbers), repeated.carried, repeated.carried + repeated.constants
    of_carry, of_ys = list(cotangents[:first]), cotangents[first:]
    totals: list[Tensor | None] = [None] * repeated.constants
    of_xs: list[list[Tensor | None]] = []
    _, constants, xs = repeated.split(tape.tensors)
    whole, size = count - tape.plan.whole, tape.plan.segment  # the first of the steps of which all is kept
    for start, stop in [(whole, count), *((start, min(start + size, whole)) for start in reversed(range(0, whole, size)))]:
        residuals, again = (tape.residuals, stop) if start == whole else ([], stop - 1)  # the last need not be done once more by itself
        if start < whole:
            carry = tape.carries[start // size]
            for i in range(start, again):
                outputs, residual = steps.advance(i, repeated.at(i, carry, constants, xs), tape.cache)
                residuals.append(residual)
                carry = outputs[:first]
        for i in reversed(range(start, stop)):
            given = [*of_carry, *(None if g is None else g[i] for g in of_ys)]
            if i < again:
                grads = steps.pull(i, residuals[i - start], given)
            else:
                grads = steps.pull_anew(i, repeated.at(i, carry, constants, xs), given, tape.cache)
            of_carry = grads[:first]
            totals = [b if a is None else a if b is None else a + b for a, b in zip(totals, grads[first:last])]
            of_xs.append(grads[last:])
    rows = ([g for g in row[::-1] if g is not None] for row in zip(*of_xs))
    return *of_carry, *totals, *(torch.stack(row) if row else None for row in rows)
