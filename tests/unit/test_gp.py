"""Functions of a Gaussian process: their covariance, the oracle's likelihood, what an episode depends on, errors; and the sawtooth."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import small

from metarun.data.gp import GP, GPEpisodes
from metarun.drawing import figures
from metarun.errors import UserError
from metarun.experiment import train
from metarun.problem import Density, EpisodeSpec, Gaussian, Samples
from metarun.run import Run
from metarun.task import select

SPEC = EpisodeSpec(way=1, shot=6, query=9)
DEFAULTS: dict[str, Any] = {
    "kernel": "eq",
    "lengthscale": 0.25,
    "period": 0.25,
    "frequency": [2.0, 4.0],
    "noise": 0.05,
    "domain": [-2.0, 2.0],
    "fewest": 0,
}
KERNELS = ["eq", "matern52", "periodic", "weakly_periodic"]


def make(kernel: str = "eq", spec: EpisodeSpec = SPEC, split: str = "train", seed: int = 0, **changes: Any) -> GPEpisodes:
    return GP(0, **{**DEFAULTS, "kernel": kernel, **changes}).episodes(split, spec, seed)


def covariance(kernel: str, d: float) -> float:
    """Of two values at a distance d, with the defaults, written out once more."""
    eq, periodic = math.exp(-8 * d * d), math.exp(-2 * math.sin(4 * math.pi * d) ** 2)
    r = 4 * math.sqrt(5) * d
    return {"eq": eq, "matern52": (1 + r + r * r / 3) * math.exp(-r), "periodic": periodic, "weakly_periodic": eq * periodic}[kernel]


@pytest.mark.parametrize("kernel", KERNELS)
def test_values_have_the_covariance_of_their_kernel(kernel: str) -> None:
    n, x = 20000, np.array([0.0, 0.03, 0.1, 0.4])
    prior = make(kernel).prior
    normals = np.random.default_rng(0).standard_normal((n, 4))
    values = prior.values(np.broadcast_to(x, (n, 4)), normals, np.zeros((n, 3)))
    expected = [[covariance(kernel, abs(a - b)) + 0.05 * (a == b) for a in x] for b in x]
    np.testing.assert_allclose(values.T @ values / n, expected, atol=4 * 1.5 / math.sqrt(n))  # four standard errors


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_oracle_is_the_conditional_of_the_joint_gaussian(kernel: str) -> None:
    """log p(support, one target) − log p(support), both by torch's multivariate normal."""
    episodes = make(kernel)
    bounds = episodes.bounds(5)
    _, x, y, seen = episodes.drawn(range(5))
    for i in range(5):
        known = [j for j in range(6) if seen[i, j]]

        def joint(places: list[int], i: int = i) -> torch.Tensor:
            if not places:
                return torch.zeros((), dtype=torch.float64)
            points = x[i, places]
            k = torch.tensor([[covariance(kernel, abs(a - b)) for a in points] for b in points], dtype=torch.float64)
            k = k + 0.05 * torch.eye(len(places), dtype=torch.float64)
            return torch.distributions.MultivariateNormal(torch.zeros(len(places), dtype=torch.float64), k).log_prob(
                torch.tensor(y[i, places])
            )

        expected = np.mean([float(joint([*known, j]) - joint(known)) for j in range(6, 15)])
        assert bounds["oracle"][i] == pytest.approx(expected, abs=1e-5)
        trivial = -0.5 * (y[i, 6:] ** 2 / 1.05 + math.log(2 * math.pi * 1.05)).mean()
        assert bounds["trivial"][i] == pytest.approx(trivial)


def test_on_average_nothing_beats_the_oracle_and_it_gains_by_every_point() -> None:
    means = [{k: v.mean() for k, v in make(spec=EpisodeSpec(way=1, shot=n, query=9), fewest=n).bounds(1500).items()} for n in (1, 5, 20)]
    assert [round(m["trivial"], 1) for m in means] == [-1.4] * 3
    assert means[0]["trivial"] < means[0]["oracle"] < means[1]["oracle"] - 0.05
    assert means[1]["oracle"] < means[2]["oracle"] - 0.2
    # A point that was seen tells of itself all but two noises: there the variance is 2 · 0.05 − 0.05² / 1.05.
    episodes = make(spec=EpisodeSpec(way=1, shot=1, query=1), fewest=1)
    support = select(episodes.batch([0]), 0).context.support
    answer = episodes.oracle(0, support.x)
    assert answer is not None
    assert float(answer.variance) == pytest.approx(1.05 - 1 / 1.05, rel=1e-4)
    torch.testing.assert_close(answer.mean, support.y / 1.05, rtol=1e-4, atol=1e-5)


def test_any_number_of_support_points_is_as_likely_and_the_rest_is_zeros() -> None:
    context = make(fewest=2).batch(range(500)).context
    seen = context.extras["seen"]
    assert seen.dtype == torch.bool
    assert seen.shape == (500, 6)
    counts = seen.sum(1).bincount(minlength=7).tolist()
    assert counts[:2] == [0, 0]
    assert min(counts[2:]) > 60  # of 100 on average, with a standard deviation of 9
    for part in context.support:
        assert part[~seen].eq(0).all()
        assert part[seen].ne(0).all()
    task = select(make(fewest=2).batch([3]), 0)
    assert torch.equal(task.context.seen, seen[3])


