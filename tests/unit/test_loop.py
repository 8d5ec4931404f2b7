"""``inner.loop``: values, first and second derivatives are those of Python's own loop, however it is mapped, nested, recorded and kept."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from helpers import random, relative_error
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from metarun import inner
from metarun.runtime import steps as steps_module
from metarun.runtime.recording import EAGER, Recordings, record
from metarun.runtime.scan import PAYS
from metarun.runtime.steps import Plan, Repeated
from metarun.runtime.tracer import opaque, recording_loops

K = PAYS + 3
DATA = random(2, 4)  # drawn outside of torch.vmap, which allows no draws
KEPT: list[Any] = ["auto", "all", "states", 1, 3, 100]


class State(NamedTuple):
    weight: Tensor
    memory: dict[str, Tensor]
    fixed: Tensor


def python(step: Any, state: Any, steps: int, xs: Any = None, *, read: Any = None, kept: Any = "auto") -> Any:
    """What ``inner.loop`` promises to be."""
    noted = []
    for k in range(steps):
        state = step(state, torch.tensor(k) if xs is None else xs[k])
        if read:
            noted.append(read(state))
    return (state, torch.stack(noted)) if read else state


def along(steps: int) -> Tensor:
    return torch.linspace(-1, 2, steps, dtype=torch.float64)


class Layer(nn.Module):
    """A module that a step closes over."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(random(4, 4, seed=1))
        self.register_buffer("shift", random(4, seed=2))
        self.rate = 0.1


def outcome(loop: Any, start: Tensor, data: Tensor, layer: Layer, *, steps: int = K, xs: bool = False, kept: Any = "auto") -> Tensor:
    """A scalar that depends on a loop in every way that there is."""

    def step(state: State, k: Tensor) -> State:
        slope = torch.tanh(state.weight @ layer.weight + data.sum(0) + layer.shift) * state.memory["speed"].cos()
        speed = 0.9 * state.memory["speed"] + slope * (k if xs else 1 / (k + 1))
        return state._replace(weight=state.weight - layer.rate * speed * state.fixed, memory={"speed": speed})

    begun = State(start, {"speed": torch.zeros_like(start)}, data[0])
    rows = along(steps).cos() * data[0, 0] if xs else None
    last, noted = loop(step, begun, steps, rows, read=lambda state: state.weight.square().sum(), kept=kept)
    return last.weight.pow(3).sum() + last.memory["speed"].sum() + (noted * along(steps)).sum()


def derivatives(loop: Any, mapped: bool = True, **how: Any) -> list[Tensor]:
    """Value, gradients, and gradients of the gradients' squares."""
    start, data, layer = random(3, 4, seed=3).requires_grad_(), random(3, 2, 4, seed=4).requires_grad_(), Layer()
    by = [start, data, layer.weight]

    def total() -> Tensor:
        if mapped:
            return torch.vmap(lambda w, x: outcome(loop, w, x, layer, **how))(start, data).sum()
        return outcome(loop, start[0], data[0], layer, **how)

    value = total()
    first = torch.autograd.grad(total(), by)
    slopes = torch.autograd.grad(total(), by, create_graph=True)
    return [value, *first, *slopes, *torch.autograd.grad(sum(slope.square().sum() for slope in slopes), by)]


