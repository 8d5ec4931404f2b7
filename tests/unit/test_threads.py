"""Chunks on several threads: the same numbers in the same order, switches and failures as without threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from helpers import LEARNING_CLASSIFIERS, by_family, classification, engine, in_float64, meta_gradient
from torch import Tensor, nn
from torch.func import functional_call

from metarun.protocols.episodes import EVERY
from metarun.runtime.replica import replica
from metarun.runtime.threads import Threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_a_twin_has_the_same_parameters_and_is_left_alone_by_functional_call() -> None:
    shared = nn.Linear(2, 2)
    module = nn.Sequential(shared, nn.BatchNorm1d(2), nn.ModuleDict({"again": shared}))
    other = replica(module)
    assert all(a is b for a, b in zip([*module.parameters(), *module.buffers()], [*other.parameters(), *other.buffers()], strict=True))
    assert other[2]["again"] is other[0]
    assert other[0] is not module[0]
    seen: list[Tensor] = []
    module[0].register_forward_pre_hook(lambda *_: seen.append(other[0].weight))
    functional_call(module[0], {"weight": torch.zeros(2, 2)}, torch.ones(1, 2))
    assert len(seen) == 1
    assert seen[0] is shared.weight


class TwiceHeld(nn.Module):
    """A net that has its layers in a list of its own and as whose method one is called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
        self.order = {"layers": [self.first, (self.last,)]}
        self.end = self.last.forward

    def forward(self, x: Tensor) -> Tensor:
        first, (last,) = self.order["layers"]
        return last(first(x)) + self.end(x)


def test_a_twin_holds_twins_however_it_holds_them() -> None:
    module = TwiceHeld()
    none, x = {name: torch.zeros_like(weight) for name, weight in module.named_parameters()}, torch.ones(1, 2)
    assert torch.equal(replica(module)(x), module(x))
    assert torch.equal(functional_call(replica(module), none, (x,)), torch.zeros(1, 2))


def test_results_come_in_order_from_several_threads_with_one_thread_of_arithmetic_each(two_threads: None) -> None:
    meeting = threading.Barrier(2, timeout=60)  # two items have to be under way at a time

    def work(module: nn.Module, item: int) -> tuple[int, nn.Module, int, bool]:
        meeting.wait()
        return item, module, torch.get_num_threads(), torch.is_grad_enabled()

    module, here = nn.Linear(1, 1), set[int]()
    with torch.no_grad():
        found = []
        for result in Threads().map(work, module, range(6)):
            here.add(torch.get_num_threads())
            found.append(result)
    items, modules, threads, derived = zip(*found)
    assert here == {1}  # a helper of this thread would spin beside the chunks
    assert items == tuple(range(6))
    assert len(set(modules)) == 2
    assert module not in modules
    assert set(threads) == {1}
    assert not any(derived)
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()


def test_every_map_divides_the_threads_anew() -> None:
    workers, module = Threads(), nn.Linear(1, 1)
    torch.set_num_threads(4)
    try:
        for items, each in ((2, 2), (8, 1), (2, 2)):
            meeting = threading.Barrier(min(items, 4), timeout=60)

            def work(module: nn.Module, item: int, meeting: threading.Barrier = meeting) -> int:
                meeting.wait()
                return torch.get_num_threads()

            assert set(workers.map(work, module, range(items))) == {each}
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(1)


def test_a_failure_in_a_thread_is_raised_and_threads_are_given_back(two_threads: None) -> None:
    def fail(module: nn.Module, item: int) -> None:
        raise ValueError(str(item))

    with pytest.raises(ValueError, match="0"):
        list(Threads().map(fail, nn.Linear(1, 1), range(4)))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("algo", "words"),
    [*(pytest.param(*param.values, [], marks=param.marks) for param in by_family(LEARNING_CLASSIFIERS)), ("maml", ["algo.mode=mixed"])],
)
def test_threads_change_no_bit(algo: str, words: list[str]) -> None:
    algorithm, tasks = in_float64(classification(algo, *words), tasks=5)
    alone = meta_gradient(algorithm, tasks, engine(chunk=2)), engine(chunk=2).evaluate(algorithm, tasks, EVERY)
    torch.set_num_threads(2)
    try:
        for _ in range(2):
            assert torch.equal(meta_gradient(algorithm, tasks, engine(chunk=2)), alone[0])
            together = engine(chunk=2).evaluate(algorithm, tasks, EVERY)
            assert all(torch.equal(together[name], values) for name, values in alone[1].items())
    finally:
        torch.set_num_threads(1)
