"""Every interface of torch and Numba that their authors have not promised to keep, each with the reason why metarun needs it.
The rest of metarun imports them from here; tests/unit/test_private.py names the one that broke when a release changes it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

# A function of TorchScript from nodes, below its compiler of Python's source.
from torch._C import Graph, Value

# Profiles all threads; the public arguments of ``torch.profiler.profile`` profile the calling one alone.
from torch._C._profiler import _ExperimentalConfig as ProfilerConfig
from torch.nn.modules.module import _has_any_global_hook as has_global_hook

# The function modes that are active, such as ``BFloat16``: torch leaves them outside of an autograd.Function under torch.func.
from torch.overrides import _get_current_function_mode_stack as function_modes

# The one place from which operations are seen below autograd, torch.func and modules.
from torch.utils._python_dispatch import TorchDispatchMode

# Nested tuples, named tuples, lists and dicts of tensors, as torch.func flattens its own arguments; torch offers no public way.
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_structure, tree_unflatten

# A dictionary by a tensor's identity that keeps no tensor alive.
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "MODULE_ATTRIBUTES",
    "TENSOR",
    "WHOLE",
    "Graph",
    "ProfilerConfig",
    "TorchDispatchMode",
    "Value",
    "WeakTensorKeyDictionary",
    "alone_under_vmap",
    "as_parameter",
    "below_autograd",
    "call_hooks",
    "copy_each",
    "cpu_features",
    "function_modes",
    "function_of",
    "has_global_hook",
    "is_profiling",
    "is_way_back",
    "list_of",
    "mutates",
    "overload",
    "schema",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_structure",
    "tree_unflatten",
    "tuple_of",
    "under_vmap_only",
    "unwrapped",
    "weight_hooks",
    "without_optimisation",
]

_functorch = torch._C._functorch

MODULE_ATTRIBUTES = vars(nn.Module()).keys() - {"training"}  # those of torch's own that every module has, ``_parameters`` and hooks


def below_autograd() -> AbstractContextManager[None]:
    """Within, operators skip autograd: a tenth of the time of a small one."""
    return torch._C._AutoDispatchBelowAutograd()


def mutates(operator: Any) -> bool:
    """Whether an operator writes to one of its arguments."""
    return operator._schema.is_mutable


def overload(function: Any) -> Any:
    """The C++ function behind an operator's overload, whose call costs a microsecond less; any other function as it is."""
    return function._op if isinstance(function, torch._ops.OpOverload) else function


def schema(function: Any) -> Any:
    """An operator's name, arguments and results; None of a function that is none of torch's operators."""
    return function._schema if isinstance(function, torch._ops.OpOverload) and function.namespace == "aten" else None


TENSOR, WHOLE = torch._C.TensorType.get(), torch._C.IntType.get()  # types of TorchScript


def list_of(kind: Any, *, optional: bool = False) -> Any:
    """The type of a list of a type; ``optional``: or None."""
    return torch._C.ListType(torch._C.OptionalType(kind) if optional else kind)


def tuple_of(count: int) -> Any:
    """The type of a tuple of so many tensors."""
    return torch._C.TupleType([TENSOR] * count)


def function_of(graph: Graph) -> Any:
    """A graph of TorchScript as a function."""
    return torch._C._create_function_from_graph("recorded", graph)


def without_optimisation() -> AbstractContextManager[None]:
    """Within, in this thread: functions of TorchScript do as they are written, and need no time to be compiled."""
    return torch.jit.optimized_execution(False)


def copy_each(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy many tensors in one launch of a GPU."""
    torch._foreach_copy_(targets, sources)


def weight_hooks(parameter: Tensor) -> Any:
    """The hooks of a tensor's gradient, or nothing."""
    return parameter._backward_hooks


def as_parameter(parameter: Tensor, other: Tensor) -> Tensor:
    """Another tensor for a parameter's place in a module, which takes it for a parameter as well."""
    if other is not parameter:
        other._is_param = True
    return other


def call_hooks(module: nn.Module) -> list[Any]:
    """The hooks that see a module's calls, in their dictionaries: before, after, and on the way back."""
    return [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]


def _levels() -> list[Any]:
    """The transforms of torch.func that are at work, the outermost first."""
    return list(_functorch.get_interpreter_stack() or ())


def under_vmap_only() -> bool:
    """Whether no transform of torch.func but torch.vmap, of any depth, is at work."""
    return all(level.key() == _functorch.TransformType.Vmap for level in _levels())


def plain_tensors() -> bool:
    """Whether no transform of torch.func is at work."""
    return not _levels()


def alone_under_vmap(leaves: list[Tensor]) -> bool:
    """Whether some of these tensors are those of many tasks under one torch.vmap, and no other transform of torch.func is at work."""
    return len(_levels()) == 1 and under_vmap_only() and any(map(_functorch.is_batchedtensor, leaves))


def unwrapped(x: Tensor) -> Tensor | None:
    """The tensor that torch.func has wrapped into x, one level down; None where x is a plain tensor."""
    return _functorch.get_unwrapped(x) if _functorch.is_functorch_wrapped_tensor(x) else None


def is_way_back(function: FunctionType) -> bool:
    """Whether a function is what torch.func.vjp returns: it differentiates the very tensors that it closes over."""
    inside = str(function.__globals__.get("__name__")).startswith("torch._functorch")
    held = (leaf for cell in function.__closure__ or () for leaf in tree_leaves(cell.cell_contents))
    return inside and any(isinstance(leaf, Tensor) for leaf in held)


def is_profiling() -> bool:
    """Whether torch's profiler is at work in any thread; the public question is about the calling thread."""
    return torch.autograd.profiler._is_profiler_enabled


def cpu_features() -> list[str]:
    """The instructions of this CPU that Numba compiles for, as ``+avx2``."""
    from numba.core.registry import cpu_target  # imported where kernels are chosen

    return cpu_target.target_context.codegen().magic_tuple()[-1].split(",")
