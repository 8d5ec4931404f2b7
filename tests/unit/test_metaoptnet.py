"""MetaOptNet: its solution is optimal, agrees with a solver of another kind and with closed forms; gradients equal finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import Identity, in_float64, slopes, small, vectors
from torch import Tensor

from metarun.algos.heads.metaoptnet import MetaOptNet, crammer_singer
from metarun.protocols.episodes import EVERY
from metarun.run import Run

F64 = torch.float64
COST = 0.1
SHAPES = [(2, 1, 3), (5, 1, 64), (5, 5, 64), (3, 10, 2), (20, 2, 16)]  # way, shot, features
TANH = ["net=mlp", "net.sizes=[8]", "net.activation=tanh"]


def program(way: int, shot: int, features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Kernel and one-hot targets of an episode of vectors."""
    _, task = vectors(features, way, shot, seed=seed)
    x, y = task.context.support
    return x @ x.T + torch.eye(len(y), dtype=F64), F.one_hot(y).double()


def project(rows: Tensor, total: float) -> Tensor:
    """The nearest rows that are >= 0 and sum to ``total`` (Held, Wolfe, Crowder 1974)."""
    ordered = rows.sort(1, descending=True).values
    shifts = (ordered.cumsum(1) - total) / torch.arange(1, rows.shape[1] + 1)
    last = (ordered > shifts).sum(1, keepdim=True) - 1
    return (rows - shifts.gather(1, last)).clamp(min=0)


def by_projected_gradients(kernel: Tensor, target: Tensor, cost: float) -> Tensor:
    """The same program by accelerated projected gradient descent, slow and of another kind."""
    rate = 1 / torch.linalg.matrix_norm(kernel, 2)
    slack = ahead = torch.full_like(target, cost / target.shape[1])
    for k in range(5000):
        slack, before = project(ahead - rate * (target - kernel @ (cost * target - ahead)), cost), slack
        ahead = slack + k / (k + 3) * (slack - before)
    return cost * target - slack


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cost", [0.01, 0.1, 10.0])
def test_the_solution_is_feasible_and_its_duality_gap_vanishes(shape: tuple[int, int, int], cost: float) -> None:
    for seed in range(3):
        kernel, target = program(*shape, seed)
        solution = crammer_singer(kernel, target, cost, 20)
        slack = cost * target - solution
        assert slack.min() > 0
        assert solution.sum(1).abs().max() < 1e-12
        slope = target - kernel @ solution
        multiplier = slope - slope.amin(1, keepdim=True)  # >= 0, and to be 0 wherever there is slack
        assert (multiplier * slack).max() < 1e-6 * cost


@pytest.mark.parametrize("shape", SHAPES)
def test_the_solution_agrees_with_projected_gradient_descent(shape: tuple[int, int, int]) -> None:
    kernel, target = program(*shape)
    torch.testing.assert_close(crammer_singer(kernel, target, COST, 20), by_projected_gradients(kernel, target, COST), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("cost", "expected"), [(10.0, 1 / (4 - 2 * 0.3)), (0.1, 0.1)])
def test_two_examples_have_a_closed_form(cost: float, expected: float) -> None:
    """With unit vectors at cosine 0.3, a (1, −1) and −a (1, −1): a minimises (4 − 2 · 0.3) a² − 2 a below the cost."""
    kernel = torch.tensor([[2.0, 0.3], [0.3, 2.0]], dtype=F64)
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=F64)
    torch.testing.assert_close(crammer_singer(kernel, torch.eye(2, dtype=F64), cost, 20), expected * signs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 3), (4, 1, 8), (3, 4, 2)])
def test_its_derivative_equals_finite_differences(shape: tuple[int, int, int]) -> None:
    _, target = program(*shape)
    _, task = vectors(shape[2], *shape[:2])
    x = torch.stack([task.context.support.x, vectors(shape[2], *shape[:2], seed=1)[1].context.support.x])

    def solution(x: Tensor) -> Tensor:
        return crammer_singer(x @ x.T + torch.eye(len(x), dtype=F64), target, COST, 30)

    slack = COST * target - torch.vmap(solution)(x)
    assert 0 < (slack < 1e-5 * COST).sum() < slack.numel()  # some constraints are active, some are not
    assert torch.autograd.gradcheck(torch.vmap(solution), (x.requires_grad_(),), rtol=1e-5, atol=1e-7)


def test_without_allowance_for_violations_all_logits_are_zero() -> None:
    problem, task = vectors(5, way=3, shot=2)
    net = MetaOptNet(Identity(5), problem, head="svm", cost=1e-9, penalty=1.0, scale=1.0, solver_steps=15).double()
    assert net.predict(net.begin(task.context), task.query.x).abs().max() < 1e-6


@pytest.mark.parametrize(("features", "shot"), [(8, 1), (3, 4)])
def test_the_ridge_head_answers_twice_what_ridge_regression_does(features: int, shot: int) -> None:
    problem, task = vectors(features, way=3, shot=shot)
    net = MetaOptNet(Identity(features), problem, head="ridge", cost=1.0, penalty=0.7, scale=1.5, solver_steps=1).double()
    z, y = task.context.support.x, F.one_hot(task.context.support.y).double()
    weight = torch.linalg.solve(z.T @ z + 0.7 * torch.eye(features, dtype=F64), z.T @ y)
    torch.testing.assert_close(net.predict(net.begin(task.context), task.query.x), 1.5 * 2 * task.query.x @ weight)


@pytest.mark.parametrize("head", ["svm", "ridge"])
@pytest.mark.parametrize("shot", [1, 4])
def test_the_meta_gradient_through_the_solution_agrees_with_finite_differences(head: str, shot: int) -> None:
    by_gradient, by_differences = slopes(*in_float64(small("algo=metaoptnet", f"algo.head={head}", *TANH, f"shot={shot}")))
    assert by_gradient == pytest.approx(by_differences, rel=1e-5)


def test_in_fp32_the_solution_is_the_same() -> None:
    kernel, target = program(5, 5, 64)
    rounded = crammer_singer(kernel.float(), target.float(), COST, 20)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), crammer_singer(kernel, target, COST, 20), rtol=0, atol=1e-6)


@pytest.mark.parametrize("head", ["svm", "ridge"])
def test_it_takes_any_number_of_classes_and_examples_at_test(head: str) -> None:
    run = Run(small("algo=metaoptnet", f"algo.head={head}", "net=mlp", "episode.eval.way=5", "episode.eval.shot=3"))
    assert run.engine.score(run.algorithm, run.episodes("test"), 3, EVERY, lambda done: None)["score"].shape == (3, 1)


def test_smoothed_labels_are_the_authors() -> None:
    problem = Run(small("algo=metaoptnet", *TANH)).problem
    learner = MetaOptNet(Identity(3), problem, head="svm", cost=COST, penalty=1.0, scale=1.0, solver_steps=10, smoothing=0.1)
    prediction, y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1])
    target = torch.full((4, 3), 0.1 / 2).scatter(1, y[:, None], 0.9)
    loss, metrics = learner.judged(prediction, y)
    torch.testing.assert_close(loss, -(target * prediction.log_softmax(1)).sum(1).mean())
    assert metrics["accuracy"] == (prediction.argmax(1) == y).float().mean()
