"""The sinusoid data: shapes, the wave itself, independence of batching, errors."""

import inspect
import math

import numpy as np
import pytest
import torch
import yaml

from metarun.data.sinusoid import Sinusoid
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Regression
from metarun.task import select

SPEC = EpisodeSpec(way=1, shot=5, query=10)
DEFAULTS = {"amplitude": [0.1, 5.0], "phase": [0.0, math.pi], "domain": [-5.0, 5.0], "noise": 0.0}


def make(split="train", spec=SPEC, seed=0, **changes):
    return Sinusoid(0, **{**DEFAULTS, **changes}).episodes(split, spec, seed)


def test_shapes_and_types():
    task = make().batch(range(4))
    assert task.context.support.x.shape == task.context.support.y.shape == (4, 5, 1)
    assert task.query.x.shape == task.query.y.shape == (4, 10, 1)
    assert task.query.x.dtype == task.query.y.dtype == torch.float32
    assert task.context.classes.shape == (4, 1)
    assert task.context.classes.eq(0).all()
    assert task.context.key.shape == (4,)
    assert task.context.extras == {}
    assert (Sinusoid.kind, Sinusoid.input_shape, Sinusoid.classes) == (Regression(size=1), (1,), 0)
    assert Sinusoid.splits == ("train", "val", "test")


def test_points_lie_on_the_wave():
    episodes = make()
    _, (amplitude, phase), x = episodes.drawn(range(3))
    task = episodes.batch(range(3))
    both = np.concatenate([task.context.support.y, task.query.y], axis=1)[..., 0]
    np.testing.assert_allclose(both, amplitude * np.sin(x - phase), atol=1e-6)


def test_ranges_and_uniformity():
    _, (amplitude, phase), x = make().drawn(range(4000))
    for values, (low, high) in ((amplitude, (0.1, 5.0)), (phase, (0.0, math.pi)), (x, (-5.0, 5.0))):
        assert low <= values.min() < values.max() < high
        assert abs(values.mean() - (low + high) / 2) < 0.03 * (high - low)
        assert abs(values.std() - (high - low) / math.sqrt(12)) < 0.03 * (high - low)


def test_an_episode_depends_on_seed_split_and_index_alone():
    episodes = make()
    together, alone = episodes.batch([7, 3]), episodes.batch([3])
    assert torch.equal(select(together, 1).query.y, select(alone, 0).query.y)
    wider = make(spec=EpisodeSpec(way=1, shot=5, query=40)).batch([3])
    assert torch.equal(wider.context.support.x, alone.context.support.x)
    hashes = {episodes.sha256(8), make("val").sha256(8), make("test").sha256(8), make(seed=1).sha256(8)}
    assert len(hashes) == 4
    assert episodes.sha256(8) == make().sha256(8)
    assert len(episodes.identity([0, 1])) == 2 * 8 * (2 + 15)


def test_noise_has_the_given_deviation():
    clean, noisy = make().batch(range(500)), make(noise=0.5).batch(range(500))
    assert torch.equal(clean.query.x, noisy.query.x)
    difference = noisy.query.y - clean.query.y
    assert abs(difference.std().item() - 0.5) < 0.03
    assert abs(difference.mean().item()) < 0.03
    assert make().identity([0]) == make(noise=0.5).identity([0])
    assert make().sha256(1) != make(noise=0.5).sha256(1)


@pytest.mark.parametrize("change", [{"amplitude": [5.0, 0.1]}, {"phase": [1.0, 1.0]}, {"domain": [0.0, math.inf]}])
def test_empty_interval(change):
    with pytest.raises(UserError, match=rf"data\.{next(iter(change))}=.* low < high"):
        make(**change)


def test_unknown_split():
    with pytest.raises(UserError, match="no tests split, only train, val, test; did you mean 'test'"):
        make("tests")


def test_yaml_holds_every_argument(request):
    values = yaml.safe_load((request.config.rootpath / "conf/data/sinusoid.yaml").read_text())
    assert values.pop("_target_") == "metarun.data.sinusoid.Sinusoid"
    assert values.pop("name") == "sinusoid"
    assert set(values) == set(inspect.signature(Sinusoid).parameters) - {"seed"}
    assert values == DEFAULTS
