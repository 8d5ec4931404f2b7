"""2-D navigation: the plane, its episodes, the bounds of returns, and what ``Problem.simulate`` makes of policies."""

import inspect
import math

import numpy as np
import pytest
import torch
import yaml

from metarun.data.navigation import Navigation, Plane
from metarun.errors import UserError
from metarun.problem import Control, EpisodeSpec, Problem, Trajectories
from metarun.task import select

SPEC = EpisodeSpec(way=1, shot=3, query=4)
DEFAULTS = {"horizon": 100, "extent": 0.5, "limit": 0.1}
PLANE = Plane(horizon=6, limit=0.1)
PROBLEM = Problem(Control(size=2), (2,), 2, 0, SPEC, SPEC, simulator=PLANE)
KEYS = torch.arange(3)


def make(split="test", spec=SPEC, seed=0, **changes):
    return Navigation(0, **{**DEFAULTS, **changes}).episodes(split, spec, seed)


def goal(*values):
    return {"goal": torch.tensor(values, dtype=torch.float64)}


def act(params, policy, keys=KEYS, problem=PROBLEM):
    """What a policy without a memory does, which is a function of observations and time."""
    return problem.simulate(params, lambda past, observations, time, noise: (policy(observations, time), ()), keys)[0]


def test_shapes_and_types():
    task = make().batch(range(5))
    assert (task.context.support.x.shape, task.query.x.shape) == ((5, 3), (5, 4))
    assert task.query.x.dtype == task.context.support.x.dtype == torch.int64
    assert (task.context.support.y.shape, task.query.y.shape) == ((5, 3, 0), (5, 4, 0))
    assert task.context.extras["goal"].shape == (5, 2)
    assert task.context.extras["goal"].dtype == torch.float32
    assert len(set(torch.cat([task.context.support.x, task.query.x], 1).flatten().tolist())) == 5 * 7


def test_goals_are_uniform():
    goals = make().drawn(range(4000))["goal"]
    assert np.abs(goals).max() < 0.5
    np.testing.assert_allclose(goals.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(goals.std(0), 1 / math.sqrt(12), atol=0.01)
    assert abs(np.corrcoef(goals.T)[0, 1]) < 0.05


def test_an_episode_depends_on_seed_split_and_index_alone():
    together, alone = select(make().batch([7, 3]), 1), select(make().batch([3]), 0)
    assert torch.equal(together.query.x, alone.query.x)
    assert torch.equal(together.context.extras["goal"], alone.context.extras["goal"])
    wider = make(spec=EpisodeSpec(way=1, shot=3, query=9)).batch([3])
    assert torch.equal(wider.context.support.x[0], alone.context.support.x)
    assert torch.equal(wider.query.x[0, :4], alone.query.x)
    assert len({make(split).sha256(8) for split in Navigation.splits} | {make(seed=1).sha256(8)}) == 4
    assert len(make().identity([0, 1])) == 2 * 2 * 8


def test_actions_are_clipped_along_either_axis():
    done = act(goal(0.0, 0.0), lambda observations, time: torch.tensor([[5.0, -0.05]]).expand(3, 2))
    way = torch.arange(6, dtype=torch.float64)[:, None] * torch.tensor([0.1, -0.05], dtype=torch.float64)
    torch.testing.assert_close(done.observations, way.expand(3, 6, 2))
    assert done.actions.unique().tolist() == pytest.approx([-0.05, 5.0])  # as they were drawn: their likelihood is that of a policy


def test_the_reward_is_minus_the_distance_after_the_action():
    done = act(goal(0.3, 0.4), lambda observations, time: torch.zeros(3, 2))
    torch.testing.assert_close(done.rewards, torch.full((3, 6), -0.5, dtype=torch.float64))
    torch.testing.assert_close(done.returns, torch.full((3,), -3.0, dtype=torch.float64))
    once = act(goal(0.1, 0.0), lambda observations, time: torch.tensor([[0.1 * (time == 0), 0.0]]).expand(3, 2))
    torch.testing.assert_close(once.rewards, torch.zeros(3, 6, dtype=torch.float64))


def test_a_policy_is_asked_with_its_past_and_its_noise_at_every_time():
    asked, noise = [], torch.arange(18.0).view(3, 6)

    def policy(past, observations, time, noise):
        asked.append((int(time), past, noise))
        return observations + 1, past.memory + 1

    begun = PROBLEM.rest(goal(0.1, 0.1), 3, torch.zeros(3))
    done, past = PROBLEM.simulate(goal(0.1, 0.1), policy, KEYS, begun, noise)
    assert [tuple(part.shape) for part in done] == [(3, 6, 2), (3, 6, 2), (3, 6)]
    assert [time for time, *_ in asked] == [*range(6)]
    assert asked[0][1] is begun
    for time, before, this in asked[1:]:
        assert torch.equal(this, noise[:, time])
        assert before.memory.tolist() == [time] * 3
        assert torch.equal(before.action, done.actions[:, time - 1])
        assert torch.equal(before.reward, done.rewards[:, time - 1])
    assert (past.memory.tolist(), torch.equal(past.reward, done.rewards[:, -1])) == ([6] * 3, True)


def test_without_a_simulator_nothing_can_be_done():
    with pytest.raises(TypeError, match="no environment"):
        Problem(Control(size=2), (2,), 2, 0, SPEC, SPEC).simulate({}, lambda *_: torch.zeros(1), KEYS)


def test_returns_are_the_score_and_minus_them_the_loss():
    done = Trajectories(torch.zeros(2, 3, 2), torch.zeros(2, 3, 2), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, -2.0]]))
    empty = torch.zeros(2, 0)
    assert (float(PROBLEM.score(done, empty)), float(PROBLEM.loss(done, empty))) == (2.0, -2.0)
    assert (PROBLEM.metric, PROBLEM.higher_is_better) == ("return", True)


