"""Alpha MAML: the gradients of both learning rates, and MAML where they are not used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import engine, in_float64, meta_gradient, places, same, small
from torch.func import functional_call

from metarun.adaptation import adapt
from metarun.algos.gradient.alphamaml import AlphaMAML
from metarun.config.compose import compose, resolve
from metarun.config.schema import without_meta
from metarun.optim import MetaOptimizer
from metarun.protocols.episodes import EVERY
from metarun.run import Run
from metarun.task import Task, select

WORDS = ["net=mlp", "net.activation=tanh", "algo.inner_lr=0.25"]


def alphamaml(steps: int = 1, *words: str) -> tuple[AlphaMAML, Task]:
    values = small("algo=alphamaml", *WORDS, *words)
    values["algo"]["inner_steps"] = steps
    return in_float64(values, tasks=2)


def trained(algo: str, optim: str, steps: int, **changes: Any) -> tuple[Run, MetaOptimizer]:
    values = small(f"algo={algo}", *WORDS, f"optim={optim}", "optim.clip_norm=0.5")
    values["algo"] |= changes
    run = Run(values)
    outer = run.valid.optim.build(run.algorithm.groups())
    for i in range(steps):
        run.engine.train_on(run.algorithm, run.episodes("train"), places(2 * i, 2 * i + 1), (), i / steps)
        outer.step(i / steps)
    return run, outer


@pytest.mark.parametrize("optim", ["adam", "sgd"])
def test_without_rates_of_the_rates_it_is_maml_bit_for_bit(optim: str) -> None:
    runs = [trained("alphamaml", optim, 4, hyper_lr=0.0)[0], trained("maml", optim, 4)[0]]
    assert same(*(run.algorithm.learner() for run in runs))
    tasks = runs[0].episodes("val").batch(range(3))
    assert same(*(run.engine.evaluate(run.algorithm, tasks, EVERY) for run in runs))
    assert runs[0].algorithm.rate == 0.25


def test_one_step_has_the_papers_gradient_of_the_inner_rate() -> None:
    algorithm, tasks = alphamaml()
    products = []
    for i in range(2):
        task = select(tasks, i)
        *_, state = adapt(algorithm, task.context, 1)
        fast = {name: weight.detach().requires_grad_() for name, weight in state.fast.items()}
        x, y = task.query
        query = torch.autograd.grad(algorithm.problem.loss(functional_call(algorithm, fast, (x, x)), y), list(fast.values()))
        support = algorithm.support_gradient(algorithm.learner(), task.context, "none").values()
        products.append(sum((q * s).sum() for q, s in zip(query, support)))
    meta_gradient(algorithm, tasks, engine())
    torch.testing.assert_close(algorithm.rate.grad, -sum(products) / 2)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_gradient_of_the_inner_rate_agrees_with_finite_differences(steps: int) -> None:
    algorithm, tasks = alphamaml(steps)
    meta_gradient(algorithm, tasks, engine())
    slope, losses = algorithm.rate.grad.clone(), []
    for rate in (0.25 + 1e-5, 0.25 - 1e-5):
        algorithm.rate.data.fill_(rate)
        losses.append(engine().meta_gradient(algorithm, tasks, 0.0)["loss"])
    assert float(slope) == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-6)


def test_the_inner_rate_descends_by_its_own_rate_under_the_hypergradient_optimizer() -> None:
    algorithm, tasks = alphamaml(1, "algo.hyper_lr=0.5")
    outer = MetaOptimizer(algorithm.groups(), **without_meta(resolve(compose(["optim=hypergradient"]))["optim"]))
    meta_gradient(algorithm, tasks, engine())
    slope = float(algorithm.rate.grad)
    outer.step(0.0)
    assert algorithm.rate.item() == pytest.approx(0.25 - 0.5 * slope)


def test_the_inner_rate_stays_positive_and_is_logged() -> None:
    algorithm, tasks = alphamaml()
    meta_gradient(algorithm, tasks, engine())
    before = {name: p.grad for name, p in algorithm.named_parameters()}
    algorithm.rate.data.neg_()
    meta_gradient(algorithm, tasks, engine())
    for name, p in algorithm.named_parameters():
        torch.testing.assert_close(p.grad, -before[name] if name == "rate" else before[name])
    assert engine().meta_gradient(algorithm, tasks, 0.0)["inner_lr"] == pytest.approx(0.25)
