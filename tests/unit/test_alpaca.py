"""ALPaCA: the prior without data, Gaussian-process regression with data, one point after another, least squares; uncertainty to be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import Identity, in_float64, random, regression, slopes
from torch import Tensor

import metarun
from metarun.algos.heads.alpaca import ALPaCA
from metarun.drawing import figures
from metarun.errors import UserError
from metarun.experiment import train
from metarun.problem import EpisodeSpec, Gaussian, Problem, Regression
from metarun.run import Run
from metarun.task import Batch, Context

F64 = torch.float64
FEATURES, OUTPUTS = 3, 2


def alpaca(prior: float = 1.0) -> ALPaCA:
    """On plain vectors, with any mean and covariance of the prior."""
    spec = EpisodeSpec(way=1, shot=4, query=5)
    model = ALPaCA(Identity(FEATURES), Problem(Regression(), (FEATURES,), OUTPUTS, 0, spec, spec), noise=0.3, prior=1.0).double()
    model.mean.data = random(FEATURES + 1, OUTPUTS, seed=5)
    model.factor.data = prior * (torch.eye(FEATURES + 1, dtype=F64) + random(FEATURES + 1, FEATURES + 1, seed=6) / 2)
    model.log_noise.data = torch.tensor([0.3, 0.7], dtype=F64).log()
    return model.eval()


def context(n: int) -> Context:
    """n points of a linear map with noise."""
    x = random(n, FEATURES, seed=1)
    y = x @ random(FEATURES, OUTPUTS, seed=2) + 0.1 * random(n, OUTPUTS, seed=3)
    return Context(Batch(x, y), torch.zeros(1, dtype=torch.int64), torch.tensor(0), {})


def with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=F64)], 1)


def answer(model: ALPaCA, n: int, x: Tensor) -> Gaussian:
    given = context(n)
    return Gaussian(*(part.detach() for part in model.predict(model.begin(given), x)))


QUERY = random(5, FEATURES, seed=4)


def test_without_a_support_it_answers_with_the_prior() -> None:
    model = alpaca()
    covariance = model.factor.tril() @ model.factor.tril().T
    phi = with_ones(QUERY)
    mean, variance = answer(model, 0, QUERY)
    torch.testing.assert_close(mean, (phi @ model.mean).detach())
    noise = torch.tensor([0.3, 0.7], dtype=F64)
    torch.testing.assert_close(variance, ((1 + (phi @ covariance * phi).sum(1, keepdim=True)) * noise).detach())


@pytest.mark.parametrize("n", [1, 3, 9])
def test_it_is_gaussian_process_regression_with_the_kernel_of_its_prior(n: int) -> None:
    model = alpaca()
    x, y = context(n).support
    phi, support = with_ones(QUERY), with_ones(x)
    covariance = (model.factor.tril() @ model.factor.tril().T).detach()
    kernel, across = support @ covariance @ support.T + torch.eye(n, dtype=F64), phi @ covariance @ support.T
    mean, variance = answer(model, n, QUERY)
    expected = phi @ model.mean + across @ torch.linalg.solve(kernel, y - support @ model.mean)
    torch.testing.assert_close(mean, expected.detach())
    spread = 1 + (phi @ covariance * phi).sum(1) - (across * torch.linalg.solve(kernel, across.T).T).sum(1)
    torch.testing.assert_close(variance, spread[:, None] * torch.tensor([0.3, 0.7], dtype=F64))


def test_one_point_after_another_gives_what_all_at_once_give() -> None:
    model = alpaca()
    covariance, mean = (model.factor.tril() @ model.factor.tril().T).detach(), model.mean.detach()
    for x, y in zip(with_ones(context(7).support.x), context(7).support.y):
        gain = covariance @ x / (1 + x @ covariance @ x)  # the paper's recursive update, equations 9 and 10
        mean = mean + gain[:, None] * (y - x @ mean)
        covariance = covariance - gain[:, None] * (x @ covariance)
    phi = with_ones(QUERY)
    at_once = answer(model, 7, QUERY)
    torch.testing.assert_close(at_once.mean, phi @ mean)
    torch.testing.assert_close(at_once.variance[:, 0], 0.3 * (1 + (phi @ covariance * phi).sum(1)))


def test_with_a_flat_prior_it_is_least_squares() -> None:
    x, y = context(9).support
    fitted = with_ones(QUERY) @ torch.linalg.lstsq(with_ones(x), y).solution
    torch.testing.assert_close(answer(alpaca(prior=1e5), 9, QUERY).mean, fitted, rtol=1e-6, atol=1e-6)


def test_its_loss_is_minus_the_log_density_and_its_score_the_squared_error_of_the_mean() -> None:
    model, y = alpaca(), random(5, OUTPUTS, seed=8)
    prediction = answer(model, 4, QUERY)
    expected = -torch.distributions.Normal(prediction.mean, prediction.variance.sqrt()).log_prob(y).mean()
    torch.testing.assert_close(model.problem.loss(prediction, y), expected)
    torch.testing.assert_close(model.problem.score(prediction, y), (prediction.mean - y).square().mean())


def test_training_episodes_see_from_none_to_all_of_their_support() -> None:
    model, given = alpaca().train(), context(4)
    full = model.eval().begin(given).precision
    model.train()
    states = [model.begin(given._replace(key=torch.tensor(key))).precision for key in range(400)]
    scaled = model.features(given.support.x, given.support.x)[1]
    nested = [torch.eye(FEATURES + 1, dtype=F64) + scaled[:n].T @ scaled[:n] for n in range(5)]
    counts = [sum(torch.allclose(state, precision) for state in states) for precision in nested]
    assert sum(counts) == 400
    assert min(counts) > 50  # of 80 on average, with a standard deviation of 8
    torch.testing.assert_close(full, nested[4])


def test_the_meta_gradient_agrees_with_finite_differences() -> None:
    by_gradient, by_differences = slopes(*in_float64(regression("alpaca", "net.activation=tanh", "net.sizes=[8]")))
    assert by_gradient == pytest.approx(by_differences, rel=1e-5)


def test_a_loaded_run_tells_its_deviations_which_are_smaller_among_the_support(tmp_path: Path) -> None:
    train(regression("alpaca"), tmp_path / "alpaca")
    fitted = metarun.load(tmp_path / "alpaca").adapt(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8))
    grid = torch.tensor([0.0, 5.0])
    deviations = fitted.deviations(grid)
    assert fitted.predict(grid).shape == deviations.shape == (2, 1)
    assert 0 < deviations[0] < deviations[1]
    fitted.export(tmp_path / "mean.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "mean.pt2").module()(grid[:, None]), fitted.predict(grid))
    train(regression("maml"), tmp_path / "maml")
    with pytest.raises(UserError, match="algo=maml does not know how sure it is"):
        metarun.load(tmp_path / "maml").adapt(torch.zeros(5), torch.zeros(5)).deviations(grid)


def test_its_picture_has_a_band_two_deviations_wide() -> None:
    figure = figures.episode(Run(regression("alpaca")), "val", 0, answered=True)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert "± 2 s.d." in labels
    without = figures.episode(Run(regression("maml")), "val", 0, answered=True)
    assert "± 2 s.d." not in without.axes[0].get_legend_handles_labels()[1]
