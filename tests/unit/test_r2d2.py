"""R2-D2: the primal ridge regression, its limits, gradients through the solution, any number of classes."""

from __future__ import annotations

import pytest
import torch
from helpers import Identity, in_float64, slopes, small, vectors
from torch import Tensor

from metarun.algos.heads.r2d2 import R2D2
from metarun.protocols.episodes import EVERY
from metarun.run import Run

F64 = torch.float64
TANH = ["net=mlp", "net.sizes=[8]", "net.activation=tanh"]


def logits(penalty: float, features: int = 5, shot: int = 1, scale: float = 2.0, bias: float = 0.5) -> tuple[Tensor, Tensor]:
    """What it answers to the support itself, and to the queries, with features that are the inputs."""
    problem, task = vectors(features, way=3, shot=shot)
    r2d2 = R2D2(Identity(features), problem, penalty=penalty, scale=scale).double()
    r2d2.bias.data.fill_(bias)
    state = r2d2.begin(task.context)
    return r2d2.predict(state, task.context.support.x).detach(), r2d2.predict(state, task.query.x).detach()


@pytest.mark.parametrize(("features", "shot"), [(5, 1), (3, 4)])
def test_it_equals_ridge_regression_in_its_primal_form(features: int, shot: int) -> None:
    _, task = vectors(features, way=3, shot=shot)
    z, q = (torch.cat([part.x, torch.ones(len(part.x), 1, dtype=F64)], 1) for part in (task.context.support, task.query))
    n, y = len(z), torch.nn.functional.one_hot(task.context.support.y).double()
    # As the authors' code has it: support features and labels over the root of n, queries as they are.
    z, y = z / n**0.5, y / n**0.5
    weight = torch.linalg.solve(z.T @ z + 0.7 * torch.eye(features + 1, dtype=F64), z.T @ y)
    torch.testing.assert_close(logits(0.7, features, shot)[1], 2 * q @ weight + 0.5, rtol=1e-6, atol=1e-6)  # log λ begins in float32


def test_with_an_endless_penalty_only_the_bias_is_left() -> None:
    torch.testing.assert_close(logits(1e12)[1], torch.full((6, 3), 0.5, dtype=F64), rtol=0, atol=1e-9)


def test_without_penalty_it_answers_its_support_exactly() -> None:
    torch.testing.assert_close(logits(1e-10, scale=1.0, bias=0.0)[0], torch.eye(3, dtype=F64), rtol=0, atol=1e-6)


def test_the_meta_gradient_through_the_solution_agrees_with_finite_differences() -> None:
    for shot in (1, 4):  # fewer and more examples than features
        by_gradient, by_differences = slopes(
            *in_float64(small("algo=r2d2", "net=mlp", "net.sizes=[8]", "net.activation=tanh", f"shot={shot}"))
        )
        assert by_gradient == pytest.approx(by_differences, rel=1e-5)


def test_training_moves_the_penalty_and_the_scale() -> None:
    r2d2, tasks = in_float64(small("algo=r2d2", "net=mlp"))
    slopes(r2d2, tasks)
    assert abs(float(r2d2.log_penalty.grad)) > 1e-6
    assert abs(float(r2d2.scale.grad)) > 1e-6
    assert abs(float(r2d2.bias.grad)) < 1e-12  # a softmax does not see it


def test_it_takes_any_number_of_classes_and_examples_at_test() -> None:
    run = Run(small("algo=r2d2", "net=mlp", "episode.eval.way=5", "episode.eval.shot=3"))
    assert run.engine.score(run.algorithm, run.episodes("test"), 3, EVERY, lambda done: None)["score"].shape == (3, 1)
