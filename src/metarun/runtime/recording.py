"""What a function does with tensors, recorded once and then done again without the Python around it.
Of a step on a small net that is the larger part: transforms, autograd and modules cost more than the arithmetic that they arrange."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from types import MethodType
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

Call = TypeVar("Call", bound=Callable[..., Any])
Function = Callable[[Any, Any], Any]
EAGER = 2  # calls before one is recorded, which costs several and pays when there are many
MOST = 32  # kinds of calls of one module that are remembered: settings may change with every call
LONGEST = 10_000  # operations of a program, which is memory as well: many inner steps take long enough without Python's part

aten = torch.ops.aten
SAME = {aten.detach.default, aten.alias.default}  # of no effect below autograd
UNSAID = {aten._unsafe_view.default}  # views that do not say so
VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
LOOKS = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__}  # that no operator is called for
ITSELF = object()
PLAIN = (int, float, str, type(None))  # values that hold no others
BOOKS = vars(nn.Module()).keys() - {"training"}  # torch's own attributes of a module
_thread = threading.local()  # whose ``recorder`` is that of the thread, while it records


class CannotRepeat(Exception):
    """What is done depends on more than the arguments' shapes."""


def whole(function: Call) -> Call:
    """Mark a function below torch's operators: a recording has it as one operation.

    It returns a tensor or a tuple of them, new ones, laid out as the shapes of its arguments say.
    """

    @wraps(function)
    def call(*arguments: Any) -> Any:
        recorder: Recorder | None = getattr(_thread, "recorder", None)
        return recorder.once(function, arguments) if recorder and recorder.noting else function(*arguments)

    return call  # type: ignore[return-value]


@dataclass(frozen=True)
class Slot:
    """A tensor of a program: an argument, or the outcome of an operation."""

    number: int


class Operation(NamedTuple):
    """A call in a program, with slots in place of tensors."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    outputs: list[Slot | None]  # None: what is no tensor
    single: bool  # returns a tensor, not a tuple of them
    kept: bool  # has an effect beside what it returns


class Watch(TorchDispatchMode):
    """Does what the code within does, unless that depends on more than the tensors' shapes.

    Args:
        numbers: tensors in place of numbers, with which nothing may be computed: a number does not decide the type of what comes of it.

    Raises:
        CannotRepeat: from the code within, where a value decides what is done, or a number is used.
    """

    def __init__(self, numbers: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.numbers = set(map(id, numbers))

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.check(function, args, kwargs)
        return function(*args, **(kwargs or {}))

    def check(self, function: Any, args: tuple[Any, ...], kwargs: Any) -> None:
        """Raise ``CannotRepeat`` if an operation cannot be repeated."""
        if VALUES & set(function.tags) and not (function is aten.index.Tensor and all(map(_places, args[1]))):
            raise CannotRepeat(f"{function} looks into the data")
        if self.numbers and not self.numbers.isdisjoint(map(id, tree_leaves((args, kwargs)))):
            raise CannotRepeat(f"{function} computes with a number that changes from call to call")


class Recorder(Watch):
    """Notes what the code within does with tensors, below autograd, torch.func and all modules.

    Args:
        inputs: the tensors that are others when it is done again.

    Raises:
        CannotRepeat: as ``Watch``, and where a tensor comes from elsewhere.
    """

    def __init__(self, inputs: Sequence[Tensor], numbers: Sequence[Tensor] = ()) -> None:
        super().__init__(numbers)
        self.operations: list[Operation] = []
        self.slots: Any = WeakTensorKeyDictionary()
        self.bases: list[Slot | None] = []  # by slot: whose memory it lies in; None: an argument's, whose place is known only later
        self.noting = True
        for tensor in inputs:
            self.new(tensor, None)

    def __enter__(self) -> Any:
        _thread.recorder = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _thread.recorder = None
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if not self.noting:
            return function(*args, **kwargs)
        self.check(function, args, kwargs)
        made = function(*args, **kwargs)
        if not tensors(made):
            pass  # types and sizes, which stay as they are
        elif function is aten.lift_fresh.default:  # a number in the code, as of torch.tensor(1.0)
            self.note(args[0].clone().clone, (), {}, made)
        elif function in SAME:
            self.slots[made] = self.slot(args[0])
        elif function.is_view or function in UNSAID:
            self.view(function, args, kwargs, made)
        else:
            kept = function._schema.is_mutable or torch.Tag.nondeterministic_seeded in function.tags
            self.note(function._op, args, kwargs, made, kept=kept)
        return made

    def once(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """A call of a ``whole`` function."""
        self.noting = False
        try:
            made = function(*arguments)
        finally:
            self.noting = True
        self.note(function, arguments, {}, made)
        return made

    def view(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
        """Add views by where they lie in memory, in place of how they came about, if that is known."""
        base, views = self.bases[self.slot(args[0]).number], tree_leaves(made)
        if base is None or reading(views[0]) != reading(args[0]):
            self.note(function._op, args, kwargs, made, base=None if base is None else ITSELF)
            return
        for view in views:
            where = (base, tuple(view.shape), view.stride(), view.storage_offset())
            self.operations.append(Operation(torch.as_strided, where, {}, [self.new(view, base)], True, False))

    def note(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any, *, kept: bool = False, base: Any = ITSELF
    ) -> None:
        """Add an operation as it is."""
        arguments, named = tree_map(lambda leaf: self.slot(leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        outputs = [self._outcome(leaf, base) if isinstance(leaf, Tensor) else None for leaf in tree_leaves(made)]
        self.operations.append(Operation(function, arguments, named, outputs, isinstance(made, Tensor), kept))
        if len(self.operations) > LONGEST:
            raise CannotRepeat(f"more than {LONGEST} operations")

    def _outcome(self, tensor: Tensor, base: Any) -> Slot:
        return self.slots[tensor] if tensor in self.slots else self.new(tensor, base)  # operations in place return an argument

    def new(self, tensor: Tensor, base: Any) -> Slot:
        """The next slot, for a tensor in the memory of ``base``."""
        slot = Slot(len(self.bases))
        self.bases.append(slot if base is ITSELF else base)
        self.slots[tensor] = slot
        return slot

    def slot(self, tensor: Tensor) -> Slot:
        """The slot of a tensor that is known."""
        if tensor not in self.slots:
            raise CannotRepeat("a tensor is neither an argument nor made of arguments")
        return self.slots[tensor]


def reading(tensor: Tensor) -> Hashable:
    """How memory becomes a tensor's numbers."""
    return tensor.dtype, tensor.is_conj(), tensor.is_neg()


