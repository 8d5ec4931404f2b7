"""The engine: one result whatever the chunks and blocks, memory that stays flat, bf16 around fp32 weights."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from helpers import engine, in_float64, meta_gradient, places, relative_error, small
from torch import Tensor, nn

from metarun import engine as engine_module
from metarun.adaptation import adapt
from metarun.engine import Engine
from metarun.errors import UserError
from metarun.protocols.episodes import EVERY, LAST
from metarun.run import Run
from metarun.runtime import memory
from metarun.runtime.recording import EAGER
from metarun.task import select

MAML = ["algo=maml", "net.hidden=8", "net.down=stride"]


@pytest.mark.slow
def test_metrics_are_means_over_tasks_and_gradients_of_the_mean() -> None:
    algorithm, tasks = in_float64(small(*MAML), tasks=3)
    together = engine(chunk=2).meta_gradient(algorithm, tasks, 0.0)
    gradient = meta_gradient(algorithm, tasks, engine())
    singles = [engine().meta_gradient(algorithm, select(tasks, slice(i, i + 1)), 0.0) for i in range(3)]
    assert together["loss"] == pytest.approx(np.mean([single["loss"] for single in singles]), rel=1e-12)
    parts = [meta_gradient(algorithm, select(tasks, slice(i, i + 1)), engine()) for i in range(3)]
    assert relative_error(sum(parts) / 3, gradient) < 1e-12


def test_gradients_add_up_in_grad() -> None:
    algorithm, tasks = in_float64(small(*MAML), tasks=1)
    once = meta_gradient(algorithm, tasks, engine())
    engine().meta_gradient(algorithm, tasks, 0.0)  # a second time, without clearing
    twice = torch.cat([p.grad.flatten() for p in algorithm.parameters()])
    assert relative_error(twice, 2 * once) < 1e-12


@pytest.mark.parametrize(
    ("returned", "line"),
    [
        (lambda loss, metrics: (loss.expand(3), metrics), r"returned a tensor \[3\] as the loss: return one number for a task"),
        (lambda loss, metrics: (loss, {"hits": loss.expand(3)}), r"returned a tensor \[3\] as the metric hits"),
        (lambda loss, metrics: (loss, {"hits": 0.5}), "returned a float as the metric hits"),
        (lambda loss, metrics: loss, r"returned a Tensor: return the loss, a tensor \[\], and a dictionary of metrics"),
    ],
)
def test_an_objective_is_one_number(returned: Any, line: str) -> None:
    """Of several the meta-gradient would be that of their sum."""
    algorithm, tasks = in_float64(small("algo=protonet", "net.hidden=8"), tasks=2)
    objective = algorithm.objective
    algorithm.objective = lambda *given: returned(*objective(*given))  # type: ignore[method-assign]
    with pytest.raises(UserError, match=f"ProtoNet.objective {line}"):
        engine().meta_gradient(algorithm, tasks, 0.0)


def test_gradients_that_are_equal_are_not_one_tensor() -> None:
    algorithm, tasks = in_float64(small("algo=protonet", "net.hidden=8"), tasks=2)
    algorithm.a, algorithm.b = (nn.Parameter(torch.tensor(value).double()) for value in (1.0, 2.0))
    objective = algorithm.objective
    algorithm.objective = lambda *given: (objective(*given)[0] * (algorithm.a + algorithm.b), {})  # type: ignore[method-assign]
    for _ in range(EAGER + 2):
        algorithm.zero_grad(set_to_none=True)
        assert engine().meta_gradient(algorithm, tasks, 0.0) == {}  # no metrics
    assert torch.equal(algorithm.a.grad, algorithm.b.grad)
    assert algorithm.a.grad.data_ptr() != algorithm.b.grad.data_ptr()


def test_training_on_indices_is_the_meta_gradient_of_those_episodes() -> None:
    run = Run(small(*MAML))
    algorithm, episodes = run.algorithm, run.episodes("train")
    direct = meta_gradient(algorithm, episodes.batch([4, 5, 6]), engine())
    algorithm.zero_grad(set_to_none=True)
    metrics = engine().train_on(algorithm, episodes, places(4, 5, 6), (), 0.0)[0]
    assert torch.equal(torch.cat([p.grad.flatten() for p in algorithm.parameters()]), direct)
    assert set(metrics) == {"loss", "accuracy"}


def test_the_curve_starts_before_adaptation_and_ends_with_the_score() -> None:
    algorithm, tasks = in_float64(small(*MAML), tasks=4)
    algorithm.test_steps = 3
    curve, last = (engine().evaluate(algorithm, tasks, asked) for asked in (EVERY, LAST))
    assert curve["score"].shape == (4, 4)
    assert last["score"].shape == (4, 1)
    for name in ("score", "loss"):
        torch.testing.assert_close(curve[name][:, -1:], last[name])
    unadapted = algorithm.predict(algorithm.begin(select(tasks, 0).context), tasks.query.x[0])
    torch.testing.assert_close(curve["loss"][0, 0], algorithm.problem.loss(unadapted, tasks.query.y[0]).detach())


@pytest.mark.parametrize(("map", "chunk"), [("vmap", 3), ("loop", 1)])
def test_evaluation_does_not_depend_on_the_mapping(map: str, chunk: int) -> None:
    algorithm, tasks = in_float64(small(*MAML), tasks=5)
    expected, actual = (how.evaluate(algorithm, tasks, EVERY) for how in (engine(), engine(map, chunk)))
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-9, atol=1e-12)


def test_scores_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(small("algo=protonet", "net.hidden=8"))
    episodes = run.episodes("val")
    calls: list[list[int]] = []
    results = []
    for budget in (1, 100_000, 2**30):
        monkeypatch.setattr(engine_module, "EPISODE_BYTES", budget)
        calls.append([])
        results.append(engine().score(run.algorithm, episodes, 5, EVERY, calls[-1].append))
    assert calls[0] == [1, 2, 3, 4, 5]
    assert calls[2] == [5]
    for result in results[1:]:
        np.testing.assert_allclose(result["loss"], results[0]["loss"], rtol=1e-5)
        np.testing.assert_array_equal(result["score"], results[0]["score"])
    assert results[0]["score"].dtype == np.float64


def test_scoring_lets_go_of_past_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(small("algo=protonet", "net.hidden=8"))
    episodes, alive = run.episodes("val"), []
    seen: list[weakref.ref[Tensor]] = []
    batch = episodes.batch

    def watched(indices: range) -> object:
        tasks = batch(indices)
        seen.append(weakref.ref(tasks.query.x))
        alive.append(sum(ref() is not None for ref in seen))
        return tasks

    monkeypatch.setattr(engine_module, "EPISODE_BYTES", 1)
    monkeypatch.setattr(episodes, "batch", watched)
    engine().score(run.algorithm, episodes, 8, LAST, lambda done: None)
    assert max(alive) <= 2


def test_scoring_evaluates_and_returns_to_training() -> None:
    run = Run(small("algo=protonet", "net.hidden=8"))
    modes = []
    run.algorithm.net.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    run.algorithm.train()
    engine("loop", 2).score(run.algorithm, run.episodes("val"), 2, LAST, lambda done: None)
    assert run.algorithm.training
    assert not any(modes[1:])  # the first call may be the engine's own, to measure the net


def test_automatic_chunks_depend_on_shapes_alone_and_shrink_with_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, tasks = in_float64(small(*MAML), tasks=6)
    auto = engine(chunk="auto")
    sizes = []
    for budget in (2**40, 2**20, 1):
        monkeypatch.setattr(memory, "CPU_BYTES", budget)
        sizes.append(engine(chunk="auto").chunk_size(algorithm, tasks, train=True))
    assert sizes[0] == 3  # two halves, side by side
    assert sizes[2] == 1
    assert sizes == sorted(sizes, reverse=True)
    monkeypatch.setattr(memory, "CPU_BYTES", 2**19)
    assert auto.chunk_size(algorithm, tasks, train=True) <= auto.chunk_size(algorithm, tasks, train=False)
    assert engine(chunk=4).chunk_size(algorithm, tasks, train=True) == 4


def test_what_a_method_compares_pixel_by_pixel_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 20-way 5-shot test of nearest neighbours holds 94 MB of differences a task, and more than 500 tasks at a time fill a machine."""
    algorithm, tasks = in_float64(small("algo=nearest", "way=3", "shot=2", "query=4"), tasks=12)
    differences = 12 * 6 * tasks.query.x[0, 0].numel()
    monkeypatch.setattr(memory, "CPU_BYTES", 4 * 8 * differences)
    assert engine(chunk="auto").chunk_size(algorithm, tasks, train=False) <= 4


