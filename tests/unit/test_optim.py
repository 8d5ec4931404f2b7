"""The outer optimizer: schedules at their ends, clipping, decay, and a state that survives a resume."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from helpers import Identity, engine, places, small, vectors
from torch import Tensor, nn

from metarun.algorithm import Algorithm, Metrics
from metarun.errors import UserError
from metarun.nets.base import Net
from metarun.optim import MetaOptimizer, Schedule, lr_scale
from metarun.problem import Problem
from metarun.run import Run
from metarun.task import Context, Task, stack

DEFAULTS: dict[str, Any] = {
    "method": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0, "final_lr": 0.0,
    "clip_norm": None, "clip_value": None,
}  # fmt: skip


def outer(parameters: list[nn.Parameter], **values: Any) -> MetaOptimizer:
    return MetaOptimizer(parameters, **{**DEFAULTS, **values})


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def step(optimizer: MetaOptimizer, p: nn.Parameter, gradient: Tensor, progress: float = 0.0) -> dict[str, float]:
    p.grad = gradient.clone()
    return optimizer.step(progress)


def test_a_step_shares_its_arithmetic_with_no_thread_that_would_then_spin_beside_the_chunks() -> None:
    p, seen = parameter(1.0), list[int]()
    optimizer = outer([p])
    assert optimizer.torch
    optimizer.torch.register_step_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        step(optimizer, p, torch.ones(1))
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.55), ("linear", 0.55)])
def test_schedules_start_at_one_and_end_at_the_final_fraction(schedule: Schedule, middle: float) -> None:
    assert lr_scale(schedule, 0.0, 0.0, 0.1) == 1
    assert lr_scale(schedule, 0.5, 0.0, 0.1) == pytest.approx(middle)
    assert lr_scale(schedule, 1.0, 0.0, 0.1) == pytest.approx(0.1)
    values = [lr_scale(schedule, i / 20, 0.0, 0.1) for i in range(21)]
    assert values == sorted(values, reverse=True)


def test_cosine_falls_late_at_first_and_constant_never() -> None:
    assert lr_scale("cosine", 0.25, 0.0, 0.0) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert [lr_scale("constant", x, 0.0, 0.1) for x in (0.0, 0.5, 1.0)] == [1, 1, 1]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_warm_up_rises_from_almost_nothing_to_one(schedule: Schedule) -> None:
    values = [lr_scale(schedule, x, 0.2, 0.0) for x in (0.0, 0.1, 0.2)]
    assert 0 < values[0] < 0.01
    assert values[1] == pytest.approx(0.5, abs=0.01)
    assert values[2] == pytest.approx(1)


def test_plain_sgd_steps_against_the_gradient_and_clears_it() -> None:
    p = parameter(1.0, 2.0)
    logged = step(outer([p]), p, torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(p.data, torch.tensor([0.7, 1.6]))
    assert logged == {"lr": pytest.approx(0.1), "grad_norm": pytest.approx(5)}
    assert p.grad is None


def test_the_schedule_scales_the_step() -> None:
    p = parameter(0.0)
    assert step(outer([p], schedule="linear"), p, torch.ones(1), progress=0.75)["lr"] == pytest.approx(0.025)
    torch.testing.assert_close(p.data, torch.tensor([-0.025]))


def test_clipping_by_norm_keeps_the_direction_and_by_value_does_not() -> None:
    p = parameter(0.0, 0.0)
    logged = step(outer([p], lr=1.0, clip_norm=1.0), p, torch.tensor([30.0, 40.0]))
    torch.testing.assert_close(p.data, torch.tensor([-0.6, -0.8]))
    assert logged["grad_norm"] == pytest.approx(50)  # before clipping
    q = parameter(0.0, 0.0)
    step(outer([q], lr=1.0, clip_value=2.0), q, torch.tensor([30.0, 1.0]))
    torch.testing.assert_close(q.data, torch.tensor([-2.0, -1.0]))


@pytest.mark.parametrize(("method", "reference"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adam_is_the_textbook_one(method: str, reference: type[torch.optim.Optimizer]) -> None:
    p, q = parameter(1.0, -2.0), parameter(1.0, -2.0)
    ours, theirs = outer([p], method=method, momentum=0.9, weight_decay=0.01), reference([q], lr=0.1, weight_decay=0.01)
    for i in range(5):
        gradient = torch.tensor([0.3 * i, -1.0])
        step(ours, p, gradient)
        q.grad = gradient
        theirs.step()
    torch.testing.assert_close(p, q)


def test_a_restored_optimizer_goes_on_where_it_was() -> None:
    p, gradients = parameter(1.0, -2.0), torch.randn(6, 2)
    straight = outer([p], method="adam", momentum=0.9)
    for gradient in gradients[:3]:
        step(straight, p, gradient)
    q = nn.Parameter(p.detach().clone())
    resumed = outer([q], method="adam", momentum=0.9)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for gradient in gradients[3:]:
        step(straight, p, gradient)
        step(resumed, q, gradient)
    assert torch.equal(p, q)


def test_frozen_parameters_stay_and_nothing_to_learn_is_fine() -> None:
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    nothing = outer([frozen], weight_decay=0.5)
    assert nothing.step(0.0) == {}
    nothing.load_state_dict(nothing.state_dict())
    assert frozen.item() == 1


def test_a_gradient_that_is_not_finite_is_not_applied() -> None:
    weight = parameter(1.0, 1.0, 1.0)
    logged = step(outer([weight]), weight, torch.tensor([0.0, float("nan"), 1.0]))
    assert math.isnan(logged["grad_norm"])
    assert weight.tolist() == [1.0, 1.0, 1.0]


def test_a_group_keeps_its_own_learning_rate_under_the_schedule() -> None:
    p, q, frozen = parameter(0.0), parameter(0.0), nn.Parameter(torch.ones(1), requires_grad=False)
    optimizer = MetaOptimizer(
        [{"params": [p, frozen]}, {"params": [q], "lr": 0.5}, {"params": [frozen], "lr": 1.0}], **DEFAULTS | {"schedule": "linear"}
    )
    p.grad, q.grad = torch.ones(1), torch.ones(1)
    assert optimizer.step(0.5)["lr"] == pytest.approx(0.05)
    assert [weight.item() for weight in (p, q, frozen)] == pytest.approx([-0.05, -0.25, 1])


def test_the_learning_rate_descends_along_the_product_of_successive_gradients() -> None:
    p, own, lr = parameter(1.0, 2.0), parameter(3.0), 0.1
    gradients = [torch.tensor(g) for g in ([1.0, 0.0], [2.0, 1.0], [-1.0, 3.0], [0.5, -1.0])]
    optimizer = MetaOptimizer([{"params": [p]}, {"params": [own], "lr": 0.3}], **DEFAULTS | {"hyper_lr": 0.01})
    expected = p.detach().clone()
    for last, gradient in zip([torch.zeros(2), *gradients], gradients):
        lr += 0.01 * float(last @ gradient)
        expected -= lr * gradient
        own.grad = torch.full((1,), 100.0)  # has a rate of its own, and no say in the other
        assert step(optimizer, p, gradient)["lr"] == pytest.approx(lr)
        torch.testing.assert_close(p.data, expected)


def test_the_learned_rate_descends_the_loss_by_finite_differences() -> None:
    """β's gradient at a step of Adam on a curved loss, against the loss after steps of two sizes."""
    start, curvature = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([3.0, 0.5], dtype=torch.float64)

    def after_one_step(lr: float) -> tuple[MetaOptimizer, nn.Parameter]:
        p = nn.Parameter(start.clone())
        optimizer = outer([p], method="adam", momentum=0.9, lr=lr, hyper_lr=1.0)
        step(optimizer, p, curvature * p.detach())
        return optimizer, p

    (_, up), (_, down) = after_one_step(0.1 + 1e-6), after_one_step(0.1 - 1e-6)
    slope = float((curvature * (up.detach() ** 2 - down.detach() ** 2)).sum() / 2 / 2e-6)
    optimizer, p = after_one_step(0.1)
    assert step(optimizer, p, curvature * p.detach())["lr"] == pytest.approx(0.1 - slope)


