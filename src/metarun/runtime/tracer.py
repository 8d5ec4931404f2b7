"""What a function does with tensors, observed below autograd, torch.func and modules, and whether it would do the same again."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metarun.runtime.operation import Operation, Slot
from metarun.runtime.private import TorchDispatchMode, WeakTensorKeyDictionary, mutates, tree_leaves, tree_map

Call = TypeVar("Call", bound=Callable[..., Any])
LONGEST = 10_000  # operations of a program; longer ones take seconds to compile and gain little

aten = torch.ops.aten
SAME = {aten.detach.default, aten.alias.default}  # that do nothing below autograd
MORE_VIEWS = {aten._unsafe_view.default}  # whose ``is_view`` is false
VALUE_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
READERS = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__}  # read values without an operator
ITSELF = object()
_thread = threading.local()  # ``tracer``: that of the thread, while it traces


class CannotRepeat(Exception):
    """What is done depends on more than the arguments' shapes."""


def active() -> Tracer | None:
    """The tracer that notes what this thread does; None where nothing is traced."""
    tracer: Tracer | None = getattr(_thread, "tracer", None)
    return tracer if tracer and tracer.noting else None


def loops_recorded() -> bool:
    """Whether the steps of a loop are to be recorded in this thread, where what is around it is not."""
    return getattr(_thread, "loops", False)


@contextmanager
def recording_loops() -> Iterator[None]:
    """Within, ``loops_recorded``."""
    before, _thread.loops = loops_recorded(), True
    try:
        yield
    finally:
        _thread.loops = before


def opaque(function: Call) -> Call:
    """Mark a function below torch's operators: a tracer notes it as one operation and does not look into it.

    It returns a tensor or a tuple of tensors, all of them new, whose strides follow from the shapes of its arguments.
    """

    @wraps(function)
    def call(*arguments: Any) -> Any:
        tracer = active()
        return tracer.once(function, arguments) if tracer else function(*arguments)

    return call  # type: ignore[return-value]