def test_automatic_chunks_come_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, tasks = in_float64(small(*MAML), tasks=12)
    sizes = set()
    for power in range(14, 32):
        monkeypatch.setattr(memory, "CPU_BYTES", 2**power)
        sizes.add(engine(chunk="auto").chunk_size(algorithm, tasks, train=True))
    assert sizes == {6, 3, 2, 1}  # 2, 4, 6 and 12 chunks, never the 3 of which one core would have to do two


def test_automatic_chunks_do_not_shrink_with_long_inner_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(steps: int, *words: str) -> int:
        algorithm, tasks = in_float64(small("net.hidden=8", "algo=maml", *words), tasks=12)
        algorithm.inner_steps = steps
        return engine(chunk="auto").chunk_size(algorithm, tasks, train=True)

    one, tasks = in_float64(small("net.hidden=8", "algo=maml"), tasks=12)
    held = one.footprint(select(tasks, 0), True)
    monkeypatch.setattr(memory, "CPU_BYTES", 3 * engine()._activation_bytes(one) * (held.examples + held.repeated * memory.KEPT_STEPS))
    assert size(1) > size(memory.KEPT_STEPS) == size(40) == size(400) == 3
    assert size(400, "algo.mode=mixed") == size(1)  # states alone are kept


@pytest.mark.parametrize("algo", [pytest.param("maml", marks=pytest.mark.slow), "protonet"])
def test_bf16_keeps_weights_gradients_and_losses_in_fp32(algo: str) -> None:
    values = small(f"algo={algo}", "data=glyphs", "net.down=stride")
    values["algo"] |= {key: 0.05 for key in values["algo"] if key == "inner_lr"}  # large steps amplify rounding
    run = Run(values)
    tasks = run.episodes("train").batch(range(8))
    exact = meta_gradient(run.algorithm, tasks, engine())
    half = Engine(torch.device("cpu"), "bf16", map="vmap", chunk=4)
    rough = meta_gradient(run.algorithm, tasks, half)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in run.algorithm.parameters() if p.grad is not None)
    assert half.evaluate(run.algorithm, tasks, LAST)["loss"].dtype == torch.float32
    cosine = float(torch.nn.functional.cosine_similarity(rough, exact, dim=0))
    assert 0.85 < cosine < 1 - 1e-7  # roughly the same direction, and yet not the same numbers