def agree(actual: list[Tensor], expected: list[Tensor], error: float = 1e-12) -> None:
    assert all(relative_error(a.detach(), b.detach()) < error for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("recorded", [False, True])
def test_values_and_derivatives_are_those_of_pythons_loop(kept: Any, recorded: bool) -> None:
    with recording_loops() if recorded else nullcontext():
        for mapped, xs in product((True, False), repeat=2):
            agree(derivatives(inner.loop, mapped, xs=xs, kept=kept), derivatives(python, mapped, xs=xs))


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_short_loops(steps: int) -> None:
    def last(loop: Any) -> Tensor:
        return loop(lambda w, k: w.cos() * (k + 1), random(3), steps)

    assert torch.equal(last(inner.loop), last(python))


@pytest.mark.parametrize("kept", KEPT)
def test_recorded_is_eager_bit_for_bit_whatever_is_kept(kept: Any) -> None:
    eager = derivatives(inner.loop, kept="all")
    with recording_loops():
        recorded = derivatives(inner.loop, kept=kept)
    assert all(map(torch.equal, recorded, eager))


def test_the_others_of_many_states_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets decide what is kept, and change no bit."""
    expected, plans = derivatives(inner.loop), set[Plan]()
    plan = Repeated.plan

    def noted(*arguments: Any) -> Plan:
        plans.add(made := plan(*arguments))
        return made

    monkeypatch.setattr(Repeated, "plan", noted)
    for budget in (100, 5_000):
        for name in ("KEPT_BYTES", "STATE_BYTES"):
            monkeypatch.setattr(steps_module, name, budget)
        with recording_loops():
            for kept in ("auto", "states"):
                assert all(map(torch.equal, derivatives(inner.loop, kept=kept), expected))
    assert any(plan.whole == 0 and plan.segment > 1 for plan in plans)
    assert any(0 < plan.whole < K - 1 for plan in plans)


@pytest.mark.parametrize("kept", ["auto", "states"])
@pytest.mark.parametrize("step_bytes", [400, 4_000, 400_000])
def test_what_is_kept_fills_its_budget_and_no_more(kept: Any, step_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    state, steps, budget = 4_000, 100, 240_000
    for name in ("KEPT_BYTES", "STATE_BYTES"):
        monkeypatch.setattr(steps_module, name, budget)
    repeated = Repeated(lambda *_: ([], []), range(steps), 1, 0, True, kept)
    segment, whole = repeated.plan([torch.empty(state // 4)], step_bytes)

    def held(whole: int) -> float:
        return (steps - whole) / segment * state + whole * (state + step_bytes) + segment * step_bytes

    assert 1 <= segment <= 10
    assert held(whole) <= budget + state or whole == 0
    assert held(whole + 1) > budget or whole == steps
    assert repeated.plan([torch.empty(1)], 4) == (segment if kept == "auto" else 1, steps)


def test_in_a_loop_mixed_computes_a_gradient_no_more_often_than_unroll() -> None:
    calls = dict.fromkeys(("unroll", "mixed"), 0)
    for mode in ("unroll", "mixed"):
        w = random(3, 4).requires_grad_()

        def loss(w: Tensor, mode: str = mode) -> Tensor:
            calls[mode] += 1
            return w.pow(4).sum()

        def last(w: Tensor, mode: Any = mode, loss: Any = loss) -> Tensor:
            return inner.loop(lambda w, k: w - 0.1 * inner.gradient(loss, w, mode=mode), w, K, kept="states").sum()

        torch.autograd.grad(torch.vmap(last)(w).sum(), w)
    assert calls["unroll"] == 2 * K - 1
    assert calls["mixed"] == calls["unroll"] + 1  # of the first step, which is none of the scan's


def nested(loop: Any, start: Tensor, layer: Layer) -> Tensor:
    """A loop whose step goes down a loss that is itself what a loop ends with."""

    def loss(weight: Tensor, data: Tensor) -> Tensor:
        return loop(lambda s, k: torch.tanh(s @ layer.weight + weight) + data / (k + 2), weight, K).square().sum()

    def step(weight: Tensor, k: Tensor) -> Tensor:
        return inner.sgd(weight, inner.gradient(loss, weight, start), 0.1)

    return loop(step, start, 5).pow(3).sum()


@pytest.mark.parametrize("recorded", [False, True])
def test_loops_within_loops(recorded: bool) -> None:
    found = []
    for loop in (inner.loop, python):
        start, layer = random(3, 4, seed=3).requires_grad_(), Layer()
        with recording_loops() if recorded else nullcontext():
            value = torch.vmap(lambda w, loop=loop, layer=layer: nested(loop, w, layer))(start).sum()
            found.append([value, *torch.autograd.grad(value, [start, layer.weight])])
    agree(*found, error=1e-11)


def test_maps_within_maps() -> None:
    found = []
    for loop in (inner.loop, python):
        w, layer = random(2, 3, 4, seed=3).requires_grad_(), Layer()
        each = torch.vmap(torch.vmap(lambda w, loop=loop, layer=layer: outcome(loop, w, DATA, layer)))
        found.append([each(w), *torch.autograd.grad(each(w).sum(), [w, layer.weight])])
    agree(*found)


def test_a_recording_has_one_step_whatever_the_length() -> None:
    def run(steps: int) -> tuple[int, Any]:
        def function(layer: Layer, item: Tensor) -> Any:
            values = torch.vmap(lambda w: outcome(inner.loop, w, item[:2], layer, steps=steps))(item)
            return values, torch.autograd.grad(values.sum(), layer.weight)[0]

        layer = Layer()
        program, result = record(function, layer, random(3, 4))
        again = program([random(3, 4), layer.weight, layer.shift])
        assert all(map(torch.equal, tree_leaves(again), tree_leaves(result)))
        other = program([random(3, 4, seed=9), layer.weight, layer.shift])
        assert all(map(torch.equal, tree_leaves(other), tree_leaves(function(layer, random(3, 4, seed=9)))))
        return len(program.lines), program

    assert run(10)[0] == run(200)[0]


def test_a_recording_lets_go_of_what_the_step_closed_over() -> None:
    import gc
    import weakref

    layer, recordings = Layer(), Recordings(torch.device("cpu"))

    def function(layer: Layer, item: Tensor) -> Tensor:
        return outcome(inner.loop, item[0], item, layer)

    for _ in range(EAGER + 2):
        recordings.of(layer, "name", function)(layer, random(3, 4))
    (entry,) = recordings.entries[layer].values()
    assert entry.program, entry.why_not
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None


def test_a_step_that_k_decides_is_recorded_by_itself() -> None:
    rows = [random(4, seed=i).requires_grad_() for i in range(4)]

    def last(loop: Any, start: Tensor) -> Tensor:
        def step(w: Tensor, k: Tensor) -> Tensor:
            row = rows[min(k, 3)] if k else rows[0] * 0.5
            return torch.tanh(w * row) + sum(w.cos() for _ in range(k % 3)) * 0.1

        return loop(step, start, K).square().sum()

    def function(module: nn.Module, item: Tensor) -> Any:
        value = torch.vmap(lambda w: last(inner.loop, w))(item)
        return value, torch.autograd.grad(value.sum(), list(module.parameters()))

    module = nn.Module()
    module.rows = nn.ParameterList(rows)
    rows = list(module.rows)
    program, _ = record(function, module, random(3, 4))
    value = torch.vmap(lambda w: last(python, w))(random(3, 4, seed=8))
    expected = [value, *torch.autograd.grad(value.sum(), rows)]
    agree(tree_leaves(program([random(3, 4, seed=8), *rows])), expected)
    with pytest.raises(Exception, match="looks into the data"):  # it is the data that decide, not k
        record(lambda module, x: inner.loop(lambda w, k: w * 2 if w.sum() > 0 else w, x, K), module, random(4))


def test_what_no_step_changes_is_computed_once() -> None:
    calls: list[int] = []

    @opaque
    def features(x: Tensor) -> Tensor:
        calls.append(1)
        return x.cos()

    def function(layer: Layer, x: Tensor) -> Tensor:
        def step(w: Tensor, k: Tensor) -> Tensor:
            buffer = torch.zeros(4, dtype=torch.float64)
            buffer.add_(w)  # what is written to stays within the step, whatever it began as
            return torch.tanh(features(x.sum(0) * layer.shift) * buffer) + w / (k + 2)

        return inner.loop(step, x[0], K)

    program, _ = record(function, Layer(), random(3, 4))
    expected, layer = function(Layer(), random(3, 4, seed=9)), Layer()
    calls.clear()
    assert torch.equal(program([random(3, 4, seed=9), layer.weight, layer.shift]), expected)
    assert len(calls) == 2  # in the first step, which is recorded by itself, and for all others


class Loose:
    """An object with a tensor out of sight."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


GLOBAL = random(4, seed=7).requires_grad_()


@pytest.mark.parametrize("hidden", ["object", "global"])
def test_a_step_of_more_than_its_arguments_is_pythons_loop(hidden: str) -> None:
    loose = Loose(GLOBAL)

    def last(loop: Any) -> list[Tensor]:
        start = random(3, 4).requires_grad_()
        step: Callable[[Tensor, Tensor], Tensor] = (lambda w, k: w * loose.tensor) if hidden == "object" else lambda w, k: w * GLOBAL
        value = torch.vmap(lambda w: loop(step, w, K).sum())(start).sum()
        return [value, *torch.autograd.grad(value, [start, GLOBAL])]

    assert all(map(torch.equal, last(inner.loop), last(python)))


def test_a_state_that_changes_its_shape_is_pythons_loop() -> None:
    def grow(w: Tensor, k: Tensor) -> Tensor:
        return torch.cat([w, w[-1:] + k])

    assert torch.equal(inner.loop(grow, torch.zeros(1), K), python(grow, torch.zeros(1), K))


def test_a_state_that_stays_is_not_stacked() -> None:
    start = random(4)
    assert inner.loop(lambda w, k: w, start, K) is start


def test_threads_have_loops_of_their_own() -> None:
    expected = derivatives(inner.loop)

    def work(_: int) -> list[Tensor]:
        with recording_loops():
            return derivatives(inner.loop)

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(8)):
            assert all(map(torch.equal, found, expected))


