"""A recorded step is the step itself: the same bits for every algorithm, whatever changes between calls."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Hashable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import (
    CLASSIFIERS,
    LEARNERS,
    TRIED,
    Builder,
    by_family,
    classification,
    double,
    engine,
    in_float64,
    meta_gradient,
    relative_error,
    small,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from metarun import inner
from metarun.algorithm import Algorithm
from metarun.algos.gradient.maml import MAML
from metarun.engine import Engine
from metarun.kernels import numba_conv, select
from metarun.protocols.episodes import EVERY, LAST
from metarun.run import Run
from metarun.runtime import tracer
from metarun.runtime.cuda_graph import Graph
from metarun.runtime.program import Program
from metarun.runtime.recording import EAGER, MOST, Entry, Recordings, record
from metarun.runtime.settings import settings
from metarun.runtime.tracer import CannotRepeat, Guard

NEVER = {"maml_learn2learn"}  # runs task by task


def entries(how: Engine) -> Iterator[Entry]:
    assert how.executor.recordings
    return (entry for known in how.executor.recordings.entries.values() for entry in known.values())


def steps(run: Run, how: Engine, calls: int = EAGER + 3) -> list[Tensor]:
    """Meta-gradients of several steps on other episodes each, with weights that move in between."""
    algorithm, episodes, found = run.algorithm, run.episodes("train"), []
    for i in range(calls):
        algorithm.zero_grad(set_to_none=True)
        how.meta_gradient(algorithm, episodes.batch(range(2 * i, 2 * i + 2)), i / calls)
        for parameter in algorithm.parameters():
            if parameter.grad is not None:
                found.append(parameter.grad.clone())
                # Of length 0.01 at most: what has diverged is no number, and equals nothing.
                parameter.data.sub_(parameter.grad, alpha=0.01 / max(1.0, float(parameter.grad.norm())))
    return found


@pytest.mark.parametrize(("algo", "problem"), by_family(LEARNERS))
def test_a_replayed_step_has_the_bits_of_the_step(algo: str, problem: Builder) -> None:
    run, recorder = Run(problem(algo)), engine()
    now, eager = steps(run, recorder), steps(Run(problem(algo)), engine(record=False))
    assert len(now) == len(eager)
    assert all(map(torch.equal, now, eager))
    assert all(gradient.isfinite().all() for gradient in now)
    programs = [entry.program for entry in entries(recorder) if entry.calls > EAGER]
    if algo not in NEVER:
        assert programs
        assert all(programs), [entry.why_not for entry in entries(recorder)]


@pytest.mark.parametrize("algo", by_family(CLASSIFIERS))
def test_a_replayed_evaluation_has_the_bits_of_the_evaluation(algo: str) -> None:
    run, recorder = Run(classification(algo)), engine(chunk=2)
    run.algorithm.eval()
    for i in range(EAGER):
        tasks = run.episodes("test").batch(range(4 * i, 4 * i + 4))
        now, eager = (how.evaluate(run.algorithm, tasks, EVERY) for how in (recorder, engine(chunk=2, record=False)))
        assert now.keys() == eager.keys()
        assert all(torch.equal(now[name], eager[name]) for name in eager)
    if algo not in NEVER:
        assert all(entry.program for entry in entries(recorder)), [entry.why_not for entry in entries(recorder)]


MINIBATCHES = ["algo.optimizer=adam", "algo.inner_batch=1"]  # of which each step has another
LONG = [("maml", []), ("maml", ["algo.mode=mixed"]), ("mamlpp", []), ("reptile", MINIBATCHES), ("finetune", [])]


@pytest.mark.parametrize(("algo", "words"), LONG)
def test_a_long_inner_loop_is_recorded_and_is_pythons_loop(algo: str, words: list[str]) -> None:
    values = small("way=2", "query=1", f"algo={algo}", "net=mlp", *words)
    values["algo"] |= {key: 10 for key in ("inner_steps", "test_steps") if key in values["algo"]}
    algorithm, tasks = in_float64(values, tasks=2)
    recorder, eager, loop = engine(), engine(record=False), engine("loop")
    for _ in range(EAGER + 2):
        gradient, scores = meta_gradient(algorithm.train(), tasks, recorder), recorder.evaluate(algorithm.eval(), tasks, EVERY)
    assert torch.equal(gradient, meta_gradient(algorithm.train(), tasks, eager))
    assert relative_error(gradient, meta_gradient(algorithm.train(), tasks, loop)) < 1e-9
    assert scores["loss"].shape == (2, 11)
    assert torch.equal(scores["loss"], eager.evaluate(algorithm.eval(), tasks, EVERY)["loss"])
    torch.testing.assert_close(scores["loss"], loop.evaluate(algorithm.eval(), tasks, EVERY)["loss"], rtol=1e-9, atol=0)
    assert all(entry.program for entry in entries(recorder)), [entry.why_not for entry in entries(recorder)]


class Rollout(MAML):
    """A method with a training of many steps inside one inner step, and an answer that comes about move by move."""

    def step(self, state: Any, context: Any, k: Tensor) -> Any:
        fast = inner.loop(lambda fast, _: inner.sgd(fast, self.support_gradient(fast, context, "none"), 0.01), state.fast, 20)
        return super().step(state._replace(fast=fast), context, k)

    def predict(self, state: Any, x: Tensor) -> Tensor:
        logits = super().predict(state, x)
        return inner.loop(lambda answer, k: 0.9 * answer + torch.tanh(logits) / (k + 1), logits, 100)


def test_loops_of_a_methods_own_are_recorded() -> None:
    run = Run(small("way=2", "query=1", "algo=maml", "net=mlp"))
    run.algorithm.__class__ = Rollout
    algorithm, tasks = run.algorithm.double(), double(run.episodes("train").batch(range(2)))
    algorithm.inner_steps = 4
    recorder = engine()
    for _ in range(EAGER + 2):
        gradient, scores = meta_gradient(algorithm, tasks, recorder), recorder.evaluate(algorithm, tasks, EVERY)
    assert torch.equal(gradient, meta_gradient(algorithm, tasks, engine(record=False)))
    assert relative_error(gradient, meta_gradient(algorithm, tasks, engine("loop"))) < 1e-9
    torch.testing.assert_close(scores["loss"], engine("loop").evaluate(algorithm, tasks, EVERY)["loss"], rtol=1e-9, atol=0)
    assert all(entry.program for entry in entries(recorder)), [entry.why_not for entry in entries(recorder)]


@pytest.mark.parametrize("words", [["precision=bf16"], ["algo.mode=mixed"], ["algo.first_order=true"], ["net.norm=support"]])
def test_ways_to_compute_are_replayed(words: list[str]) -> None:
    values = small("algo=maml", "net.hidden=8", *words)
    run, other = Run(values), Run({**values, "engine": {**values["engine"], "record": False}})
    assert all(map(torch.equal, steps(run, run.engine), steps(other, other.engine)))
    assert all(entry.program for entry in entries(run.engine))


def test_a_setting_that_changes_between_steps_is_heeded() -> None:
    run, recorder = Run(small("algo=maml", "net.hidden=8")), engine()
    tasks = run.episodes("train").batch(range(2))
    for _ in range(EAGER + 2):
        recorder.meta_gradient(run.algorithm, tasks, 0.0)
    for name, value in (("inner_lr", 0.0), ("inner_steps", 1), ("mode", "none")):
        setattr(run.algorithm, name, value)
        found, expected = [], []
        for how, kept in ((recorder, found), (engine(record=False), expected)):
            run.algorithm.zero_grad(set_to_none=True)
            how.meta_gradient(run.algorithm, tasks, 0.0)
            kept += [p.grad for p in run.algorithm.parameters()]
        assert all(map(torch.equal, found, expected))


class PretendedGraph:
    """What stands in for a CUDA graph where there is none: what was done once is not done again."""

    def replay(self) -> None: ...


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's way to record, on tensors of the CPU, for which torch's operators do all the work."""
    monkeypatch.setattr(select, "loops", lambda device: None)
    monkeypatch.setattr(numba_conv, "covers", lambda *_: False)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {"Stream": lambda: stream, "current_stream": lambda: stream, "CUDAGraph": PretendedGraph}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: nullcontext())