def test_the_learned_rate_stays_positive_and_survives_a_resume() -> None:
    p = parameter(1.0)
    straight = outer([p], hyper_lr=1.0)
    step(straight, p, torch.tensor([1.0]))
    resumed_p = nn.Parameter(p.detach().clone())
    resumed = outer([resumed_p], hyper_lr=1.0)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for gradient in (0.3, -5.0, 0.1):
        gradient = torch.tensor([gradient])
        assert step(straight, p, gradient) == step(resumed, resumed_p, gradient)
    assert torch.equal(p, resumed_p)
    assert straight.lr == pytest.approx(1e-4)  # a thousandth: the products were -1.5 and -0.5


def test_a_group_keeps_its_own_betas() -> None:
    (p, q), (a, b) = (parameter(1.0, -2.0), parameter(0.5)), (parameter(1.0, -2.0), parameter(0.5))
    ours = MetaOptimizer(
        [{"params": [p]}, {"params": [q], "lr": 0.3, "betas": (0.5, 0.8)}], **DEFAULTS | {"method": "adam", "momentum": 0.9}
    )
    theirs = torch.optim.Adam([{"params": [a]}, {"params": [b], "lr": 0.3, "betas": (0.5, 0.8)}], lr=0.1, betas=(0.9, 0.999))
    for i in range(6):
        for mine, other in ((p, a), (q, b)):
            mine.grad = torch.full_like(mine, math.sin(3 * i + 1))
            other.grad = mine.grad.clone()
        ours.step(0.0)
        theirs.step()
    torch.testing.assert_close((p, q), (a, b))