def _places(index: Tensor | None) -> bool:
    """Whether an index names places, so that their number is known, and is no mask."""
    return index is None or index.dtype not in (torch.bool, torch.uint8)


class WithoutLooks(TorchFunctionMode):
    """Raises ``CannotRepeat`` where the code within, but not a ``whole`` function in it, takes numbers out of a tensor by ``LOOKS``."""

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        recorder: Recorder | None = getattr(_thread, "recorder", None)
        if function in LOOKS and (recorder is None or recorder.noting):
            raise CannotRepeat(f"{function.__name__}() looks into the data")
        return function(*args, **(kwargs or {}))


@contextmanager
def without_secrets() -> Iterator[None]:
    """Raise ``CannotRepeat`` if the code within asks what no operation shows: ``LOOKS``, or Python's or NumPy's global generator."""
    before = drawn()
    with WithoutLooks():
        yield
    if drawn() != before:
        raise CannotRepeat("Python's or NumPy's global generator decides something")


def drawn() -> Hashable:
    """How far those generators are."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - the one that this is about
    return random.getstate(), numpy["state"]["key"].tobytes(), numpy["state"]["pos"], numpy["has_gauss"]


def slots(tree: Any) -> list[Slot]:
    """The slots in nested arguments."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Slot)]


class Program:
    """A function of tensors as a flat list of operations, in one function of Python without a branch.

    Args:
        recorder: what was done.
        result: what came out, nested, whose tensors the recorder knows.
    """

    def __init__(self, recorder: Recorder, result: Any, inputs: int) -> None:
        leaves, self.form = tree_flatten(result)
        outcome = [recorder.slot(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        needed = set(slots(outcome))
        lines, self.known = [], dict[str, Any]()
        for operation in reversed(recorder.operations):
            if not (operation.kept or needed.intersection(operation.outputs)):
                continue
            read = slots((operation.arguments, operation.named))
            last = {*read, *slots(operation.outputs)} - needed  # nothing below reads these
            needed.update(read)
            lines.append(self._line(operation) + "".join(f"; del t{slot.number}" for slot in last if slot.number >= inputs))
        arguments = "".join(f"t{i}, " for i in range(inputs))
        self.lines = [f"{arguments} = inputs", *reversed(lines), f"return {self._text(outcome)}"]
        body = "\n    ".join(self.lines)
        exec(compile(f"def run(inputs):\n    {body}", "<recorded>", "exec"), self.known)
        self.run = self.known.pop("run")

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            return tree_unflatten(self.run(inputs), self.form)

    def _line(self, operation: Operation) -> str:
        names = [f"t{slot.number}" if slot else "_" for slot in operation.outputs]
        target = names[0] if operation.single else "".join(f"{name}, " for name in names)
        named = [f"{name}={self._text(value)}" for name, value in operation.named.items()]
        call = f"{self._constant(operation.function)}({', '.join([*map(self._text, operation.arguments), *named])})"
        return f"{target} = {call}" if names else call

    def _text(self, value: Any) -> str:
        """Source text of an argument."""
        if isinstance(value, Slot):
            return f"t{value.number}"
        if type(value) in (list, tuple):
            inside = "".join(f"{self._text(item)}, " for item in value)
            return f"[{inside}]" if isinstance(value, list) else f"({inside})"
        return repr(value) if value is None or type(value) in (int, bool, str) else self._constant(value)

    def _constant(self, value: Any) -> str:
        name = f"c{id(value)}"
        self.known[name] = value
        return name


def record(function: Function, module: nn.Module, item: Any) -> tuple[Program, Any]:
    """A function's program, and what it returned.

    Raises:
        CannotRepeat: it does not do the same every time.
    """
    inputs, (item, numbers) = tensors_of(module, item), masked(item)
    with without_secrets(), Recorder(inputs, numbers) as recorder:
        result = function(module, item)
    return Program(recorder, result, len(inputs)), result


def masked(item: Any) -> tuple[Any, list[Tensor]]:
    """The item with tensors in place of numbers, and those tensors."""
    numbers: list[Tensor] = []

    def mask(leaf: Any) -> Tensor:
        if not isinstance(leaf, Tensor):
            leaf = torch.tensor(leaf)
            numbers.append(leaf)
        return leaf

    return tree_map(mask, item), numbers


class Graph:
    """A program of a GPU, which its driver repeats: a CUDA graph, with memory of its own for the item and the outcome.

    Weights are read where they lie.
    """

    def __init__(self, function: Function, module: nn.Module, item: Any, pool: Any) -> None:
        own = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, item)
        self.places = tensors(own)
        own, numbers = masked(own)
        aside = torch.cuda.Stream()  # where libraries set themselves up, which a recording would not survive
        aside.wait_stream(torch.cuda.current_stream())
        # A recording that fails leaves torch's allocator in disorder: what cannot be repeated is known before it begins.
        with torch.cuda.stream(aside), without_secrets(), Watch(numbers):
            function(module, own)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.leaves, self.form = tree_flatten(tree_map(dense, function(module, own)))
            # In one piece for each type of number, so that one operation copies it out.
            parts: dict[torch.dtype, list[Tensor]] = {}
            for leaf in self.leaves:
                if isinstance(leaf, Tensor):
                    parts.setdefault(leaf.dtype, []).append(leaf.as_strided((leaf.numel(),), (1,)))
            self.flat = {dtype: torch.cat(rows) for dtype, rows in parts.items()}

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        torch._foreach_copy_(self.places, list(inputs[: len(self.places)]))
        self.graph.replay()
        flat, begun = {dtype: row.clone() for dtype, row in self.flat.items()}, dict.fromkeys(self.flat, 0)
        made = list(self.leaves)
        for i, leaf in enumerate(self.leaves):
            if isinstance(leaf, Tensor):
                made[i] = flat[leaf.dtype].as_strided(leaf.shape, leaf.stride(), begun[leaf.dtype])
                begun[leaf.dtype] += leaf.numel()
        return tree_unflatten(made, self.form)


def dense(leaf: Any) -> Any:
    """A tensor without gaps in memory; what is none as it is."""
    if not isinstance(leaf, Tensor) or leaf.is_contiguous() or (leaf.dim() == 4 and leaf.is_contiguous(memory_format=torch.channels_last)):
        return leaf
    return leaf.contiguous()


class Entry:
    """What is known of calls that differ in their tensors' values alone."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls, self.why_not = 0, ""
        self.program: Program | Graph | None = None


class Recordings:
    """Calls functions of a module and tensors, and repeats what they did where they do the same again.

    The same: for the same name, settings of the module (attributes that are plain values), and shapes, strides and types of all tensors.
    A function is called as it is, every time, if it looks into the data, does more with a number than to pass it on, asks Python's or
    NumPy's global generator, or uses tensors that are neither the module's parameters and buffers nor in its argument; on a GPU, where
    those are read where they lie, it may. What changes within an attribute that is an object of some other class goes unnoticed.
    """

    def __init__(self, device: torch.device) -> None:
        self.entries: WeakKeyDictionary[nn.Module, dict[Hashable, Entry]] = WeakKeyDictionary()
        self.device, self.lock = device, threading.Lock()
        self.pool: Any = None

    def of(self, module: nn.Module, name: Hashable, function: Function) -> Function:
        """``function`` of ``module``, or of replicas of it, and nested tensors and numbers; ``name`` says all else that it depends on.

        It should have no effect beside what it returns: the call in which it is recorded may do it twice.
        """
        entries = self.entries.setdefault(module, {})

        def call(module: nn.Module, item: Any) -> Any:
            state = settings(module)
            if state is None:
                return function(module, item)
            inputs = tensors_of(module, item)
            # A graph of a GPU reads weights where they lie.
            places = [t.data_ptr() for t in inputs[len(tensors(item)) :]] if self.device.type == "cuda" else []
            key = (name, state, shape_of(item), tuple(map(kind, inputs)), tuple(places))
            with self.lock:
                entry = entries.setdefault(key, Entry())
                entry.calls += 1
                while len(entries) > MOST:
                    del entries[next(iter(entries))]  # the oldest
            if entry.why_not or entry.calls <= EAGER:
                return function(module, item)
            with entry.lock:
                if entry.program is None and not entry.why_not:
                    try:
                        if self.device.type == "cuda":
                            self.pool = self.pool or torch.cuda.graph_pool_handle()
                            entry.program = Graph(function, module, item, self.pool)
                        else:
                            entry.program, result = record(function, module, item)
                            return result
                    except Exception as error:  # if it is the function's own, it will come again
                        entry.why_not = f"{type(error).__name__}: {error}"
            return entry.program(inputs) if entry.program else function(module, item)

        return call


def kind(tensor: Tensor) -> Hashable:
    """All of a tensor but its numbers and its place."""
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad


def tensors_of(module: nn.Module, item: Any) -> list[Tensor]:
    """All tensors that a function of these may use."""
    return [*tensors(item), *module.parameters(), *module.buffers()]


def tensors(tree: Any) -> list[Tensor]:
    """Those in nested values."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def shape_of(item: Any) -> Hashable:
    """How nested tensors and numbers are nested."""
    leaves, form = tree_flatten(item)
    return str(form), tuple(isinstance(leaf, Tensor) for leaf in leaves)


def settings(module: nn.Module) -> Hashable:
    """All plain values, and places of tensors, among the attributes of a module and those within.

    None where others than its own hooks want to see every call.
    """
    found: list[Any] = []
    if _has_any_global_hook() or any(parameter._backward_hooks for parameter in module.parameters()):
        return None
    for part in module.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            if any(hook.__module__ != type(module).__module__ for hook in hooks.values()):
                return None
        found += [type(part), *((name, plain(value)) for name, value in part.__dict__.items() if name not in BOOKS)]
    return tuple(found)


def plain(value: Any) -> Hashable:
    """A value as it can be compared: a tensor by its place, an array by its bytes, what is neither that nor made of such by what it is."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    if isinstance(value, dict):
        return tuple((name, plain(inner)) for name, inner in value.items())
    if isinstance(value, Tensor):
        return value.data_ptr(), kind(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, MethodType):  # which a replica has of its own
        return plain(value.__func__)
    return type(value), None if isinstance(value, nn.Module) else id(value)
