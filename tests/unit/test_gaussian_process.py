"""Gaussian processes: the chain rule of probability, torch's own densities, the prior without data; and tasks that are few."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import in_float64, regression, small
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from metarun.algos.bayes._gp import GaussianProcess
from metarun.data.few_waves import FewWaves
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, joint_log_density
from metarun.run import Run
from metarun.task import Batch, Context, Task, select


def process(algo: str) -> tuple[GaussianProcess, Task]:
    algorithm, tasks = in_float64(regression(algo, "net.activation=tanh"))
    assert isinstance(algorithm, GaussianProcess)
    algorithm.log_lengths.data += torch.linspace(-0.5, 0.5, len(algorithm.log_lengths))
    return algorithm.requires_grad_(False), select(tasks, 0)


def nothing(task: Task) -> Context:
    """No support."""
    return task.context._replace(support=Batch(*(part[:0] for part in task.context.support)))


@pytest.mark.parametrize("algo", ["dkt", "pacoh"])
def test_the_marginal_likelihood_is_that_of_the_joint_normal(algo: str) -> None:
    algorithm, task = process(algo)
    x, y = task.query
    z = algorithm.places(x, x)
    wanted = torch.stack(
        [
            torch.stack(
                [
                    (2 * algorithm.log_scale - ((a - b) / algorithm.log_lengths.exp()).square().sum() / 2).exp()
                    + (2 * algorithm.log_noise).exp() * (i == j)
                    for j, b in enumerate(z)
                ]
            )
            for i, a in enumerate(z)
        ]
    )
    density = MultivariateNormal(algorithm.mean(x, x)[:, 0], wanted).log_prob(y[:, 0])
    torch.testing.assert_close(algorithm.surprise(x, y), -density, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("algo", ["dkt", "pacoh"])
def test_likelihoods_of_one_target_after_another_make_that_of_all(algo: str) -> None:
    algorithm, task = process(algo)
    x, y = task.query
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(x)):
        state = algorithm.begin(task.context._replace(support=Batch(x[:i], y[:i])))
        mean, variance = algorithm.predict(state, x[i : i + 1])
        total = total - Normal(mean, variance.sqrt()).log_prob(y[i]).sum()
    torch.testing.assert_close(total, algorithm.surprise(x, y), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("algo", ["dkt", "pacoh"])
def test_without_a_support_it_answers_with_the_prior_and_with_exact_data_with_them(algo: str) -> None:
    algorithm, task = process(algo)
    x, y = task.query
    mean, variance = algorithm.predict(algorithm.begin(nothing(task)), x)
    torch.testing.assert_close(mean, algorithm.mean(x, x))
    torch.testing.assert_close(variance, torch.full_like(y, float((2 * algorithm.log_scale).exp() + (2 * algorithm.log_noise).exp())))
    algorithm.log_noise.data.fill_(-8.0)
    algorithm.log_lengths.data -= 3.0
    mean, variance = algorithm.predict(algorithm.begin(task.context._replace(support=Batch(x, y))), x)
    torch.testing.assert_close(mean, y, rtol=1e-3, atol=1e-3)
    assert (variance < 1e-4).all()


@pytest.mark.parametrize("algo", ["dkt", "pacoh", "alpaca"])
def test_what_is_said_of_targets_together_is_what_is_said_of_one_after_another(algo: str) -> None:
    algorithm, task = in_float64(regression(algo, "net.activation=tanh"))
    algorithm, task = algorithm.requires_grad_(False).eval(), select(task, 0)
    (x, y), query = task.context.support, task.query
    state = algorithm.begin(task.context)
    joint, alone = algorithm.together(state, query.x), algorithm.predict(state, query.x)
    assert joint is not None
    torch.testing.assert_close(joint.mean, alone.mean)
    torch.testing.assert_close(joint.covariance.diagonal(dim1=-2, dim2=-1).T.expand_as(alone.mean), alone.variance)
    assert joint.covariance.tril(-1).abs().max() > 1e-3
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(query.x)):
        seen = Batch(torch.cat([x, query.x[:i]]), torch.cat([y, query.y[:i]]))
        mean, variance = algorithm.predict(algorithm.begin(task.context._replace(support=seen)), query.x[i : i + 1])
        total = total + Normal(mean, variance.sqrt()).log_prob(query.y[i]).sum()
    torch.testing.assert_close(joint_log_density(joint, query.y), total, rtol=1e-8, atol=1e-8)


def test_its_memory_is_that_of_covariances_between_all_points() -> None:
    algorithm, task = process("dkt")
    more = task._replace(query=Batch(*(part.repeat(10, 1) for part in task.query)))
    points = [len(each.query.y) + len(each.context.support.y) for each in (task, more)]
    held = [algorithm.footprint(each, False).bytes for each in (task, more)]
    assert held[1] / held[0] == pytest.approx((points[1] / points[0]) ** 2)


SETTINGS: dict[str, Any] = {
    "tasks": 3,
    "points": 6,
    "slope": [0.5, 0.2],
    "amplitude": [0.7, 1.3],
    "frequency": [1.5, 1.5],
    "phase": [0.0, 0.15],
    "offset": [5.0, 0.1],
    "domain": [-5.0, 5.0],
    "noise": 0.1,
    "relative_noise": 0.05,
    "normal": ["slope", "phase", "offset"],
}


def points(task: Task) -> list[set[tuple[float, float]]]:
    """Of every task its support's and query's points."""
    x, y = (torch.cat([a, b], 1)[..., 0].tolist() for a, b in zip(task.context.support, task.query))
    return [set(zip(*row)) for row in zip(x, y)]


def test_training_has_few_tasks_and_few_points_of_each() -> None:
    data, spec = FewWaves(0, **SETTINGS), EpisodeSpec(way=1, shot=2, query=2)
    seen = points(data.episodes("train", spec, 0).batch(range(200)))
    merged: list[set[tuple[float, float]]] = []
    for some in seen:
        home = next((each for each in merged if each & some), None)
        if home is None:
            merged.append(set(some))
        else:
            home |= some
    assert sorted(map(len, merged)) == [6, 6, 6]
    assert len(set().union(*points(data.episodes("test", spec, 0).batch(range(200))))) == 800
    with pytest.raises(UserError, match=r"5 query points has 7, and a training task has data.points=6"):
        data.episodes("train", EpisodeSpec(way=1, shot=2, query=5), 0)


def test_noise_is_as_large_for_a_wave_upside_down() -> None:
    """Its deviation is noise + relative_noise |amplitude|."""
    for sign in (1.0, -1.0):
        settings = SETTINGS | {"amplitude": [sign, sign], "noise": 0.1, "relative_noise": 0.1}
        episodes = FewWaves(0, **settings).episodes("test", EpisodeSpec(way=1, shot=1, query=500), 0)
        assert episodes.bounds(20)["oracle"].mean() == pytest.approx(0.2**2, rel=0.05)


def test_waves_are_drawn_as_the_settings_say() -> None:
    data = FewWaves(0, **SETTINGS)
    slope, amplitude, frequency, phase, offset = data.parameters(np.arange(20_000, dtype=np.uint64)).T
    for values, mean, spread in ((slope, 0.5, 0.2), (phase, 0.0, 0.15), (offset, 5.0, 0.1), (amplitude, 1.0, 0.6 / 12**0.5)):
        assert values.mean() == pytest.approx(mean, abs=4 * spread / 20_000**0.5)
        assert values.std() == pytest.approx(spread, rel=0.03)
    assert (frequency == 1.5).all()
    assert amplitude.min() >= 0.7
    assert amplitude.max() <= 1.3
    spec = EpisodeSpec(way=1, shot=1, query=5)
    _, x, y, clean = (episodes := data.episodes("val", spec, 0)).drawn(range(5000))
    assert (y - clean).std() == pytest.approx(0.1 + 0.05, rel=0.05)
    assert np.abs(x).max() <= 5
    assert episodes.bounds(5000)["oracle"].mean() == pytest.approx(0.15**2, rel=0.05)
    fewer = data.episodes("val", EpisodeSpec(way=1, shot=1, query=2), 0).batch([3])
    assert torch.equal(fewer.context.support.x, episodes.batch([3]).context.support.x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normal": ["slop"]}, "data.normal names 'slop', which is no parameter; did you mean 'slope'"),
        ({"slope": [0.5, -1.0]}, r"data.slope=\[0.5, -1.0\] is not possible; give \[mean, standard deviation >= 0\]"),
        ({"amplitude": [2.0, 1.0]}, r"data.amplitude=\[2.0, 1.0\] is not possible; give \[low, high\]"),
        ({"domain": [1.0, 1.0]}, r"data.domain=\[1.0, 1.0\]"),
    ],
)
def test_settings_that_cannot_be_are_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FewWaves(0, **{**SETTINGS, **change})


@pytest.mark.parametrize("name", ["pacoh_sinusoid", "bmaml_sinusoid"])
def test_both_settings_are_data_of_a_run(name: str) -> None:
    run = Run(small(f"data={name}", "net=mlp", "algo=alpaca", "way=1", "shot=2", "query=3"))
    x: Tensor = run.episodes("train").batch([0]).query.x
    assert x.shape == (1, 3, 1)