def test_a_group_takes_every_so_many_th_step_only_and_its_moments_wait() -> None:
    p, q, alone = parameter(0.0), parameter(0.0), parameter(0.0)
    groups = [{"params": [p]}, {"params": [q], "every": 3}]
    both, third = MetaOptimizer(groups, **DEFAULTS | {"method": "adam", "momentum": 0.9}), outer([alone], method="adam", momentum=0.9)
    changed = []
    for i in range(9):
        before, gradient = q.detach().clone(), torch.tensor([math.cos(i)])
        p.grad, q.grad = gradient.clone(), gradient.clone()
        both.step(0.0)
        changed.append(not torch.equal(q, before))
        if i % 3 == 0:
            step(third, alone, gradient)
        assert p.grad is None
        assert q.grad is None
        assert torch.equal(q, alone)
    assert changed == [True, False, False] * 3


def test_every_group_is_clipped_by_its_own_norm() -> None:
    p, q, r = parameter(0.0, 0.0), parameter(0.0, 0.0), parameter(0.0)
    optimizer = MetaOptimizer([{"params": [p]}, {"params": [q]}, {"params": [r]}], **DEFAULTS | {"lr": 1.0, "clip_norm": 5.0})
    p.grad, q.grad, r.grad = torch.tensor([30.0, 40.0]), torch.tensor([6.0, 8.0]), torch.tensor([2.0])
    assert optimizer.step(0.0)["grad_norm"] == pytest.approx(math.sqrt(50**2 + 10**2 + 2**2))
    for weight, expected in ((p, [-3.0, -4.0]), (q, [-3.0, -4.0]), (r, [-2.0])):
        torch.testing.assert_close(weight.data, torch.tensor(expected))


def test_the_count_of_steps_survives_a_resume() -> None:
    def fresh() -> tuple[MetaOptimizer, nn.Parameter, nn.Parameter]:
        p, q = parameter(1.0), parameter(1.0)
        return MetaOptimizer([{"params": [p]}, {"params": [q], "every": 3}], **DEFAULTS), p, q

    def go(optimizer: MetaOptimizer, p: nn.Parameter, q: nn.Parameter, steps: range) -> None:
        for i in steps:
            p.grad, q.grad = torch.tensor([0.1 * i]), torch.tensor([0.2 * i])
            optimizer.step(0.0)

    straight = fresh()
    go(*straight, range(8))
    for cut in range(1, 8):
        first, again = fresh(), fresh()
        go(*first, range(cut))
        again[0].load_state_dict(copy.deepcopy(first[0].state_dict()))
        for mine, theirs in zip(again[1:], first[1:]):
            mine.data.copy_(theirs.data)
        go(*again, range(cut, 8))
        assert torch.equal(again[1], straight[1])
        assert torch.equal(again[2], straight[2])
    old = straight[0].state_dict()
    del old["steps"]  # as the first checkpoints
    again[0].load_state_dict(old)
    assert again[0].steps == 0