def test_derivatives_by_other_transforms_are_pythons_loop() -> None:
    layer = Layer()
    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.hessian):
        found = [transform(lambda w, loop=loop: outcome(loop, w, DATA, layer))(DATA[0]) for loop in (inner.loop, python)]
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_no_gradient_no_graph() -> None:
    with torch.no_grad():
        value = outcome(inner.loop, random(4).requires_grad_(), DATA, Layer())
    assert not value.requires_grad


def test_memory_of_states_alone_hardly_grows_with_the_steps() -> None:
    """What is kept for the way back, in bytes, of a step whose inside is much larger than its state."""

    def kept(steps: int, kept: Any) -> int:
        wide = random(4, 500).requires_grad_()
        value = inner.loop(lambda w, k: torch.tanh(w @ wide) @ torch.tanh(wide.T), random(4), steps, kept=kept).sum()
        run = value.grad_fn.next_functions[0][0].run  # type: ignore[union-attr]
        tape = run.token.tape
        return sum(t.numel() for carry in tape.carries for t in carry) + len(tape.residuals) * 500

    assert kept(40, "states") < kept(40, "all") / 50
    assert kept(101, 10) < kept(101, "states") / 9


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_a_way_back_that_is_closed_over_stays_what_it_is(steps: int) -> None:
    """A Hessian's product keeps a graph through the very tensors that the step closes over; the module is another closure beside it."""
    module = nn.Linear(3, 1).double()
    x, fast = torch.randn(6, 3).double(), {name: p.detach() for name, p in module.named_parameters()}
    hessian = inner.hessian(lambda fast: functional_call(module, fast, (x,)).square().mean(), fast)

    def step(state: dict[str, Tensor], k: Any) -> dict[str, Tensor]:
        return inner.sgd(state, hessian(state), 0.1 + 0 * module.bias.detach())

    expected = start = {name: torch.ones_like(p) for name, p in fast.items()}
    for _ in range(steps):
        expected = step(expected, 0)
    found = inner.loop(step, start, steps)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=0)
    assert steps < 3 or float((expected["bias"] - 1).abs()) > 0.3
