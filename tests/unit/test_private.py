"""Interfaces that torch and Numba have not promised to keep: each does what metarun relies on, and only one file names them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from metarun.runtime import private

SOURCE = Path(private.__file__).parents[1]
PRIVATE = re.compile(r"torch(\.\w+)*\._[a-z]|_functorch|_pytree|_python_dispatch|numba\.core")


def test_only_one_file_names_what_is_private() -> None:
    naming = {path.name for path in SOURCE.rglob("*.py") if PRIVATE.search(path.read_text())}
    assert naming == {"private.py"}


class Pair(NamedTuple):
    first: Tensor
    second: dict[str, Tensor]


def test_trees() -> None:
    tree = Pair(torch.ones(1), {"a": torch.zeros(1)})
    leaves, form = private.tree_flatten(tree)
    assert leaves == private.tree_leaves(tree) == [tree.first, tree.second["a"]]
    assert isinstance(private.tree_unflatten(leaves, form), Pair)
    assert private.tree_map(lambda leaf: leaf + 1, tree).second["a"] == 1


def test_a_way_back_is_known() -> None:
    x = torch.ones(2)
    _, back = torch.func.vjp(lambda x: x * x, x)
    assert private.is_way_back(back)
    assert not private.is_way_back(torch.func.grad(lambda x: (x * x).sum()))
    assert not private.is_way_back(lambda: x)


def test_operations_are_seen_below_autograd() -> None:
    seen = []

    class See(private.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append((function, private.mutates(function)))
            return private.overload(function)(*args, **(kwargs or {}))

    x = torch.ones(2, requires_grad=True)
    with See():
        torch.autograd.grad((x * 2).sum(), x)
        torch.ones(2).add_(1)
    assert (torch.ops.aten.mul.Tensor, False) in seen
    assert (torch.ops.aten.add_.Tensor, True) in seen


def test_below_autograd_nothing_is_noted_for_derivatives() -> None:
    x = torch.ones(2, requires_grad=True)
    with torch.no_grad(), private.below_autograd():
        assert not (x * 2).requires_grad


def test_a_dictionary_by_identity_lets_tensors_go() -> None:
    known, x = private.WeakTensorKeyDictionary(), torch.ones(2)
    known[x] = 1
    assert x in known
    assert torch.ones(2) not in known
    del x
    assert len(known) == 0


def test_levels_of_torch_func() -> None:
    seen = {}

    def look(name: str) -> Tensor:
        def call(x: Tensor) -> Tensor:
            inside = private.unwrapped(x)
            assert inside is not None
            seen[name] = private.under_vmap_only(), private.alone_under_vmap([x]), tuple(inside.shape)
            return x.sum()

        return call  # type: ignore[return-value]

    x = torch.ones(2, 3)
    torch.vmap(look("vmap"))(x)
    torch.vmap(torch.vmap(look("twice")))(x)
    torch.func.grad(look("grad"))(x)
    assert seen == {"vmap": (True, True, (2, 3)), "twice": (True, False, (3,)), "grad": (False, False, (2, 3))}
    assert private.under_vmap_only()
    assert not private.alone_under_vmap([x])
    assert private.unwrapped(x) is None


def test_function_modes() -> None:
    with TorchFunctionMode() as mode:
        assert private.function_modes() == [mode]
    assert private.function_modes() == []


def test_hooks() -> None:
    module = nn.Linear(1, 1)
    assert not any(private.call_hooks(module))
    assert not private.weight_hooks(module.weight)
    for register in (module.register_forward_hook, module.register_forward_pre_hook, module.register_full_backward_hook):
        register(lambda *_: None)
    module.register_full_backward_pre_hook(lambda *_: None)
    module.weight.register_hook(lambda _: None)
    assert all(private.call_hooks(module))
    assert private.weight_hooks(module.weight)
    assert not private.has_global_hook()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert private.has_global_hook()
    handle.remove()


def test_attributes_that_every_module_has() -> None:
    assert {"_parameters", "_buffers", "_modules"} <= private.MODULE_ATTRIBUTES
    assert "training" not in private.MODULE_ATTRIBUTES


def test_many_copies() -> None:
    targets = [torch.zeros(2), torch.zeros(3)]
    private.copy_each(targets, [torch.ones(2), torch.ones(3)])
    assert all(bool(target.all()) for target in targets)


def test_profiler() -> None:
    assert not private.is_profiling()
    with torch.profiler.profile(experimental_config=private.ProfilerConfig(profile_all_threads=True)):
        assert private.is_profiling()


def test_instructions_that_numba_compiles_for() -> None:
    pytest.importorskip("numba")
    assert all(re.fullmatch(r"[+-][\w.-]+", feature) for feature in private.cpu_features())


def test_functions_of_torchscript_do_as_they_are_written() -> None:
    graph = private.Graph()
    x = graph.addInput()
    x.setType(private.TENSOR)
    doubled = [graph.insertNode(graph.create("aten::add", [x, x, graph.insertConstant(1)], 1)).output() for _ in range(2)]
    listed = graph.insertNode(graph.create("prim::ListConstruct", doubled, 1)).output()
    listed.setType(private.list_of(private.TENSOR))
    joined = graph.insertNode(graph.create("aten::cat", [listed, graph.insertConstant(0)], 1)).output()
    both = graph.insertNode(graph.create("prim::TupleConstruct", [*doubled, joined], 1)).output()
    both.setType(private.tuple_of(3))
    graph.registerOutput(both)
    function = private.function_of(graph)
    for _ in range(3):  # an optimiser would make one of the two sums, after a call or two
        with private.without_optimisation():
            first, second, all_of_them = function(torch.ones(2))
        assert first.data_ptr() != second.data_ptr()
        assert all_of_them.tolist() == [2.0] * 4


def test_schemas() -> None:
    about = private.schema(torch.ops.aten.sum.dim_IntList)
    assert (about.name, [argument.name for argument in about.arguments]) == ("aten::sum", ["self", "dim", "keepdim", "dtype"])
    assert private.schema(torch.sum) is None
    assert private.overload(torch.sum) is torch.sum