class Game(Algorithm):
    """Two players, x and y, of whom each takes the other as given: min_x a x²/2 + x y and min_y b y²/2 − x y − c y.

    Their fixed point is a x + y = 0 and b y − x = c: x = −c / (1 + a b) and y = a c / (1 + a b).
    """

    a, b, c = 1.0, 0.5, 3.0

    def __init__(self, net: Net, problem: Problem) -> None:
        super().__init__(net, problem)
        self.x, self.y = parameter(1.0), parameter(1.0)

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.x], "lr": 0.05, "betas": (0.5, 0.99)}, {"params": [self.y], "every": 2}]

    def begin(self, context: Context) -> Any:
        return ()

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return self.x * x[:, :1]

    def objective(self, states: Any, task: Task, progress: float) -> tuple[Tensor, Metrics]:
        x, y = self.x, self.y
        first = self.a * x.square() / 2 + x * y.detach()
        second = self.b * y.square() / 2 - x.detach() * y - self.c * y
        return (first + second).sum(), {"x": x.sum(), "y": y.sum()}


@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_two_players_reach_their_fixed_point(method: str) -> None:
    problem, task = vectors(3, way=2, shot=1)
    game, tasks = Game(Identity(3), problem), stack([task, task])
    optimizer = MetaOptimizer(game.groups(), **DEFAULTS | {"method": method, "lr": 0.05, "schedule": "linear"})
    how = engine()
    for i in range(800):
        how.meta_gradient(game, tasks, 0.0)
        optimizer.step(i / 800)
    assert game.x.item() == pytest.approx(-2.0, abs=1e-3)
    assert game.y.item() == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_a_rate_that_is_not_learned_changes_nothing(method: str) -> None:
    p, q = parameter(1.0, -2.0), parameter(1.0, -2.0)
    plain, zero = outer([p], method=method, momentum=0.9), outer([q], method=method, momentum=0.9, hyper_lr=0.0)
    for gradient in torch.randn(4, 2, generator=torch.Generator().manual_seed(0)):
        assert step(plain, p, gradient) == step(zero, q, gradient)
    assert torch.equal(p, q)
    assert plain.state_dict().keys() == zero.state_dict().keys() == {"state", "param_groups", "steps"}


def test_steps_hold_from_where_they_start() -> None:
    steps = [[0.3, 0.1], [0.6, 0.02]]
    assert [lr_scale("steps", x, 0.0, 0.0, steps) for x in (0.0, 0.29, 0.3, 0.59, 0.6, 1.0)] == [1, 1, 0.1, 0.1, 0.02, 0.02]
    p = parameter(1.0)
    optimizer = outer([p], schedule="steps", steps=steps)
    assert [step(optimizer, p, torch.ones(1), progress)["lr"] for progress in (0.1, 0.3, 0.9)] == pytest.approx([0.1, 0.01, 0.002])


@pytest.mark.parametrize("steps", [None, [], [[0.6, 0.1], [0.3, 0.01]]])
def test_a_schedule_of_steps_needs_some_that_rise(steps: list[list[float]] | None) -> None:
    with pytest.raises(UserError, match=r"\[\[PROGRESS,FACTOR\]"):
        outer([parameter(1.0)], schedule="steps", steps=steps)


def test_a_parameter_that_learns_and_is_in_no_group_is_named() -> None:
    """As one that is left out of ``groups``, or was frozen when the optimizer was made."""
    run = Run(small("algo=protonet", "net=mlp"))
    run.algorithm.requires_grad_(False)
    next(run.algorithm.parameters()).requires_grad_(True)
    optimizer = run.valid.optim.build(run.algorithm.groups())
    run.algorithm.requires_grad_(True)
    episodes = run.episodes("train")
    with pytest.raises(UserError, match=r"net\.\S+ has a gradient, but is in none of ProtoNet.groups\(\), and would stay as it is"):
        optimizer.estimate(run.engine, run.algorithm, episodes, places(0, 1), (), 0.0)


def test_a_parameter_is_in_one_group() -> None:
    p = parameter(1.0)
    with pytest.raises(UserError, match=r"groups\(\) names a parameter twice: put each into one group"):
        MetaOptimizer([{"params": [p]}, {"params": [p], "lr": 0.1}], **DEFAULTS)
