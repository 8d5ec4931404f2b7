"""Sine waves among lines, and whether a learner's samples cover both readings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import yaml
from helpers import classification, engine, small

from metarun.data.sine_line import SineLine, SineLineEpisodes
from metarun.data.sinusoid import Sinusoid
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Gaussian, Samples
from metarun.protocols.readings import Readings
from metarun.run import Run
from metarun.task import Batch

WAVES = {"amplitude": [0.1, 5.0], "phase": [0.0, math.pi], "domain": [-5.0, 5.0], "noise": 0.0}
LINES = {"slope": [-3.0, 3.0], "intercept": [-2.0, 1.0], "lines": 0.5}


def make(**changed: object) -> SineLineEpisodes:
    data = SineLine(0, **{**WAVES, **LINES, **changed})
    return data.episodes("train", EpisodeSpec(way=1, shot=5, query=4), 3)


def test_half_of_the_tasks_are_lines() -> None:
    _, (amplitude, phase, slope, intercept), x = make().drawn(range(2000))
    straight = amplitude == 0
    assert abs(straight.mean() - 0.5) < 0.04
    assert not slope[~straight].any()
    assert not intercept[~straight].any()
    for values, (low, high) in ((slope[straight], LINES["slope"]), (intercept[straight], LINES["intercept"])):
        assert low <= values.min() < values.max() < high
        assert abs(values.mean() - (low + high) / 2) < 0.05 * (high - low)
    task = make().batch(range(2000))
    both = np.concatenate([task.context.support.y, task.query.y], 1)[..., 0]
    np.testing.assert_allclose(both, amplitude * np.sin(x - phase) + slope * x + intercept, atol=2e-6)


def test_without_lines_they_are_the_waves_that_they_were() -> None:
    waves = Sinusoid(0, **WAVES).episodes("train", EpisodeSpec(way=1, shot=5, query=4), 3)
    ours, theirs = make(lines=0.0).batch(range(8)), waves.batch(range(8))
    for a, b in zip((*ours.context.support, *ours.query), (*theirs.context.support, *theirs.query)):
        assert torch.equal(a, b)
    assert make(lines=0.3).sha256(64) != make(lines=0.0).sha256(64)


def test_yaml_holds_every_argument(request: pytest.FixtureRequest) -> None:
    values = yaml.safe_load((request.config.rootpath / "conf/data/sine_line.yaml").read_text())
    assert set(values) == {"_target_", "name", *WAVES, *LINES}


def test_an_empty_interval_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.slope=\[1.0, 1.0\] is not an interval; give \[low, high\]"):
        make(slope=[1.0, 1.0])


def test_errors_of_samples_by_hand() -> None:
    query = Batch(torch.zeros(2, 1), torch.tensor([[0.0], [2.0]]))
    members = torch.tensor([[[1.0], [3.0]], [[0.0], [0.0]]])  # squared errors 1 and 1; 0 and 4
    found = Readings().last(None, Samples(Gaussian(members, torch.ones_like(members))), query)
    torch.testing.assert_close(found["by_sample"], torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(found["of_mean"], torch.tensor(0.25))  # answers 0.5 and 1.5
    alone = Readings().last(None, members[0], query)
    torch.testing.assert_close(alone["by_sample"], torch.tensor([1.0]))
    arrays = {name: value[None].double().numpy() for name, value in found.items()}
    scores, curve = Readings().summarise(None, arrays)
    assert curve == []
    assert {name: score["mean"] for name, score in scores.items()} == pytest.approx(
        {"best_sample_mse": 1.0, "sample_mse": 1.5, "mean_of_samples_mse": 0.25, "readings": 1.5}
    )


@pytest.mark.parametrize(("algo", "members"), [("maml", 1), ("platipus", 5), ("alpaca", 1)])
def test_a_learner_is_asked_for_its_samples(algo: str, members: int) -> None:
    run = Run(small("data=sine_line", "net=mlp", "way=1", "shot=5", "query=5", f"algo={algo}", "protocol=readings"))
    protocol = run.protocols[0]
    found = engine("vmap").evaluate(run.algorithm.eval(), run.episodes("test", protocol).batch(range(3)), protocol)
    assert found["by_sample"].shape[-1] == members
    arrays = {name: value.double().numpy() for name, value in found.items()}
    ((name, figure),) = protocol.pictures(arrays, "", run.episodes("test", protocol))
    assert name == "readings.png"
    assert [len(axes.lines) for axes in figure.axes] == [members] * 3  # a line a sample, a panel an episode


def test_classes_are_no_numbers() -> None:
    with pytest.raises(UserError, match=r"protocol=readings is not possible with algo=protonet: it needs numbers to predict"):
        Run(classification("protonet", "protocol=readings"))