@pytest.mark.parametrize(("algo", "problem"), by_family(LEARNERS))
def test_what_a_gpu_records_is_the_step(algo: str, problem: Builder, pretended: None) -> None:
    run, how = Run(problem(algo)), engine()
    tasks, seen = run.episodes("train").batch(range(2)), list[Any]()
    assert how.executor.recordings

    def keep(algorithm: Algorithm, name: Hashable, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: Algorithm, item: Any) -> Any:
            graph = Graph(function, module, item, None)
            seen.append((graph, item))
            return graph([leaf for leaf in tree_leaves(item) if isinstance(leaf, Tensor)])

        return call

    how.executor.recordings.of = keep  # type: ignore[method-assign]
    made, eager = (meta_gradient(run.algorithm, tasks, how) for how in (how, engine(record=False)))
    assert torch.equal(made, eager)
    assert bool(seen) == (algo not in NEVER)
    for graph, item in seen:
        graph([leaf + 1 for leaf in tree_leaves(item) if isinstance(leaf, Tensor)])
        assert all(torch.equal(mine, leaf + 1) for mine, leaf in zip(graph.places, tree_leaves(item)))


def test_a_look_into_the_data_is_known_before_a_gpu_records_it() -> None:
    with Guard():
        assert torch.ones(2)[torch.tensor([0, 1])].sum().shape == ()
        with pytest.raises(CannotRepeat, match="looks into the data"):
            torch.ones(2).sum().item()
        with pytest.raises(CannotRepeat, match="looks into the data"):
            torch.ones(2)[torch.tensor([True, False])]


