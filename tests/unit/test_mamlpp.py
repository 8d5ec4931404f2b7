"""MAML++: without its six changes it is MAML, and each of them alone does what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import engine, in_float64, meta_gradient, relative_error, slopes, small
from torch import Tensor

from metarun.adaptation import adapt
from metarun.algos.gradient.mamlpp import MAMLPP, loss_weights
from metarun.protocols.episodes import EVERY
from metarun.run import Run
from metarun.task import Task, select

OFF: dict[str, Any] = {
    "inner_lr": 0.25, "multi_step_loss": 0.0, "first_order_until": 0.0, "step_statistics": False, "step_norms": False, "step_rates": False,
}  # fmt: skip
NET = ["net=mlp", "net.activation=tanh", "net.norm=batch"]


def settings(algo: str, *words: str, **changes: Any) -> dict[str, Any]:
    values = small(f"algo={algo}", *NET, *words)
    values["algo"] |= changes
    return values


def plain(*words: str, **changes: Any) -> tuple[MAMLPP, Task]:
    """MAML++ with no change but these, in float64, and its tasks."""
    return in_float64(settings("mamlpp", *words, **OFF | changes), tasks=2)


def maml_gradient(like: MAMLPP, tasks: Task, **changes: Any) -> Tensor:
    """MAML's meta-gradient at the same weights."""
    maml, _ = in_float64(settings("maml", inner_lr=0.25, **changes), tasks=1)
    maml.load_state_dict(like.learner())
    return meta_gradient(maml, tasks, engine())


def learner_gradient(algorithm: MAMLPP, tasks: Task, progress: float = 0.0) -> Tensor:
    """The meta-gradient of the learner's weights alone."""
    algorithm.zero_grad()
    engine().meta_gradient(algorithm, tasks, progress)
    return torch.cat([weight.grad.flatten() for weight in algorithm.learner().values()])


@pytest.mark.parametrize("mode", ["unroll", "mixed", "none"])
def test_without_its_changes_it_is_maml_bit_for_bit(mode: str) -> None:
    gradients, losses = [], []
    for values in (settings("mamlpp", mode=mode, **OFF), settings("maml", mode=mode, inner_lr=0.25)):
        run = Run(values)
        tasks = run.episodes("train").batch(range(3))
        gradients.append(meta_gradient(run.algorithm, tasks, engine()))
        losses.append(engine().evaluate(run.algorithm, tasks, EVERY)["loss"])
    assert torch.equal(*gradients)
    assert torch.equal(*losses)
    assert gradients[0].norm() > 0


@pytest.mark.parametrize("epoch", range(10))
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_weights_of_the_losses_are_the_authors(steps: int, epoch: int) -> None:
    *early, last = loss_weights(steps, epoch / 10)
    assert early == pytest.approx([max(1 / steps - epoch / (10 * steps), 0.03 / steps)] * (steps - 1))
    assert last == pytest.approx(min(1 / steps + epoch * (steps - 1) / (10 * steps), 1 - (steps - 1) * 0.03 / steps))
    assert sum(early) + last == pytest.approx(1)


@pytest.mark.parametrize(("progress", "weights"), [(0.0, [1 / 3, 1 / 3, 1 / 3]), (0.25, [1 / 6, 1 / 6, 2 / 3]), (0.5, [0, 0, 1])])
def test_the_multi_step_loss_sums_the_losses_after_every_step(progress: float, weights: list[float]) -> None:
    algorithm, tasks = plain(multi_step_loss=0.5, inner_steps=3)
    expected = sum(v * maml_gradient(algorithm, tasks, inner_steps=k + 1) for k, v in enumerate(weights))
    assert relative_error(learner_gradient(algorithm, tasks, progress), expected) < 1e-12


@pytest.mark.parametrize(("progress", "first_order"), [(0.0, True), (0.39, True), (0.4, False), (1.0, False)])
def test_second_derivatives_come_in_when_they_should(progress: float, first_order: bool) -> None:
    algorithm, tasks = plain(first_order_until=0.4)
    expected = maml_gradient(algorithm, tasks, first_order=first_order)
    assert relative_error(learner_gradient(algorithm, tasks, progress), expected) < 1e-12


