"""One step of a loop, and its derivative: by autograd, or as programs that were recorded from it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metarun.runtime import tracer as tracing
from metarun.runtime.operation import Slot, slots
from metarun.runtime.program import Program
from metarun.runtime.tracer import LONGEST, CannotRepeat, Tracer, without_hidden_inputs

Tensors = Sequence[Tensor]
Body = Callable[[Tensor, Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]
Kept = int | Literal["all", "states", "auto"]
KEPT_BYTES = 512 * 2**20  # that a loop keeps for the way back with ``auto``
STATE_BYTES = 64 * 2**20  # the same with ``states``
_within: ContextVar[bool] = ContextVar("a step of a scan", default=False)


def within_a_step() -> bool:
    """Whether a step of a scan is at work, which keeps no more of it for the way back than it is told to."""
    return _within.get()


class Plan(NamedTuple):
    """What a scan keeps for the way back: a carry now and then, and of its last steps all that they need."""

    segment: int  # steps from one carry that is kept to the next, 1 or more
    whole: int  # steps at the end of which all is kept


class Unsteady(Exception):
    """A step is not the same computation as the one before it, or depends on more than its arguments."""


@dataclass(frozen=True)
class Repeated:
    """K steps (carry, y_k) = body(k, carry, constants, xs_k) of flat lists of tensors.

    Attributes:
        body: one step; pure. k is a 0-d int64 tensor.
        numbers: the values of k, one after another.
        carried, constants: how many of the tensors are the carry, and how many the constants; those after them are the xs, each with a
            leading axis of length K.
        derives: whether derivatives may be asked for.
        kept: for the way back: ``all`` that each step needs; ``auto``, what fits into ``KEPT_BYTES``: beside the state before every √K-th
            step, from which the others are computed again, all that the last steps need; ``states``, what fits into ``STATE_BYTES``: the
            states before as many steps as possible, and then the same; or a number n, the state before every n-th step.
    """

    body: Body
    numbers: range
    carried: int
    constants: int
    derives: bool
    kept: Kept = "auto"

    def split(self, tensors: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Carry, constants and xs, or what else there is one of for each of them."""
        first, last = self.carried, self.carried + self.constants
        return list(tensors[:first]), list(tensors[first:last]), list(tensors[last:])

    def at(self, i: int, carry: Tensors, constants: Tensors, xs: Tensors) -> list[Tensor]:
        """The inputs of step i."""
        return [*carry, *constants, *(x[i] for x in xs)]

    def plan(self, tensors: Tensors, step_bytes: int | None) -> Plan:
        """What to keep; ``step_bytes``: what one step needs for the way back beside its carry, None where that is not known."""
        steps, few = len(self.numbers), self.kept == "states"
        if isinstance(self.kept, int):
            return Plan(self.kept, 0)
        if self.kept == "all":
            return Plan(1, steps)
        state = sum(t.numel() * t.element_size() for t in tensors[: self.carried])
        budget = STATE_BYTES if few else KEPT_BYTES
        segment = max(1, min(isqrt(steps), -(-steps * state // budget) if few else steps))
        if step_bytes is None:
            return Plan(segment, 0 if few else steps)
        if steps * (state + step_bytes) <= budget:
            return Plan(segment, steps)
        left = budget - steps * state // segment - segment * step_bytes  # a segment has all that its steps need when its turn comes
        return Plan(segment, max(0, left // (state - state // segment + step_bytes)))


class Flags(NamedTuple):
    """Which tensors of a step take part in derivatives."""

    inputs: list[bool]  # of carry, constants and x
    outputs: list[bool]  # of the next carry and y


Cache = dict[int, list[Tensor]]  # by step: what its ``once`` made, in one run


class Eager:
    """The steps, by autograd.

    Raises:
        Unsteady: a step depends on a tensor with a gradient that is not among its inputs.
    """

    def __init__(self, repeated: Repeated, tensors: Tensors) -> None:
        self.repeated = repeated
        first = repeated.at(0, *repeated.split(tensors))
        inputs = [repeated.derives and t.requires_grad for t in first]
        self.flags = Flags(inputs, [])
        self.done: tuple[list[Tensor], list[Tensor]] | None = None
        tracer = tracing.active()
        while True:
            with tracer.paused() if tracer else nullcontext():
                leaves, outputs = self.graph(0, first)
            self.flags = Flags(inputs, [t.requires_grad for t in outputs])
            if not ends(outputs) <= set(map(id, leaves)):
                raise Unsteady("a step depends on a tensor with a gradient that is not among its inputs")
            more = [a or b for a, b in zip(inputs, self.flags.outputs[: repeated.carried])]
            if more == inputs[: repeated.carried]:
                break
            inputs = [*more, *inputs[repeated.carried :]]  # a part of the carry depends on others that have a gradient
            self.flags = Flags(inputs, [])
        self.done = None if tracer else (leaves, outputs)  # the first step, for its turn

    def graph(self, i: int, inputs: Tensors, k: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Step i: its inputs, of which those that take part in derivatives are leaves of a graph, and its outputs in that graph."""
        if self.done and i == 0 and k is None:
            made, self.done = self.done, None
            return made
        leaves = [t.detach().requires_grad_() if yes else t.detach() for t, yes in zip(inputs, self.flags.inputs)]
        token = _within.set(True)
        try:
            with torch.set_grad_enabled(self.repeated.derives):
                carry, y = self.repeated.body(torch.tensor(self.repeated.numbers[i]) if k is None else k, *self.repeated.split(leaves))
        finally:
            _within.reset(token)
        return leaves, [*carry, *y]

    def plan(self, tensors: Tensors) -> Plan:
        """See ``Repeated.plan``; what autograd keeps is not counted."""
        return self.repeated.plan(tensors, None)

    def values(self, i: int, inputs: Tensors, cache: Cache) -> list[Tensor]:
        """Next carry and y."""
        return [t.detach() for t in self.graph(i, inputs)[1]]

    def advance(self, i: int, inputs: Tensors, cache: Cache) -> tuple[list[Tensor], Any]:
        """Next carry and y, and what ``pull`` needs."""
        leaves, outputs = self.graph(i, inputs)
        return [t.detach() for t in outputs], (leaves, outputs)

    def pull(self, i: int, residual: Any, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of the inputs of step i from those of its outputs; None where there is none."""
        leaves, outputs = residual
        pairs = [(t, laid_as(t, g)) for t, g in zip(outputs, cotangents) if t.requires_grad]
        wanted = [t for t, yes in zip(leaves, self.flags.inputs) if yes]
        found = iter(gradients(pairs, wanted, create_graph=False))
        return [next(found) if yes else None for yes in self.flags.inputs]

    def pull_anew(self, i: int, inputs: Tensors, cotangents: Sequence[Tensor | None], cache: Cache) -> list[Tensor | None]:
        """``pull`` of a step that kept nothing."""
        return self.pull(i, self.graph(i, inputs), cotangents)


@dataclass
class Step:
    """A step that was traced with its way back; its programs are compiled when they are first needed."""

    operations: list[Any]
    forward: int  # how many of the operations are those of the step itself
    inputs: list[Slot]
    constants: list[Slot]
    outputs: list[Slot]
    before: list[Any] = field(default_factory=list)  # operations on constants alone, whose results are the same in every step
    still: list[Slot] = field(default_factory=list)  # those results that others read
    residuals: list[Slot] = field(default_factory=list)  # what the way back reads of the step: inputs, or results of its operations
    cotangents: list[Slot] = field(default_factory=list)
    grads: Any = None
    likes: list[Tensor | None] = field(default_factory=list)  # by output: a tensor of the shape and strides of its gradient

    def hoist(self, bases: Sequence[Slot | None]) -> None:
        """Move out of the step what depends on constants alone; nothing that is written to, by the slots in whose memory others lie."""

        def base(slot: Slot) -> Slot:
            return bases[slot.number] or slot

        written = {base(s) for o in self.operations if o.effect for s in slots((o.arguments, o.named, o.outputs))}
        known, rest = set(self.constants), list[Any]()
        for operation in self.operations[: self.forward]:
            made = slots(operation.outputs)
            moves = known.issuperset(slots((operation.arguments, operation.named))) and written.isdisjoint(map(base, made))
            (self.before if moves and not operation.effect else rest).append(operation)
            known.update(made if moves and not operation.effect else ())
        self.operations, self.forward = [*rest, *self.operations[self.forward :]], len(rest)
        read = dict.fromkeys([*(s for o in self.operations for s in slots((o.arguments, o.named))), *self.outputs, *slots(self.grads)])
        self.still = [s for s in read if s in known and s not in self.constants]
        self.inputs = [*self.inputs, *self.still]

    @cached_property
    def once(self) -> Program:
        """From constants to ``still``, which the other programs take as further inputs."""
        return Program(self.before, self.constants, self.still)

    @cached_property
    def values(self) -> Program:
        """From inputs to outputs."""
        return Program(self.operations[: self.forward], self.inputs, self.outputs)

    @cached_property
    def advance(self) -> Program:
        """From inputs to outputs and residuals."""
        return Program(self.operations[: self.forward], self.inputs, (self.outputs, self.residuals))

    @cached_property
    def pull(self) -> Program:
        """From residuals and the gradients of the outputs to those of the inputs."""
        return Program(self.operations[self.forward :], [*self.residuals, *self.cotangents], self.grads)

    @cached_property
    def pull_anew(self) -> Program:
        """From inputs and the gradients of the outputs to those of the inputs."""
        return Program(self.operations, [*self.inputs, *self.cotangents], self.grads)


class Traced:
    """The steps, as programs: one for all, or one for each k where k decides what is done.

    Raises:
        CannotRepeat: from the methods, where a step does not do the same every time.
    """

    def __init__(self, eager: Eager) -> None:
        eager.done = None
        self.eager: Eager | None = eager
        self.repeated, self.flags = eager.repeated, eager.flags
        self.known: dict[Hashable, Step] = {}
        self.by_number = False
        self.step_bytes: int | None = None
        self.numbers = [torch.tensor(k) for k in self.repeated.numbers]

    def close(self) -> None:
        """Let go of the body, with all that it closes over: every step is known."""
        self.eager, self.repeated = None, replace(self.repeated, body=_closed)

    def step(self, i: int, inputs: Tensors) -> Step:
        """The programs for step i with a carry of these strides."""
        strides = tuple(t.stride() for t in inputs[: self.repeated.carried])
        key = (strides, self.repeated.numbers[i] if self.by_number else None)
        if key not in self.known:
            try:
                self.known[key] = self.trace(i, inputs)
            except CannotRepeat:
                if self.by_number:
                    raise
                self.by_number = True
                return self.step(i, inputs)
            if sum(len(step.operations) for step in self.known.values()) > LONGEST:
                raise CannotRepeat(f"more than {LONGEST} operations")
        return self.known[key]

    def trace(self, i: int, inputs: Tensors) -> Step:
        """Do step i and its way back, and note what is done."""
        assert self.eager, "a step has other strides than when it was recorded"
        number = self.numbers[i]
        with without_hidden_inputs(), Tracer([number, *inputs]) as tracer:
            # Without ``number`` the step makes its own, which is a constant of the code, and may decide what is done.
            leaves, outputs = self.eager.graph(i, inputs, None if self.by_number else number)
            forward = len(tracer.operations)
            given, made = ([tracer.slot(t) for t in row] for row in ((number, *inputs), outputs))
            step = Step(tracer.operations, forward, given, self.repeated.split(given[1:])[1], made)
            if any(self.flags.inputs):
                with tracer.paused():
                    step.likes = [torch.zeros_like(t) if yes else None for t, yes in zip(outputs, self.flags.outputs)]
                step.cotangents = [tracer.new(like, None) for like in step.likes if like is not None]
                step.grads = tracer.slotted(self.eager.pull(i, (leaves, outputs), step.likes))
            step.hoist(tracer.bases)
            if any(self.flags.inputs):
                before = {*step.inputs, *(s for operation in step.operations[: step.forward] for s in slots(operation.outputs))}
                read = [s for operation in step.operations[step.forward :] for s in slots((operation.arguments, operation.named))]
                step.residuals = [s for s in dict.fromkeys([*read, *slots(step.grads)]) if s in before]
        return step

    def plan(self, tensors: Tensors) -> Plan:
        """See ``Repeated.plan``."""
        if self.repeated.kept in ("auto", "states") and self.step_bytes is None:
            self.step_bytes = self.measure(tensors)
        return self.repeated.plan(tensors, self.step_bytes)

    def measure(self, tensors: Tensors) -> int:
        """Bytes of what the first step keeps for the way back beside the scan's own inputs."""
        _, (_, residuals) = self.advance(0, self.repeated.at(0, *self.repeated.split(tensors)), {})
        given = {t.untyped_storage().data_ptr() for t in tensors}
        own = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in residuals}
        return sum(size for place, size in own.items() if place not in given)

    def ready(self, i: int, inputs: Tensors, cache: Cache) -> tuple[Step, list[Tensor]]:
        """The step, and all inputs of its programs."""
        step = self.step(i, inputs)
        if id(step) not in cache:
            cache[id(step)] = step.once(self.repeated.split(inputs)[1]) if step.still else []
        return step, [self.numbers[i], *inputs, *cache[id(step)]]

    def values(self, i: int, inputs: Tensors, cache: Cache) -> list[Tensor]:
        """As of ``Eager``; so are the others."""
        step, given = self.ready(i, inputs, cache)
        return step.values(given)

    def advance(self, i: int, inputs: Tensors, cache: Cache) -> tuple[list[Tensor], Any]:
        step, given = self.ready(i, inputs, cache)
        outputs, residuals = step.advance(given)
        return outputs, (step, residuals)

    def pull(self, i: int, residual: Any, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        step, residuals = residual
        return step.pull([*residuals, *_laid(step, cotangents)])

    def pull_anew(self, i: int, inputs: Tensors, cotangents: Sequence[Tensor | None], cache: Cache) -> list[Tensor | None]:
        step, given = self.ready(i, inputs, cache)
        return step.pull_anew([*given, *_laid(step, cotangents)])


def _laid(step: Step, cotangents: Sequence[Tensor | None]) -> list[Tensor]:
    return [laid_as(like, g) for like, g in zip(step.likes, cotangents) if like is not None]


def _closed(*_: Any) -> Any:
    raise AssertionError("a loop that was recorded makes no step but those that are known")


def laid_as(like: Tensor, grad: Tensor | None) -> Tensor:
    """A gradient of ``like`` with its strides; zeros where there is none."""
    if grad is None:
        return torch.zeros_like(like)
    if grad.stride() == like.stride():
        return grad
    place = torch.empty_like(like)
    return grad if grad.stride() == place.stride() else place.copy_(grad)


def gradients(pairs: list[tuple[Tensor, Tensor]], inputs: list[Tensor], *, create_graph: bool) -> Sequence[Tensor | None]:
    """Gradients of ``inputs`` from pairs of an output and its gradient; None, or zeros in a graph, where there is none."""
    if not pairs:
        return [torch.zeros_like(t) if create_graph else None for t in inputs]
    outputs, given = zip(*pairs)
    return torch.autograd.grad(outputs, inputs, given, create_graph=create_graph, allow_unused=True)


def ends(outputs: Tensors) -> set[int]:
    """The ids of the leaves of the graph of ``outputs``."""
    found, seen = {id(t) for t in outputs if t.requires_grad and t.grad_fn is None}, set[Any]()
    nodes = [t.grad_fn for t in outputs]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                found.add(id(node.variable))
            nodes += [following for following, _ in node.next_functions]
    return found
