"""Operators as functions of TorchScript: the values, the memory and the errors are those of the operators called one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarun.runtime.operation import Operation, Slot
from metarun.runtime.private import tree_leaves
from metarun.runtime.program import Program
from metarun.runtime.recording import record
from metarun.runtime.script import scriptable

aten = torch.ops.aten


class Nothing(nn.Module):
    pass


def scripted(function: Callable[[Tensor], Any], x: Tensor) -> Program:
    """The program of a function whose operators are all one call."""
    program, _ = record(lambda _, x: function(x), Nothing(), x)
    _taken, *calls, _returned = program.lines
    assert len(calls) == 1, calls
    assert len(program.operations) > 1
    return program


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x + 1).mul(2.5).sub(x, alpha=3),  # numbers in place of tensors, and named ones
        lambda x: (x * 2).sum(0, keepdim=True, dtype=torch.float64).to(torch.float32),
        lambda x: torch.cat([x, x.exp(), x * 0], 1) + torch.zeros_like(torch.cat([x, x, x], 1)),
        lambda x: [part * 2 for part in (x + 1).unbind(0)],
        lambda x: torch.stack((x * 1).split([1, 2], 1)[1].unbind(1)),
        lambda x: (x * 2).sort(dim=1, descending=True),
        lambda x: torch.linalg.svd(x + 1, full_matrices=False),
        lambda x: (x + 1)[:, (x.argsort(1) * 1)[0]],  # a list of tensors and None
        lambda x: (x * 3).clamp(min=0).pow(2).clone(memory_format=torch.contiguous_format),
        lambda x: torch.where(x > 0, x, torch.full_like(x, float("-inf"))).exp(),
        lambda x: (x + 1).as_strided((2, 2), (3, 1), 1) * 2,
        lambda x: (x + 1).as_strided((), (), 1) * 2,
        lambda x: torch.addcmul(x, x, x, value=2).new_zeros(2, 3).add_(x).mul_(2),
        lambda x: x.mean((0, 1)).expand(2, 3) * x.var(1, correction=0, keepdim=True),
        lambda x: torch.nn.functional.pad(x * 1, [1, 2], value=1.5),
        lambda x: torch.einsum("ij,kj->ik", x, x + 1).fill_diagonal_(1),
        lambda x: torch.nn.functional.layer_norm(x * 1, [3], eps=1),  # a whole number for a real one
    ],
)
def test_values_are_the_operators_own(function: Callable[[Tensor], Any]) -> None:
    x = torch.randn(2, 3)
    program = scripted(function, x)
    for _ in range(4):
        x = torch.randn(2, 3)
        expected = tree_leaves(function(x))
        found = tree_leaves(program([x]))
        assert len(found) == len(expected)
        assert all(map(torch.equal, found, expected))
        assert [t.stride() for t in found] == [t.stride() for t in expected]


def test_nothing_is_shared_that_was_not() -> None:
    program = scripted(lambda x: [x + 1, x + 1, (x + 1).view(-1)], torch.ones(2))
    for _ in range(4):
        first, second, third = program([torch.ones(2)])
        first.zero_()
        assert second.tolist() == third.tolist() == [2.0, 2.0]


def test_operators_in_place_change_what_they_are_given() -> None:
    def function(x: Tensor) -> Tensor:
        y = x + 1
        seen = y.view(3, 2)
        y.mul_(2)
        seen.add_(1)
        return y

    assert torch.equal(scripted(function, torch.ones(2, 3))([torch.ones(2, 3)]), torch.full((2, 3), 5.0))


def test_draws_are_those_of_the_generator() -> None:
    program = scripted(lambda x: torch.rand_like(x + 1) * torch.randn(2), torch.ones(2))
    torch.manual_seed(3)
    expected = torch.rand(2) * torch.randn(2)
    torch.manual_seed(3)
    assert torch.equal(program([torch.ones(2)]), expected)


def test_an_error_is_the_operators_own() -> None:
    program = scripted(lambda x: torch.linalg.cholesky(x + 0) * 2, torch.eye(2))
    assert torch.equal(program([4 * torch.eye(2)]), 4 * torch.eye(2))
    with pytest.raises(torch.linalg.LinAlgError, match="not positive-definite") as caught:
        program([-torch.eye(2)])
    assert "TorchScript" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda x: x, (Slot(0),)),  # none of torch's operators
        (aten.bernoulli.default, (Slot(0), torch.Generator())),  # an argument that is no constant
        (aten.add.Tensor, (Slot(0), torch.ones(2))),
        (aten.add.Tensor, (Slot(0), [1])),  # no operator takes these
    ],
)
def test_what_no_script_can_do(function: Any, arguments: tuple[Any, ...]) -> None:
    assert not scriptable(Operation(function, arguments, {}, [Slot(1)], True, False))
    assert scriptable(Operation(aten.add.Tensor, (Slot(0), 1), {}, [Slot(1)], True, False))


def test_threads_side_by_side() -> None:
    program, found = scripted(lambda x: (x * 2 + 1).sin() * x, torch.ones(50)), dict[int, bool]()

    def work(i: int) -> None:
        x = torch.full((50,), float(i))
        found[i] = all(torch.equal(program([x]), (x * 2 + 1).sin() * x) for _ in range(200))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)