class Guard(TorchDispatchMode):
    """Lets the code within run, unless what it does depends on more than shapes.

    Args:
        numbers: tensors that stand for numbers. Nothing may be computed with them, as the type of a number decides that of the result.

    Raises:
        CannotRepeat: from the code within, where a value decides what is done, or a number is used.
    """

    def __init__(self, numbers: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.numbers = set(map(id, numbers))
        self.fixed: Any = WeakTensorKeyDictionary()  # numbers in the code, and what is computed of them alone: the same every time

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.check(function, args, kwargs)
        made = function(*args, **(kwargs or {}))
        self.learn(function, args, kwargs, made)
        return made

    def check(self, function: Any, args: tuple[Any, ...], kwargs: Any) -> None:
        """Raise ``CannotRepeat`` if an operation cannot be repeated."""
        if not VALUE_DEPENDENT.isdisjoint(function.tags) and not self.may_look(function, args):
            raise CannotRepeat(f"{function} looks into the data")
        if self.numbers and not self.numbers.isdisjoint(map(id, tree_leaves((args, kwargs)))):
            raise CannotRepeat(f"{function} computes with a number that changes from call to call")

    def may_look(self, function: Any, args: tuple[Any, ...]) -> bool:
        """Whether an operation that depends on values would do the same every time."""
        return (function is aten.index.Tensor and all(map(_is_positions, args[1]))) or self.is_fixed(args)

    def is_fixed(self, tree: Any) -> bool:
        """Whether all tensors in nested values, of which there are some, are ``fixed``."""
        read = tensors(tree)
        return bool(read) and all(tensor in self.fixed for tensor in read)

    def learn(self, function: Any, args: tuple[Any, ...], kwargs: Any, made: Any) -> None:
        """Note which results are ``fixed``."""
        if function is aten.lift_fresh.default or (len(self.fixed) and self.is_fixed((args, kwargs))):  # as of torch.tensor(1.0)
            for tensor in tensors(made):
                self.fixed[tensor] = True
        elif len(self.fixed) and mutates(function):
            written = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
            for tensor in [tensor for tensor in list(self.fixed) if tensor.untyped_storage().data_ptr() in written]:
                del self.fixed[tensor]


class Tracer(Guard):
    """Notes the operations of the code within.

    Args:
        inputs: the tensors that will be others when the operations are repeated.
        numbers: as of ``Guard``.

    Raises:
        CannotRepeat: as ``Guard``, and where a tensor is neither an input nor computed from inputs.
    """

    def __init__(self, inputs: Sequence[Tensor], numbers: Sequence[Tensor] = ()) -> None:
        super().__init__(numbers)
        self.operations: list[Operation] = []
        self.slots: Any = WeakTensorKeyDictionary()
        self.bases: list[Slot | None] = []  # by slot number: the slot in whose memory it lies; None where that is an input's
        self.views: dict[Hashable, Slot] = {}  # by how they see whose memory: one slot for all that are the same
        self.noting = True
        for tensor in inputs:
            self.new(tensor, None)

    def __enter__(self) -> Any:
        self.outer, _thread.tracer = getattr(_thread, "tracer", None), self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _thread.tracer = self.outer
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if not self.noting:
            return function(*args, **kwargs)
        self.check(function, args, kwargs)
        if torch.Tag.inplace_view in function.tags:  # its argument no longer lies where it lay
            self.views.clear()
        made = function(*args, **kwargs)
        self.learn(function, args, kwargs, made)
        if made is None:  # as of a check that raises
            self.note(function, args, kwargs, (), effect=True)
        elif not tensors(made):
            pass  # types and sizes, which stay as they are
        elif function is aten.lift_fresh.default:
            self.note(args[0].clone().clone, (), {}, made)
        elif function in SAME:
            self.slots[made] = self.slot(args[0])
        elif function.is_view or function in MORE_VIEWS:
            self.view(function, args, kwargs, made)
        else:
            effect = mutates(function) or torch.Tag.nondeterministic_seeded in function.tags
            self.note(function, args, kwargs, made, effect=effect)
        return made

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, nothing is noted."""
        self.noting = False
        try:
            yield
        finally:
            self.noting = True

    def once(self, function: Callable[..., Any], arguments: tuple[Any, ...], *, new: bool = True) -> Any:
        """A call of an ``opaque`` function; ``new``: what it returns lies in memory of its own."""
        with self.paused():
            made = function(*arguments)
        self.note(function, arguments, {}, made, base=ITSELF if new else None)
        return made

    def view(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
        """Note views by their place in the memory of their base; of an input, whose place is not known yet, by the operator."""
        base, views = self.bases[self.slot(args[0]).number], tree_leaves(made)
        if interpretation(views[0]) != interpretation(args[0]):
            self.note(function, args, kwargs, made, base=None if base is None else ITSELF)
        elif base is None:
            self.view_of_input(function, args, kwargs, made)
        else:
            for view in views:
                where = place(view)
                if (base, where) in self.views:
                    self.slots[view] = self.views[base, where]
                else:
                    self.operations.append(Operation(aten.as_strided.default, (base, *where), {}, [self.new(view, base)], True, False))

    def view_of_input(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
        """Note one as it is, unless it is its argument or there is the same one already."""
        key = function, repr(self.slotted((args, kwargs)))
        absolute = function is aten.as_strided.default  # in the memory that its argument lies in
        if isinstance(made, Tensor) and place(made) == place(args[0]) and not absolute:
            self.slots[made] = self.slot(args[0])
        elif isinstance(made, Tensor) and key in self.views:
            self.slots[made] = self.views[key]
        else:
            self.note(function, args, kwargs, made, base=None)
            if isinstance(made, Tensor):
                self.views[key] = self.slots[made]

    def note(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any, *, effect: bool = False, base: Any = ITSELF
    ) -> None:
        """Add an operation as it is."""
        arguments, named = self.slotted((args, kwargs))
        outputs = [self._outcome(leaf, base) if isinstance(leaf, Tensor) else None for leaf in tree_leaves(made)]
        self.operations.append(Operation(function, arguments, named, outputs, isinstance(made, Tensor), effect))
        if len(self.operations) > LONGEST:
            raise CannotRepeat(f"more than {LONGEST} operations")

    def _outcome(self, tensor: Tensor, base: Any) -> Slot:
        return self.slots[tensor] if tensor in self.slots else self.new(tensor, base)  # operations in place return an argument

    def new(self, tensor: Tensor, base: Any) -> Slot:
        """The next slot, for a tensor in the memory of ``base``."""
        slot = Slot(len(self.bases))
        self.bases.append(slot if base is ITSELF else base)
        self.slots[tensor] = slot
        own = self.bases[-1]
        if own:
            self.views[own, place(tensor)] = slot
        return slot

    def slot(self, tensor: Tensor) -> Slot:
        """The slot of a tensor that is known."""
        if tensor not in self.slots:
            raise CannotRepeat("a tensor is neither an argument nor made of arguments")
        return self.slots[tensor]

    def slotted(self, tree: Any) -> Any:
        """Nested values with slots in place of tensors."""
        return tree_map(lambda leaf: self.slot(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def tensors(tree: Any) -> list[Tensor]:
    """Those in nested values."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def place(tensor: Tensor) -> tuple[Hashable, ...]:
    """Where in its memory a tensor lies."""
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset()


def interpretation(tensor: Tensor) -> Hashable:
    """How the bytes in memory become a tensor's values."""
    return tensor.dtype, tensor.is_conj(), tensor.is_neg()


def _is_positions(index: Tensor | None) -> bool:
    """Whether an index lists positions, whose number is known, and is no mask."""
    return index is None or index.dtype not in (torch.bool, torch.uint8)


class _NoReaders(TorchFunctionMode):
    """Raises ``CannotRepeat`` where the code within, but not an ``opaque`` function in it, reads values by one of ``READERS``."""

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if function in READERS and (active() or not getattr(_thread, "tracer", None)):
            raise CannotRepeat(f"{function.__name__}() looks into the data")
        return function(*args, **(kwargs or {}))


@contextmanager
def without_hidden_inputs() -> Iterator[None]:
    """Raise ``CannotRepeat`` if the code within uses what no operator shows: one of ``READERS``, Python's or NumPy's global generator."""
    before = generator_states()
    with _NoReaders():
        yield
    if generator_states() != before:
        raise CannotRepeat("Python's or NumPy's global generator decides something")


def generator_states() -> Hashable:
    """How far Python's and NumPy's global generators are."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - the one that this is about
    return random.getstate(), numpy["state"]["key"].tobytes(), numpy["state"]["pos"], numpy["has_gauss"]