@pytest.mark.parametrize(
    "register",
    [
        lambda net, hook: net.register_forward_hook(hook),
        lambda net, hook: next(net.parameters()).register_hook(hook),
        lambda net, hook: torch.nn.modules.module.register_module_forward_hook(hook),
    ],
    ids=["of a module", "of a tensor", "of all modules"],
)
def test_hooks_see_every_call(register: Callable[..., RemovableHandle], request: pytest.FixtureRequest) -> None:
    seen: list[int] = []
    run, recorder = Run(small("algo=protonet", "net.hidden=8")), engine()
    handle = register(run.algorithm.net, lambda *_: seen.append(1))
    request.addfinalizer(handle.remove)
    for _ in range(EAGER + 3):
        recorder.meta_gradient(run.algorithm, run.episodes("train").batch(range(2)), 0.0)
    assert len(seen) >= EAGER + 3


def test_a_module_with_a_hook_for_the_way_back_is_not_replayed() -> None:
    module = nn.Linear(2, 2)
    assert settings(module) is not None
    module.register_full_backward_pre_hook(lambda *_: None)
    assert settings(module) is None


class Affine(nn.Module):
    """A function to record."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))
        self.apart = torch.tensor(5.0)  # neither parameter nor buffer


def recorded(function: object, *items: Tensor) -> tuple[Entry, list[Tensor]]:
    module, replay = Affine(), Recordings(torch.device("cpu"))
    call = replay.of(module, "name", function)  # type: ignore[arg-type]
    found = [call(module, item) for item in items]
    (entry,) = replay.entries[module].values()
    return entry, found


def test_views_changes_in_place_and_constants() -> None:
    def function(module: Affine, x: Tensor) -> dict[str, Tensor]:
        y = (x * module.weight).reshape(2, 1, 2).transpose(0, 2)
        y[0].add_(torch.tensor(1.5))
        y[1].mul_(2)
        return {"y": torch.cat(y.unbind(0)), "same": x, "n": 3}

    items = [torch.arange(8.0).view(2, 4)[:, start : start + 2] for start in (0, 1, 2, 1, 0, 2)]  # other places in memory, same strides
    entry, found = recorded(function, *items)
    for item, result in zip(items, found):
        expected = function(Affine(), item)
        assert torch.equal(result["y"], expected["y"])
        assert torch.equal(result["same"], item)
        assert result["n"] == 3
    assert entry.program


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda module, x: x * 2 if x.sum() > 0 else x * 3, "looks into the data"),
        (lambda module, x: x[x > 0].sum(), "looks into the data"),
        (lambda module, x: x * module.apart, "neither an argument"),
        (lambda module, x: x * (1 + 0 * random.random()), "global generator"),
        (lambda module, x: x + 0 * np.random.normal(), "global generator"),  # noqa: NPY002
        (lambda module, x: x * float(module.weight.detach().numpy()[0]), "looks into the data"),
        (lambda module, x: x * sum(x.tolist()), "looks into the data"),
        (lambda module, x: x * np.asarray(x)[0], "looks into the data"),
    ],
)
def test_what_depends_on_more_than_shapes_is_called_every_time(function: object, why: str) -> None:
    items = [torch.tensor([1.0, -3.0]), torch.tensor([3.0, 1.0])] * 3
    entry, found = recorded(function, *items)
    assert all(torch.equal(result, function(Affine(), item)) for item, result in zip(items, found))  # type: ignore[operator]
    assert entry.program is None
    assert why in entry.why_not
    with pytest.raises(CannotRepeat, match=why):
        record(function, Affine(), items[0])  # type: ignore[arg-type]


def test_a_tensor_among_the_attributes_is_known_by_its_place() -> None:
    module = Affine()
    before = settings(module)
    module.apart += 1  # where it lay: a GPU reads it there
    assert settings(module) == before
    module.apart = module.apart + 1
    assert settings(module) != before


@pytest.mark.parametrize("values", [(math.sin, math.cos), (np.float32(1), np.float32(2)), (np.zeros(2), np.ones(2)), (1, 2), ("a", "b")])
def test_settings_are_known_by_what_they_are(values: tuple[object, object]) -> None:
    module, found = Affine(), []
    for value in (*values, values[0]):
        module.setting = value  # type: ignore[assignment]
        found.append(settings(module))
    assert found[0] == found[2] != found[1]


@dataclass
class Loose:
    """Anyone may change it."""

    value: float = 1.0


@dataclass(frozen=True)
class Firm:
    """As long as what it holds stays, it does."""

    value: Any


class Pair(NamedTuple):
    """Two values."""

    first: Any
    second: Any


def closure(value: Any) -> Callable[[], Any]:
    return lambda: value


HIDDEN = {
    "NumPy's generator": lambda: np.random.default_rng(0),
    "Python's generator": lambda: random.Random(0),
    "torch's generator": torch.Generator,
    "iterator": lambda: iter([1, 2]),
    "counter": lambda: itertools.count(),
    "generator of Python": lambda: (i for i in range(3)),
    "object": Loose,
    "bound method": lambda: np.random.default_rng(0).random,
    "method of an object of Python": lambda: random.Random(0).random,
    "partial": lambda: partial(max, Loose()),
    "closure": lambda: closure(random.Random(0)),
    "default": lambda: lambda x, rng=random.Random(0): rng.random(),
    "frozen dataclass": lambda: Firm(Loose()),
    "named tuple": lambda: Pair(1, Loose()),
    "list": lambda: [1, {"a": (Loose(),)}],
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_module_with_a_state_that_cannot_be_seen_is_run_as_it_is(kind: str) -> None:
    module, replay = Affine(), Recordings(torch.device("cpu"))
    assert settings(module) is not None
    module.hidden = HIDDEN[kind]()
    assert settings(module) is None
    called: list[int] = []
    call = replay.of(module, "name", lambda module, x: called.append(1) or x * module.weight)
    for _ in range(EAGER + 2):
        call(module, torch.ones(2))
    assert len(called) == EAGER + 2


def test_a_generator_of_the_modules_own_goes_on() -> None:
    module, replay = Affine(), Recordings(torch.device("cpu"))
    module.rng = np.random.default_rng(0)
    call = replay.of(module, "name", lambda module, x: x * module.rng.random())
    found, again = [float(call(module, torch.ones(()))) for _ in range(EAGER + 4)], np.random.default_rng(0)
    assert found == [pytest.approx(again.random(), rel=1e-6) for _ in found]


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (lambda: Firm(1.0), lambda: Firm(2.0)),
        (lambda: Pair(1, "a"), lambda: Pair(1, "b")),
        (lambda: partial(max, 1), lambda: partial(max, 2)),
        (lambda: partial(max, 1), lambda: partial(min, 1)),
        (lambda: closure(1), lambda: closure(2)),
        (lambda: closure(closure(np.zeros(2))), lambda: closure(closure(np.ones(2)))),
        (lambda: Firm(1.0).__eq__, lambda: Firm(2.0).__eq__),
        (lambda: {1: [2]}, lambda: {1: [3]}),
        (lambda: torch.float32, lambda: torch.float64),
        (lambda: {1, 2}, lambda: {1, 3}),
        (lambda: [nn.Dropout(0.1)], lambda: [nn.Dropout(0.2)]),
    ],
    ids=[
        "frozen dataclass",
        "named tuple",
        "partial",
        "partial of another",
        "closure",
        "closure in a closure",
        "bound method",
        "dict",
        "dtype",
        "set",
        "module",
    ],
)
def test_what_can_be_seen_is_compared_by_what_it_holds(value: Callable[[], Any], other: Callable[[], Any]) -> None:
    module, found = Affine(), []
    for make in (value, other, value):
        module.setting = make()
        found.append(settings(module))
    assert None not in found
    assert found[0] == found[2] != found[1]


def test_objects_that_refer_to_each_other_are_compared() -> None:
    module = Affine()
    module.method = module.forward
    module.loop = [1]
    module.loop.append(module.loop)
    assert settings(module) == settings(module) is not None


def test_every_algorithm_is_recorded() -> None:
    hidden = {algo for (algo, _), tried in TRIED.items() if isinstance(tried, Algorithm) and settings(tried) is None}
    assert hidden <= NEVER


def test_a_number_may_be_passed_on_but_not_computed_with() -> None:
    def function(module: Affine, item: tuple[Tensor, float]) -> Tensor:
        return item[0] * module.weight if module.training else item[0] * module.weight.sum() * (1 - item[1])

    for trains, ever in ((True, ""), (False, "number that changes")):
        module, replay = Affine().train(trains), Recordings(torch.device("cpu"))
        call, x = replay.of(module, "name", function), torch.tensor([2.0, 3.0])
        for i in range(EAGER + 3):
            made = call(module, (x, 0.1 * i))
            assert made.dtype == torch.float32
            assert torch.equal(made, function(module, (x, 0.1 * i)))
        (entry,) = replay.entries[module].values()
        assert ever in entry.why_not
        assert bool(entry.program) == trains


@pytest.mark.parametrize(
    "function",
    [
        lambda module, x: (z := torch.fft.fft(x * module.weight)) * z.conj(),
        lambda module, x: torch.fft.fft(x * module.weight).real[1:],
        lambda module, x: torch.autograd.grad(torch.fft.rfft2(x[None] * module.weight).abs().square().sum(), module.weight)[0],
        lambda module, x: (x * module.weight).view(torch.int32)[1:].float(),
        lambda module, x: torch.fft.fft(x * module.weight).conj().imag[1:] * 2,
    ],
    ids=["conjugate", "real part", "derivative of an absolute value", "bits", "part of a conjugate"],
)
def test_views_that_read_memory_in_another_way(function: object) -> None:
    items = [torch.tensor([1.0 + i, -3.0]) for i in range(EAGER + 3)]
    entry, found = recorded(function, *items)
    assert entry.program, entry.why_not
    assert all(torch.equal(result, function(Affine(), item)) for item, result in zip(items, found))  # type: ignore[operator]


def test_views_of_the_same_memory_are_one() -> None:
    def function(module: Affine, x: Tensor) -> list[Tensor]:
        y = x + 1
        flat, again, same = y.view(-1), y.reshape(4), y.view(2, 2)  # two are one, and the third is y
        rows = [x.permute(0, 1), x.T, x.T]  # the first is x, two are one
        flat.mul_(2)  # seen through all of them
        return [again * 1, same * 1, y.T @ rows[1], rows[0] - rows[2]]

    items = [torch.arange(8.0).view(2, 4)[:, start : start + 2] for start in (0, 1, 2, 1, 0, 2)]
    entry, found = recorded(function, *items)
    assert isinstance(entry.program, Program), entry.why_not
    assert sum(operation.function is torch.ops.aten.as_strided.default for operation in entry.program.operations) == 2
    for item, result in zip(items, found):
        assert all(map(torch.equal, result, function(Affine(), item)))


def test_a_tensor_that_is_turned_in_place_lies_elsewhere_afterwards() -> None:
    def function(module: Affine, x: Tensor) -> list[Tensor]:
        y = x + 1
        before = y.view(2, 3) * 2
        y.t_()
        return [before, y.as_strided((2, 3), (3, 1)) * 2, y.sum(0), x.as_strided((2, 3), (3, 1), x.storage_offset()) + 1]

    entry, found = recorded(function, *(torch.arange(6.0).view(2, 3) * i for i in range(EAGER + 3)))
    assert entry.program, entry.why_not
    for i, result in enumerate(found):
        assert all(map(torch.equal, result, function(Affine(), torch.arange(6.0).view(2, 3) * i)))


def test_an_error_of_the_functions_own_is_raised_as_ever() -> None:
    def function(module: Affine, x: Tensor) -> Tensor:
        return x @ torch.ones(3)

    for _ in range(EAGER + 2):
        with pytest.raises(RuntimeError, match="size"):
            recorded(function, *[torch.ones(2)] * (EAGER + 2))


def test_dead_operations_are_left_out_and_memory_is_given_back() -> None:
    def function(module: Affine, x: Tensor) -> Tensor:
        (x * 5).exp()
        return (x + 1).cos()

    program, _ = record(function, Affine(), torch.ones(2))
    plain = Program(program.operations, program.inputs, program.result, script=False)
    inputs = [torch.ones(2), Affine().weight]
    assert torch.equal(plain(inputs), program(inputs))
    _taken, *operations, _returned = plain.lines
    assert len(operations) == 2
    assert sum("; del " in line for line in operations) == 1


def test_settings_that_change_with_every_call_are_not_remembered_for_ever() -> None:
    run, how = Run(small("algo=maml", "net.hidden=8")), engine()
    tasks = run.episodes("train").batch(range(2))
    for i in range(MOST + 3):
        run.algorithm.inner_lr = 0.1 + 0.001 * i
        how.evaluate(run.algorithm, tasks, LAST)
    assert len(list(entries(how))) == MOST


def test_a_long_program_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracer, "LONGEST", 5)
    entry, found = recorded(lambda module, x: sum(x * i for i in range(9)), *[torch.ones(2)] * (EAGER + 2))
    assert all(torch.equal(result, torch.full((2,), 36.0)) for result in found)
    assert "more than 5 operations" in entry.why_not


def test_an_algorithm_that_is_gone_takes_its_programs_along() -> None:
    how = engine()
    run = Run(small("algo=protonet", "net.hidden=8"))
    for _ in range(EAGER + 2):
        how.meta_gradient(run.algorithm, run.episodes("train").batch(range(2)), 0.0)
    assert isinstance(run.algorithm, Algorithm)
    assert len(list(entries(how))) == 1
    del run
    assert not list(entries(how))


def test_a_number_of_the_code_may_decide_until_it_is_written_to() -> None:
    def function(module: Affine, x: Tensor) -> Tensor:
        n, other = torch.tensor(2), torch.zeros(2)
        other.add_(x)  # writes elsewhere
        return sum(x * i for i in range(n + 1))

    def written(module: Affine, x: Tensor) -> Tensor:
        n = torch.tensor(2.0)
        n.add_(x[0])
        return x if n > 1 else -x

    program, _ = record(function, Affine(), torch.ones(2))
    assert torch.equal(program([2 * torch.ones(2), Affine().weight]), 6 * torch.ones(2))
    with pytest.raises(CannotRepeat, match="looks into the data"):
        record(written, Affine(), torch.ones(2))
    with Guard(), pytest.raises(CannotRepeat, match="looks into the data"):
        written(Affine(), torch.ones(2))
