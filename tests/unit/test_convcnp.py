"""ConvCNP: what the grid holds, that shifted points get shifted answers, how far an answer sees; and the U-Net."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Identity, in_float64, random, slopes, small, vectors
from torch import Tensor

from metarun.algos.blackbox.convcnp import ConvCNP
from metarun.errors import UserError
from metarun.nets.unet import UNet1d
from metarun.run import Run
from metarun.task import Batch, Context


def values(*words: str) -> dict[str, Any]:
    return small(
        *("data=gp", "net=mlp", "way=1", "shot=6", "query=4", "algo=convcnp", "algo.domain=[-8,8]", "algo.points=8", "algo.levels=2"),
        *words,
    )


def model() -> ConvCNP:
    algorithm = in_float64(values(), tasks=1)[0]
    assert isinstance(algorithm, ConvCNP)
    return algorithm.eval().requires_grad_(False)


def context(x: Tensor, y: Tensor) -> Context:
    return Context(Batch(x, y), torch.zeros(1, dtype=torch.int64), torch.tensor(0), {})


X, Y, AT = random(5, 1, seed=1), random(5, 1, seed=2), random(4, 1, seed=3)


@pytest.mark.parametrize("steps", [-3, 1, 4])
def test_points_shifted_by_whole_steps_of_the_coarsest_grid_get_shifted_answers(steps: int) -> None:
    algorithm = model()
    shift = steps * 2**2 / 8
    there, here = (algorithm.predict(algorithm.begin(context(X + by, Y)), AT + by) for by in (shift, 0.0))
    for a, b in zip(there, here):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    # It is not that the answers do not depend on the points.
    assert (algorithm.predict(algorithm.begin(context(X + shift, Y)), AT).mean - here.mean).abs().max() > 1e-6


def test_the_grid_holds_density_and_a_weighted_mean_of_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, given = model(), []
    monkeypatch.setattr(
        algorithm.first, "forward", lambda x: given.append(x) or torch.zeros(1, algorithm.first.out_channels, x.shape[-1]).double()
    )
    algorithm.begin(context(X, Y))
    density, signal = given[0][0]
    assert len(algorithm.grid) == 128
    torch.testing.assert_close(algorithm.grid.diff(), torch.full((127,), 1 / 8, dtype=torch.float64))
    for place in (40, 64, 71):
        weights = torch.exp(-0.5 * ((algorithm.grid[place] - X) / 0.25) ** 2)  # two grid points long
        torch.testing.assert_close(density[place], weights.sum(), rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(signal[place], (weights * Y).sum() / (weights.sum() + 1e-8), rtol=1e-6, atol=1e-12)


def test_an_answer_reads_the_grid_around_it() -> None:
    algorithm = model()
    state = algorithm.begin(context(X, Y))
    algorithm.log_scales.data[1] = -6.0  # far below a grid point's distance
    on_grid = algorithm.predict(state, algorithm.grid[[50, 60], None])
    expected = algorithm.gaussian(algorithm.last(state.values[[50, 60]]))
    torch.testing.assert_close(on_grid.mean, expected.mean)
    torch.testing.assert_close(on_grid.variance, expected.variance)


def test_the_meta_gradient_agrees_with_finite_differences_of_both_lengthscales_too() -> None:
    algorithm, tasks = in_float64(values())
    by_gradient, by_differences = slopes(algorithm, tasks)
    assert by_gradient == pytest.approx(by_differences, rel=1e-4)
    gradient = algorithm.log_scales.grad
    assert gradient is not None
    assert gradient.abs().min() > 0


@pytest.mark.parametrize("levels", [1, 3])
def test_the_unet_keeps_the_length_and_shifts_with_its_input(levels: int) -> None:
    torch.manual_seed(0)
    net = UNet1d(channels=4, levels=levels).double().requires_grad_(False)
    x = torch.zeros(2, 4, 128, dtype=torch.float64)
    x[..., 60:68] = random(2, 4, 8)
    answer = net(x)
    assert answer.shape == (2, 8, 128)
    step = 2**levels
    torch.testing.assert_close(net(x.roll(step, -1))[..., 40:90], answer.roll(step, -1)[..., 40:90])
    if levels > 1:
        assert (net(x.roll(1, -1))[..., 40:90] - answer.roll(1, -1)[..., 40:90]).abs().max() > 1e-4


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match=r"algo\.domain=.* is not an interval"):
        Run(values("algo.domain=[2,2]"))
    settings: dict[str, Any] = {"domain": [-1.0, 1.0], "points": 4, "channels": 2, "levels": 1, "floor": 0.1}
    with pytest.raises(ValueError, match=r"algo=convcnp lays examples of one number on a grid, these have shape \[4\]"):
        ConvCNP(Identity(4), vectors(4, way=3, shot=2)[0], **settings)