def test_adapt_yields_the_start_and_every_step() -> None:
    run = Run(small(*MAML))
    context = select(run.episodes("train").batch([0]), 0).context
    states = list(adapt(run.algorithm, context, 2))
    assert len(states) == 3
    assert states[0].fast.keys() == states[2].fast.keys() == run.algorithm.learner().keys()
    assert not torch.equal(states[1].fast["head.weight"], states[2].fast["head.weight"])


@pytest.mark.parametrize("remat", ["all", "states", 1, 3])
def test_what_a_loop_keeps_changes_no_result(remat: Any) -> None:
    values = small("algo=maml", "net.hidden=8")
    algorithm, tasks = in_float64(values | {"algo": values["algo"] | {"inner_steps": 8}})
    found = [meta_gradient(algorithm, tasks, Engine(torch.device("cpu"), "fp32", map="vmap", chunk=1000, remat=r)) for r in ("auto", remat)]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("algo", ["anil", "baseline", "baselinepp", "lrd2"])
def test_a_curve_takes_support_and_query_through_the_net_once(algo: str) -> None:
    run = Run(small(f"algo={algo}", "net.hidden=8"))
    algorithm, tasks, calls = run.algorithm.eval(), run.episodes("test").batch(range(2)), []
    handle = algorithm.net.register_forward_hook(lambda *_: calls.append(1))
    found = engine("loop").evaluate(algorithm, tasks, EVERY)
    handle.remove()
    assert found["score"].shape == (2, algorithm.test_steps + 1)
    assert algorithm.test_steps > 1
    assert len(calls) == 2 * len(tasks.query.y)