@pytest.mark.parametrize("kernel", [*KERNELS, "sawtooth"])
def test_an_episode_depends_on_seed_split_and_index_alone(kernel: str) -> None:
    episodes = make(kernel)
    together, alone = episodes.batch([7, 3]), episodes.batch([3])
    assert torch.equal(select(together, 1).query.y, select(alone, 0).query.y)
    wider = make(kernel, EpisodeSpec(way=1, shot=6, query=40)).batch([3])
    torch.testing.assert_close(wider.context.support.y, alone.context.support.y)
    torch.testing.assert_close(wider.query.y[:, :9], alone.query.y)
    hashes = {make(kernel, split=s, seed=i).sha256(8) for s in ("train", "val", "test") for i in (0, 1)}
    assert len(hashes) == 6
    assert make(kernel).sha256(8) == episodes.sha256(8) != make(kernel, noise=0.1).sha256(8)


def test_a_sawtooth_rises_or_falls_by_its_frequency_and_wraps_within_0_and_1() -> None:
    episodes = make("sawtooth", EpisodeSpec(way=1, shot=1, query=400), noise=0.0)
    _, x, y, _ = episodes.drawn(range(40))
    assert 0 <= y.min() < 0.01
    assert 0.99 < y.max() < 1
    signs = set()
    for places, values in zip(x, y):
        order = places.argsort()
        slopes = np.diff(values[order]) / np.diff(places[order])
        slope = np.median(slopes)
        assert 2 <= abs(slope) <= 4
        signs.add(np.sign(slope))
        np.testing.assert_allclose((values - slope * places) % 1, (values - slope * places)[0] % 1, atol=1e-6)
    assert signs == {-1, 1}
    assert episodes.bounds(3).keys() == {"trivial"}
    assert episodes.oracle(0, torch.zeros(2, 1)) is None
    # A uniform number by the best Gaussian: −½ log(2πe / 12).
    assert episodes.bounds(500)["trivial"].mean() == pytest.approx(-0.5 * math.log(2 * math.pi * math.e / 12), abs=0.01)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"domain": [1.0, 1.0]}, r"data\.domain=.* low < high"),
        ({"frequency": [3.0, math.inf]}, r"data\.frequency=.* low < high"),
        ({"fewest": 7}, r"data\.fewest=7 is more than shot=6; choose data\.fewest <= 6"),
        ({"split": "tests"}, "no tests split, only train, val, test; did you mean 'test'"),
    ],
)
def test_what_is_refused(change: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        make(**change)


def test_yaml_holds_every_argument(request: pytest.FixtureRequest) -> None:
    values = yaml.safe_load((request.config.rootpath / "conf/data/gp.yaml").read_text())
    assert values.pop("_target_") == "metarun.data.gp.GP"
    assert values.pop("name") == "gp"
    assert set(values) == set(inspect.signature(GP).parameters) - {"seed"}
    assert values == DEFAULTS


def test_the_score_is_the_log_density_of_a_target_number() -> None:
    kind, y = Density(), torch.randn(4, 1)
    members = Gaussian(torch.randn(3, 4, 1), torch.rand(3, 4, 1) + 0.1)
    one = Gaussian(members.mean[0], members.variance[0])
    normal = torch.distributions.Normal(members.mean, members.variance.sqrt())
    torch.testing.assert_close(kind.score(one, y), normal.log_prob(y)[0].mean())
    torch.testing.assert_close(kind.score(Samples(members), y), normal.log_prob(y).exp().mean(0).log().mean())
    assert (kind.metric, kind.higher_is_better, kind.labelled) == ("ll", True, False)
    with pytest.raises(TypeError, match="predict a Gaussian"):
        kind.score(y, y)


def test_a_method_without_a_density_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="algo=maml is for classification and regression, but data=gp is density; choose another algo"):
        Run(small("data=gp", "net=mlp", "way=1", "algo=maml"))


def test_a_run_names_its_bounds_in_the_unit_of_its_score_and_its_picture_has_the_oracle(tmp_path: Any) -> None:
    values = small("data=gp", "net=mlp", "way=1", "shot=5", "query=5", "algo=cnp")
    summary = train(values, tmp_path)
    assert (summary["metric"], summary["higher_is_better"]) == ("ll", True)
    assert summary["test"]["ll"]["mean"] == pytest.approx(-summary["test"]["loss"]["mean"])
    expected = Run(values).episodes("test").bounds(6)
    assert {name: bound["mean"] for name, bound in summary["bounds"].items()} == {name: v.mean() for name, v in expected.items()}
    labels = figures.episode(Run(values), "val", 1, answered=True).axes[0].get_legend_handles_labels()[1]
    assert "oracle, ± 2 s.d." in labels
    seen = int(select(Run(values).episodes("val").batch([1]), 0).context.seen.sum())
    assert f"support ({seen})" in labels
