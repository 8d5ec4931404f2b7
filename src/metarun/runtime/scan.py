"""A loop whose derivative is a loop: K times the same step of flat lists of tensors, of which one step alone is ever traced.

The forward pass keeps what the way back needs of each step, or only the carry at the start of every segment of steps, from which a
segment is then computed again (rematerialisation). Under torch.vmap a scan is the scan of the vmapped step. A derivative that is to be
differentiated again is a scan in its turn, over the saved carries in reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from contextlib import nullcontext
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.runtime import tracer as tracing
from metarun.runtime.program import Program, Slot, slots
from metarun.runtime.tracer import CannotRepeat, Tracer, without_hidden_inputs

Tensors = Sequence[Tensor]
Body = Callable[[Tensor, Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]  # (k, carry, constants, x) -> (next carry, y)
KEPT_BYTES = 512 * 2**20  # of what all steps keep for the way back; beyond it, steps are computed again in segments
PAYS = 8  # steps from which on tracing one pays within a single call


class Unsteady(Exception):
    """A step that is not the same computation as the one before it, or not one of its arguments alone."""


@dataclass(frozen=True)
class Scan:
    """K steps (carry, y_k) = body(k, carry, constants, xs_k).

    Attributes:
        body: one step; pure, and of the same operations for every k unless k, a 0-d int64 tensor, decides otherwise.
        numbers: the values of k, one after another.
        carried, constants: how many of the tensors are the carry, and how many the constants; the others, with a leading axis of length K,
            are the xs.
        derives: whether derivatives may be asked for.
        segment: steps between carries that are kept for the way back; 0 keeps what each step needs; None decides by ``KEPT_BYTES``.
    """

    body: Body
    numbers: range
    carried: int
    constants: int
    derives: bool
    segment: int | None = None

    def __call__(self, *tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The last carry, and every y with a leading axis of length K."""
        made = _Scan.apply(_Run(self), *tensors)
        return list(made[: self.carried]), list(made[self.carried :])

    def split(self, tensors: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Carry, constants and xs."""
        first, last = self.carried, self.carried + self.constants
        return list(tensors[:first]), list(tensors[first:last]), list(tensors[last:])


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(run: _Run, *tensors: Tensor) -> tuple[Tensor, ...]:
        return run.forward(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.run, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        if ctx.run.differentiable is not None:  # None above the level at which it runs
            ctx.mark_non_differentiable(*(leaf for leaf, yes in zip(output, ctx.run.differentiable) if not yes))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            return None, *ctx.run.differentiable_backward(ctx.saved_tensors, cotangents)
        return None, *ctx.run.backward(cotangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], run: _Run, *tensors: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        scan = run.scan
        carry, constants, xs = scan.split(tensors)
        carry_dims, constant_dims, xs_dims = scan.split(in_dims[1:])
        carry = [t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip(carry, carry_dims)]
        xs = [x if dim is None else x.movedim(dim, 1) for x, dim in zip(xs, xs_dims)]
        dims = [0] * len(carry), constant_dims, [None if dim is None else 0 for dim in xs_dims]

        def body(k: Tensor, carry: Tensors, constants: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
            step = torch.vmap(partial(scan.body, k), in_dims=dims, randomness=info.randomness)
            return step(list(carry), list(constants), list(x))

        made = _Scan.apply(_Run(replace(scan, body=body)), *carry, *constants, *xs)
        return made, (*[0] * scan.carried, *[1] * (len(made) - scan.carried))


class Flags(NamedTuple):
    """Which tensors of a step take part in derivatives."""

    inputs: list[bool]  # of carry, constants and x
    outputs: list[bool]  # of next carry and y


class _Run:
    """One execution of a scan, on plain tensors."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self.differentiable: list[bool] | None = None

    def forward(self, tensors: Tensors) -> tuple[Tensor, ...]:
        scan, tracer = self.scan, tracing.active()
        self.steps: _Eager | _Traced = _Eager(scan, tensors)
        self.differentiable = self.steps.flags.outputs
        if tracer or (tracing.loops_recorded() and len(scan.numbers) >= PAYS):
            traced = _Traced(self.steps)
            try:
                made = (tracer.once if tracer else _call)(partial(_forward, traced), tuple(tensors), new=False)
                self.steps = traced
                traced.close()
            except CannotRepeat:
                made = None
            if made is not None:
                *outputs, self.token = made
                return tuple(outputs)
        *outputs, self.token = _forward(self.steps, *tensors)
        return tuple(outputs)

    def backward(self, cotangents: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        tracer = tracing.active()
        traced = tracer is not None and isinstance(self.steps, _Traced)
        return (tracer.once if traced and tracer else _call)(partial(_backward, self.steps), (self.token, *cotangents), new=False)

    def differentiable_backward(self, tensors: Tensors, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """``backward`` in differentiable operations: the forward pass once more for its carries, then a scan from the last to the first."""
        scan, flags = self.scan, self.steps.flags
        carry, constants, xs = scan.split(tensors)
        of_carry, of_constants, of_xs = scan.split(flags.inputs)

        def tracking(k: Tensor, carry: Tensors, constants: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
            return scan.body(k, carry, constants, x)[0], carry

        _, carries = replace(scan, body=tracking)(*tensors)
        at_end, of_ys = list(cotangents[: scan.carried]), list(cotangents[scan.carried :])
        last = [g if g is not None else torch.zeros_like(t) for g, t, yes in zip(at_end, carry, of_carry) if yes]
        totals = [torch.zeros_like(t) for t, yes in zip(constants, of_constants) if yes]
        present = [g is not None for g in of_ys]
        given = [carries, xs, [g for g in of_ys if g is not None]]

        def back(k: Tensor, running: Tensors, constants: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
            create = torch.is_grad_enabled()
            carry, x, of_y = x[: scan.carried], x[scan.carried : scan.carried + len(xs)], iter(x[scan.carried + len(xs) :])
            inputs = [_variable(t) if yes else t for t, yes in zip((*carry, *constants, *x), flags.inputs)]
            with torch.enable_grad():
                outputs = [leaf for part in scan.body(k, *scan.split(inputs)) for leaf in part]
            of_next = iter(running[: len(last)])
            cotangents = [*(next(of_next) if yes else None for yes in of_carry), *(next(of_y) if yes else None for yes in present)]
            pairs = [(leaf, g) for leaf, g in zip(outputs, cotangents) if g is not None and leaf.requires_grad]
            wanted = [t for t, yes in zip(inputs, flags.inputs) if yes]
            if pairs:
                grads = torch.autograd.grad(*_columns(pairs, wanted), create_graph=create, materialize_grads=True, allow_unused=True)
            else:
                grads = tuple(map(torch.zeros_like, wanted))
            ends = len(last), len(last) + len(totals)
            return [*grads[: ends[0]], *(a + b for a, b in zip(running[ends[0] :], grads[ends[0] : ends[1]]))], grads[ends[1] :]

        reverse = Scan(back, scan.numbers[::-1], len(last) + len(totals), len(constants), scan.derives, scan.segment)
        summed, of_x = reverse(*last, *totals, *constants, *(t.flip(0) for part in given for t in part))
        found = iter([*summed, *(t.flip(0) for t in of_x)])
        return [next(found) if yes else None for yes in flags.inputs]


def _variable(tensor: Tensor) -> Tensor:
    """The same numbers as a tensor of its own, to be differentiated by; in the graph of ``tensor``, if it has one."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


def _columns(pairs: list[tuple[Tensor, Tensor]], wanted: list[Tensor]) -> tuple[Any, ...]:
    """Outputs, inputs and gradients of the outputs, as torch.autograd.grad takes them."""
    return [leaf for leaf, _ in pairs], wanted, [g for _, g in pairs]


def _closed(*_: Any) -> Any:
    raise RuntimeError("a step of this scan has other strides than when it was recorded")


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], new: bool) -> Any:
    return function(*arguments)


class Kept(NamedTuple):
    """What a forward pass keeps for the way back."""

    tensors: Tensors  # all inputs of the scan
    carries: list[list[Tensor]]  # at the start of every segment
    residuals: list[Any]  # of every step, or nothing where segments are computed again
    segment: int


def _forward(steps: _Eager | _Traced, *tensors: Tensor) -> tuple[Tensor, ...]:
    """All steps: last carry, stacked ys, and an empty tensor that holds what is ``Kept``."""
    scan, derives = steps.scan, any(steps.flags.inputs)
    carry, constants, xs = scan.split(tensors)
    ys: list[list[Tensor]] = []
    kept = Kept(tensors, [], [], steps.segment(tensors) if derives else 0)
    for i in range(len(scan.numbers)):
        inputs = [*carry, *constants, *(x[i] for x in xs)]
        if not derives or kept.segment:
            if derives and i % kept.segment == 0:
                kept.carries.append(carry)
            outputs = steps.values(i, inputs)
        else:
            outputs, residual = steps.advance(i, inputs)
            kept.residuals.append(residual)
        carry = outputs[: scan.carried]
        ys.append(outputs[scan.carried :])
    token = tensors[0].new_empty(0)
    token.kept = kept  # type: ignore[attr-defined]
    return *carry, *map(torch.stack, zip(*ys)), token


def _backward(steps: _Eager | _Traced, token: Tensor, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of all inputs of a scan; None where there is none."""
    scan, kept = steps.scan, token.kept  # type: ignore[attr-defined]
    count, last = len(scan.numbers), scan.carried + scan.constants
    of_carry, of_ys = list(cotangents[: scan.carried]), cotangents[scan.carried :]
    totals: list[Tensor | None] = [None] * scan.constants
    of_xs: list[list[Tensor | None]] = []
    _, constants, xs = scan.split(kept.tensors)
    size = kept.segment or count
    for start in reversed(range(0, count, size)):
        stop = min(start + size, count)
        residuals: list[Any] = kept.residuals
        if kept.segment:
            residuals, carry = [], kept.carries[start // size]
            for i in range(start, stop):
                inputs = [*carry, *constants, *(x[i] for x in xs)]
                if i + 1 < stop:
                    outputs, residual = steps.advance(i, inputs)
                    residuals.append(residual)
                    carry = outputs[: scan.carried]
        for i in reversed(range(start, stop)):
            given = [*of_carry, *(None if g is None else g[i] for g in of_ys)]
            if kept.segment and i + 1 == stop:
                grads = steps.pull_anew(i, inputs, given)
            else:
                grads = steps.pull(i, residuals[i - start], given)
            of_carry = grads[: scan.carried]
            for j, grad in enumerate(grads[scan.carried : last]):
                if grad is not None:
                    totals[j] = grad if totals[j] is None else totals[j] + grad
            of_xs.append(grads[last:])
    stacked = [None if any(g is None for g in row) else torch.stack(row[::-1]) for row in map(list, zip(*of_xs))]
    return *of_carry, *totals, *stacked


class _Eager:
    """The steps of a scan, by autograd."""

    def __init__(self, scan: Scan, tensors: Tensors) -> None:
        self.scan = scan
        carry, constants, xs = scan.split(tensors)
        flags = [scan.derives and t.requires_grad for t in (*carry, *constants, *xs)]
        self.flags = Flags(flags, [])
        self.first: tuple[list[Tensor], list[Tensor]] | None = None
        first = [*carry, *constants, *(x[0] for x in xs)]
        tracer = tracing.active()
        while True:  # a part of the carry may come to depend on others that need a gradient
            with tracer.paused() if tracer else nullcontext():
                leaves, outputs = self.graph(0, first)
            self.flags = Flags(flags, [t.requires_grad for t in outputs])
            if not ends(outputs) <= set(map(id, leaves)):
                raise Unsteady("a step depends on a tensor with a gradient that is not among its arguments")
            more = [a or b for a, b in zip(flags, self.flags.outputs[: scan.carried])]
            if not any(flags) or more == flags[: scan.carried]:
                break
            flags[: scan.carried] = more
        self.first = None if tracer else (leaves, outputs)  # the first step is done

    def number(self, i: int) -> Tensor:
        return torch.tensor(self.scan.numbers[i])

    def graph(self, i: int, inputs: Tensors, k: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """A step's inputs, those that take part in derivatives as leaves of a graph, and its outputs in that graph."""
        if self.first and not i and k is None:
            made, self.first = self.first, None
            return made
        leaves = [t.detach().requires_grad_() if yes else t.detach() for t, yes in zip(inputs, self.flags.inputs)]
        with torch.set_grad_enabled(self.scan.derives):
            carry, y = self.scan.body(self.number(i) if k is None else k, *self.scan.split(leaves))
        return leaves, [*carry, *y]

    def segment(self, tensors: Tensors) -> int:
        """Steps between carries that are kept."""
        return self.scan.segment or 0

    def values(self, i: int, inputs: Tensors) -> list[Tensor]:
        """Next carry and y."""
        return [t.detach() for t in self.graph(i, inputs)[1]]

    def advance(self, i: int, inputs: Tensors) -> tuple[list[Tensor], Any]:
        """Next carry and y, and what ``pull`` needs."""
        leaves, outputs = self.graph(i, inputs)
        return [t.detach() for t in outputs], (leaves, outputs)

    def pull(self, i: int, residual: Any, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of a step's inputs from those of its outputs."""
        leaves, outputs = residual
        pairs = [(t, laid_as(t, g)) for t, g in zip(outputs, cotangents) if t.requires_grad]
        wanted = [t for t, yes in zip(leaves, self.flags.inputs) if yes]
        found = iter(torch.autograd.grad(*_columns(pairs, wanted), allow_unused=True))
        return [next(found) if yes else None for yes in self.flags.inputs]

    def pull_anew(self, i: int, inputs: Tensors, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """``pull`` of a step that kept nothing."""
        return self.pull(i, self.graph(i, inputs), cotangents)


def ends(outputs: Tensors) -> set[int]:
    """The ids of the leaves of the graph of ``outputs``."""
    found, seen = {id(t) for t in outputs if t.requires_grad and t.grad_fn is None}, set()
    nodes = [t.grad_fn for t in outputs]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found |= {id(node.variable)} if hasattr(node, "variable") else set()
            nodes += [following for following, _ in node.next_functions]
    return found


def laid_as(like: Tensor, grad: Tensor | None) -> Tensor:
    """A gradient of ``like`` with its strides; zeros where there is none."""
    if grad is None:
        return torch.zeros_like(like)
    if grad.stride() == like.stride():
        return grad
    place = torch.empty_like(like)
    return grad if grad.stride() == place.stride() else place.copy_(grad)


@dataclass
class _Step:
    """A step as programs; those that are not needed are not compiled."""

    operations: list[Any]
    forward_operations: int
    inputs: list[Slot]
    outputs: list[Slot]
    residuals: list[Slot] = field(default_factory=list)
    cotangents: list[Slot] = field(default_factory=list)
    grads: Any = None
    likes: list[Tensor | None] = field(default_factory=list)  # tensors of the shapes and strides of the cotangents

    @cached_property
    def values(self) -> Program:
        return Program(self.operations[: self.forward_operations], self.inputs, self.outputs)

    @cached_property
    def advance(self) -> Program:
        return Program(self.operations[: self.forward_operations], self.inputs, (self.outputs, self.residuals))

    @cached_property
    def pull(self) -> Program:
        return Program(self.operations[self.forward_operations :], [*self.residuals, *self.cotangents], self.grads)

    @cached_property
    def pull_anew(self) -> Program:
        return Program(self.operations, [*self.inputs, *self.cotangents], self.grads)


class _Traced:
    """The steps of a scan, as programs: one for all, or one for each k where k decides what is done."""

    def __init__(self, eager: _Eager) -> None:
        self.eager, self.scan, self.flags = eager, eager.scan, eager.flags
        eager.first = None  # its graph, which is not needed
        self.known: dict[Hashable, _Step] = {}
        self.by_number = False
        self.numbers = [torch.tensor(k) for k in self.scan.numbers]

    def step(self, i: int, inputs: Tensors) -> _Step:
        """The programs for step i with a carry of these strides."""
        strides = tuple(t.stride() for t in inputs[: self.scan.carried])
        key = (strides, self.scan.numbers[i]) if self.by_number else strides
        if key not in self.known:
            if not self.by_number:
                try:
                    self.known[key] = self.trace(i, inputs)
                except CannotRepeat:
                    self.by_number = True
                    return self.step(i, inputs)
            else:
                self.known[key] = self.trace(i, inputs)
        return self.known[key]

    def trace(self, i: int, inputs: Tensors) -> _Step:
        """Do a step, and its way back, and note it."""
        k = self.numbers[i]
        with without_hidden_inputs(), Tracer([k, *inputs]) as tracer:
            # Made within, k is a constant, whose value may decide what is done.
            leaves, outputs = self.eager.graph(i, inputs, None if self.by_number else k)
            made = len(tracer.operations)
            step = _Step(tracer.operations, made, [tracer.slot(t) for t in (k, *inputs)], [tracer.slot(t) for t in outputs])
            if not any(self.flags.inputs):
                return step
            cotangents: list[Tensor | None] = []
            for leaf, yes in zip(outputs, self.flags.outputs):
                with tracer.paused():
                    cotangents.append(torch.zeros_like(leaf) if yes else None)
                step.likes.append(cotangents[-1])
                if yes:
                    step.cotangents.append(tracer.new(cotangents[-1], None))
            step.grads = tracer.slotted(self.eager.pull(i, (leaves, outputs), cotangents))
            before = {*step.inputs, *(s for operation in tracer.operations[:made] for s in slots(operation.outputs))}
            read = dict.fromkeys(s for o in tracer.operations[made:] for s in slots((o.arguments, o.named)))
            read |= dict.fromkeys(slots(step.grads))
            step.residuals = [s for s in read if s in before]
        return step

    def close(self) -> None:
        """Let go of the step, with all that it closes over: everything is known."""
        self.scan = replace(self.scan, body=_closed)
        del self.eager

    def segment(self, tensors: Tensors) -> int:
        if self.scan.segment is not None:
            return self.scan.segment
        carry, constants, xs = self.scan.split(tensors)
        inputs = [*carry, *constants, *(x[0] for x in xs)]
        _, residuals = self.step(0, inputs).advance([self.numbers[0], *inputs])
        given = {t.untyped_storage().data_ptr() for t in tensors}
        own = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in residuals}
        size = sum(bytes for place, bytes in own.items() if place not in given)
        return 0 if size * len(self.numbers) <= KEPT_BYTES else isqrt(len(self.numbers))

    def values(self, i: int, inputs: Tensors) -> list[Tensor]:
        return self.step(i, inputs).values([self.numbers[i], *inputs])

    def advance(self, i: int, inputs: Tensors) -> tuple[list[Tensor], Any]:
        step = self.step(i, inputs)
        outputs, residuals = step.advance([self.numbers[i], *inputs])
        return outputs, (step, residuals)

    def pull(self, i: int, residual: Any, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        step, residuals = residual
        return step.pull([*residuals, *self.laid(step, cotangents)])

    def pull_anew(self, i: int, inputs: Tensors, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        step = self.step(i, inputs)
        return step.pull_anew([self.numbers[i], *inputs, *self.laid(step, cotangents)])

    def laid(self, step: _Step, cotangents: Sequence[Tensor | None]) -> list[Tensor]:
        return [laid_as(like, g) for like, g in zip(step.likes, cotangents) if like is not None]
