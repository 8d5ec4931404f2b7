"""LR-D2: Newton's first step is a ridge regression, its last one a minimum, and the meta-gradient passes all of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import Identity, in_float64, slopes, small, vectors
from torch import Tensor

from metarun.adaptation import adapt
from metarun.algos.heads.lrd2 import LRD2
from metarun.protocols.episodes import EVERY
from metarun.run import Run

F64 = torch.float64
PENALTY = 0.3
TANH = ["net=mlp", "net.sizes=[8]", "net.activation=tanh"]


def weights(steps: int, shot: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """The solution [features + 1, way] after Newton steps on three classes of 3-d vectors; z [n, features + 1]; signs [n, way]."""
    problem, task = vectors(3, way=3, shot=shot)
    lrd2 = LRD2(Identity(3), problem, inner_steps=steps, test_steps=steps, penalty=PENALTY, scale=1.0).double()
    *_, state = adapt(lrd2, task.context, steps)
    return state.weight.detach(), state.z, 2 * F.one_hot(task.context.support.y).double() - 1


def test_the_first_step_is_ridge_regression_on_targets_of_2_with_weight_a_quarter() -> None:
    weight, z, sign = weights(1)
    left = z.T @ z / 4 + len(z) * PENALTY * torch.eye(4, dtype=F64)
    torch.testing.assert_close(weight, torch.linalg.solve(left, z.T @ (2 * sign) / 4), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shot", [1, 4])
def test_the_last_step_minimises_every_class_against_the_rest(shot: int) -> None:
    weight, z, sign = weights(10, shot=shot)
    penalty = float(torch.tensor(PENALTY).log().double().exp())
    slope = -(z.T @ (sign * torch.sigmoid(-sign * (z @ weight)))) / len(z) + penalty * weight
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shot", [1, 4])
def test_it_stays_finite_in_fp32_with_examples_that_are_surely_right_or_wrong(shot: int) -> None:
    problem, task = vectors(3, way=3, shot=shot)
    context = task.context._replace(support=task.context.support._replace(x=1e4 * task.context.support.x.float()))
    lrd2 = LRD2(Identity(3), problem, inner_steps=5, test_steps=5, penalty=1e-3, scale=1.0)
    for state in adapt(lrd2, context, 8):
        assert state.weight.isfinite().all()


def test_the_meta_gradient_through_all_steps_agrees_with_finite_differences() -> None:
    for shot in (1, 4):  # fewer and more examples than features
        by_gradient, by_differences = slopes(
            *in_float64(small("algo=lrd2", "net=mlp", "net.sizes=[8]", "net.activation=tanh", f"shot={shot}"))
        )
        assert by_gradient == pytest.approx(by_differences, rel=1e-5)


def test_it_takes_any_number_of_classes_at_test_and_shows_its_steps() -> None:
    run = Run(small("algo=lrd2", "net=mlp", "episode.eval.way=5"))
    loss = run.engine.score(run.algorithm, run.episodes("test"), 3, EVERY, lambda done: None)["loss"]
    assert loss.shape == (3, 4)
    assert loss[:, 0] == pytest.approx(torch.tensor(5.0).log().item())  # no step, no opinion