def test_equal_rates_are_maml_and_their_meta_gradient_agrees_with_finite_differences() -> None:
    algorithm, tasks = plain(step_rates=True)
    expected = maml_gradient(algorithm, tasks)
    assert algorithm.rates.shape == (2, len(algorithm.learner()))  # a row per step, a column per weight tensor
    assert relative_error(learner_gradient(algorithm, tasks), expected) < 1e-12
    rates = algorithm.rates.grad.clone()
    for place in [(0, 0), (1, 0), (0, 5), (1, 9)]:
        losses = []
        for sign in (1, -2):
            algorithm.rates.data[place] += sign * 1e-5
            losses.append(engine().meta_gradient(algorithm, tasks, 0.0)["loss"])
        algorithm.rates.data[place] += 1e-5
        assert float(rates[place]) == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-10)


def test_with_rates_and_norm_weights_per_step_the_meta_gradient_agrees_with_finite_differences() -> None:
    algorithm, tasks = plain(step_norms=True, step_rates=True)
    analytic, numeric = slopes(algorithm, tasks, step=1e-7)
    assert analytic == pytest.approx(numeric, rel=1e-6)


def test_every_weight_and_step_moves_by_its_own_rate() -> None:
    algorithm, tasks = plain(step_rates=True)
    algorithm.rates.data.copy_(torch.arange(1, 21).view(2, 10) / 10)
    context = select(tasks, 0).context
    states = list(adapt(algorithm, context, 3))
    for k, row in enumerate([0, 1, 1]):  # the third step has the second one's rates
        grads = algorithm.support_gradient(states[k].fast, context, "none")
        for rate, (name, grad) in zip(algorithm.rates[row], grads.items()):
            torch.testing.assert_close(states[k + 1].fast[name], states[k].fast[name] - rate * grad)


def test_norm_weights_belong_to_their_step_and_do_not_adapt() -> None:
    algorithm, tasks = plain(step_norms=True)
    assert algorithm.scales == [f"net.norms.{i}.{part}" for i in range(2) for part in ("weight", "bias")]
    for i, rows in enumerate(algorithm.later_scales):
        rows.data.copy_(torch.tensor([[2.0 + i], [3.0 + i]]))
    context = select(tasks, 0).context
    *_, (fast, own, _) = states = list(adapt(algorithm, context, 4))
    assert not set(fast) & set(own)
    assert set(fast) | set(own) == set(algorithm.learner())
    for i, name in enumerate(algorithm.scales):
        assert torch.equal(states[0].own[name], algorithm.get_parameter(name))
        assert [state.own[name].unique().tolist() for state in states[1:]] == [[2 + i], [3 + i], [3 + i], [3 + i]]
    before = algorithm.predict(states[1], tasks.query.x[0])
    for rows in algorithm.later_scales:
        rows.data[1] += 1  # of another step
    *_, after_one = adapt(algorithm, context, 1)
    assert torch.equal(algorithm.predict(after_one, tasks.query.x[0]), before)


def test_all_norm_weights_that_a_step_uses_are_learned() -> None:
    algorithm, tasks = plain(step_norms=True)
    meta_gradient(algorithm, tasks, engine())
    for name, rows in zip(algorithm.scales, algorithm.later_scales):
        assert rows.shape == (2, len(algorithm.get_parameter(name)))
        assert algorithm.get_parameter(name).grad.norm() > 0
        assert all(row.norm() > 0 for row in rows.grad)


def test_statistics_are_those_of_the_weights_after_every_step() -> None:
    """Of one task alone the population is the batch: with its own statistics, a step answers as if it were training."""
    algorithm, tasks = plain("net.norm=running", step_statistics=True)
    task = select(tasks, 0)
    algorithm.calibrate([task])
    assert algorithm.training
    algorithm.eval()
    states = list(adapt(algorithm, task.context, 4))
    answers = [algorithm.predict(state, task.query.x) for state in states]
    algorithm.train()
    for answer, state in zip(answers[:3], states):
        torch.testing.assert_close(answer, algorithm.predict(state, task.query.x))
    assert torch.equal(states[3].own["net.norms.0.mean"], states[2].own["net.norms.0.mean"])
    assert (answers[3] - algorithm.predict(states[3], task.query.x)).abs().max() > 1e-6


def test_statistics_are_part_of_a_checkpoint() -> None:
    algorithm, tasks = plain("net.norm=running", step_statistics=True)
    algorithm.calibrate([select(tasks, i) for i in range(2)])
    other, _ = plain("net.norm=running", step_statistics=True)
    other.load_state_dict(algorithm.state_dict())
    assert torch.equal(*(engine().evaluate(each.eval(), tasks, EVERY)["loss"] for each in (algorithm, other)))