def test_the_bounds_are_the_returns_of_these_policies():
    episodes = make(spec=EpisodeSpec(way=1, shot=1, query=1))
    data = Navigation(0, **DEFAULTS)
    problem = Problem(data.kind, data.input_shape, 2, 0, SPEC, SPEC, simulator=data.simulator)
    tasks, n = episodes.batch(range(50)), 50
    found = {"trivial": [], "oracle": []}
    for i in range(n):
        task = select(tasks, i)
        policies = {
            "trivial": lambda observations, time: torch.zeros_like(observations),
            "oracle": lambda observations, time, task=task: task.context.extras["goal"] - observations,
        }
        for name, policy in policies.items():
            found[name].append(float(act(task.context.extras, policy, task.query.x, problem).returns[0]))
    bounds = episodes.bounds(n)
    assert bounds.keys() == found.keys()
    for name, returns in found.items():
        np.testing.assert_allclose(bounds[name], returns, atol=1e-4)


def test_bounds_of_many_goals():
    bounds = make().bounds(20_000)
    # The mean distance of a point in a square of side 1 from its middle is (√2 + ln(1 + √2)) / 6.
    assert bounds["trivial"].mean() == pytest.approx(-100 * (math.sqrt(2) + math.log(1 + math.sqrt(2))) / 6, abs=0.3)
    left = np.maximum(0.5 * (np.arange(1000) + 0.5) / 1000 - 0.1 * np.arange(1, 6)[:, None], 0)  # along one axis, by time, at all quantiles
    expected = -np.hypot(left[:, :, None], left[:, None, :]).mean((1, 2)).sum()
    assert bounds["oracle"].mean() == pytest.approx(expected, abs=0.01)
    assert (bounds["oracle"] > bounds["trivial"]).all()


def test_unknown_split():
    with pytest.raises(UserError, match="no tests split, only train, val, test; did you mean 'test'"):
        make("tests")


def test_yaml_holds_every_argument(request):
    values = yaml.safe_load((request.config.rootpath / "conf/data/navigation2d.yaml").read_text())
    assert values.pop("_target_") == "metarun.data.navigation.Navigation"
    assert values.pop("name") == "navigation2d"
    assert set(values) == set(inspect.signature(Navigation).parameters) - {"seed"}
    assert values == DEFAULTS
