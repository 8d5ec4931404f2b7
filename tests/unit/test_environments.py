"""Bandits, the grid and tabular MDPs: what their episodes are, their chance, and their bounds against independent computations."""

import inspect
import itertools

import numpy as np
import pytest
import torch
import yaml
from helpers import engine, small

from metarun.config.compose import compose, resolve
from metarun.data.bandits import Bandits
from metarun.data.gridnav import MOVES, GridNav
from metarun.data.tabular_mdp import TabularMDP
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Problem
from metarun.protocols.episodes import LAST
from metarun.run import Run
from metarun.task import select

SPEC = EpisodeSpec(way=1, shot=0, query=5)
MADE = {
    "bandits": lambda: Bandits(0, arms=3, horizon=7),
    "gridnav": lambda: GridNav(0, side=4, horizon=6),
    "tabular_mdp": lambda: TabularMDP(0, states=3, choices=2, horizon=4),
}
CLASSES = {"bandits": Bandits, "gridnav": GridNav, "tabular_mdp": TabularMDP}


def problem_of(data):
    return Problem(data.kind, data.input_shape, data.kind.outputs(SPEC), 0, SPEC, SPEC, simulator=data.simulator)


def act(data, params, choose, keys):
    """What a policy without a memory does, a function of observations [n, …] and time."""
    return problem_of(data).simulate(params, lambda past, seen, time, noise: (choose(seen, int(time)), ()), keys)[0]


def params(data, index=0, dtype=torch.float64):
    task = select(data.episodes("test", SPEC, 0).batch([index]), 0)
    return {name: values.to(dtype) for name, values in task.context.extras.items()}, task.query.x


@pytest.mark.parametrize("name", MADE)
def test_episodes_are_a_pure_function(name):
    data = MADE[name]()
    together, alone = select(data.episodes("val", SPEC, 3).batch([8, 2]), 1), select(data.episodes("val", SPEC, 3).batch([2]), 0)
    assert torch.equal(together.query.x, alone.query.x)
    assert all(torch.equal(together.context.extras[key], values) for key, values in alone.context.extras.items())
    assert together.context.support.x.shape == (0,)
    hashes = {data.episodes(split, SPEC, seed).sha256(5) for split in data.splits for seed in (0, 1)}
    assert len(hashes) == 6
    longer = type(data)(0, **{**vars_of(data), "horizon": data.simulator.horizon + 1})
    assert longer.episodes("val", SPEC, 0).sha256(5) not in hashes
    with pytest.raises(UserError, match="no tests split, only train, val, test; did you mean 'test'"):
        data.episodes("tests", SPEC, 0)


def vars_of(data):
    """The arguments that an object was made with."""
    held = {**vars(data), **vars(data.simulator)}
    return {name: held[name] for name in inspect.signature(type(data)).parameters if name != "seed"}


@pytest.mark.parametrize("name", MADE)
def test_yaml_holds_every_argument(name, request):
    values = yaml.safe_load((request.config.rootpath / f"conf/data/{name}.yaml").read_text())
    assert values["name"] == name
    assert set(values) - {"_target_", "name"} == set(inspect.signature(CLASSES[name]).parameters) - {"seed"}


@pytest.mark.parametrize("name", MADE)
def test_vmap_is_a_loop_over_environments_and_episodes(name):
    data = MADE[name]()
    tasks = data.episodes("test", SPEC, 0).batch(range(3))
    problem, k = problem_of(data), data.kind.choices

    def live(extras, keys):
        return problem.simulate(extras, lambda past, seen, time, noise: ((keys + time) % k, ()), keys)[0]

    mapped = torch.vmap(live)(tasks.context.extras, tasks.query.x)
    for i in range(3):
        task = select(tasks, i)
        for j in range(5):
            one = live(task.context.extras, task.query.x[j : j + 1])
            assert all(torch.equal(whole[i, j], alone[0]) for whole, alone in zip(mapped, one))


def test_arms_pay_as_often_as_their_means_say():
    data = MADE["bandits"]()
    given, _ = params(data)
    keys = torch.arange(4000)
    for arm in range(3):
        done = act(data, given, lambda seen, time, arm=arm: torch.full((4000,), arm), keys)
        assert set(done.rewards.unique().tolist()) <= {0.0, 1.0}
        assert float(done.rewards.mean()) == pytest.approx(float(given["means"][arm]), abs=0.01)
        assert np.abs(np.corrcoef(done.rewards.T) - np.eye(7)).max() < 0.08  # pulls are independent
    assert (done.observations == 0).all()


def test_bounds_of_bandits():
    data = MADE["bandits"]()
    episodes = data.episodes("test", SPEC, 0)
    means, bounds = episodes.drawn(range(20_000))["means"], episodes.bounds(20_000)
    np.testing.assert_allclose(bounds["random"], 7 * means.mean(1))
    assert bounds["oracle"].mean() == pytest.approx(7 * 3 / 4, abs=0.03)  # the largest of three uniform numbers


def test_the_grid_moves_stops_at_walls_and_pays_on_the_goal():
    data = MADE["gridnav"]()
    given = {"goal": torch.tensor([2.0, 0.0])}
    right, up, left, stay = (torch.tensor([MOVES.index(move)]) for move in ((1, 0), (0, 1), (-1, 0), (0, 0)))
    way = [right, right, stay, up, right, right]
    done = act(data, given, lambda seen, time: way[time], torch.zeros(1, dtype=torch.int64))
    assert done.observations[0].tolist() == [[0, 0], [1, 0], [2, 0], [2, 0], [2, 1], [3, 1]]
    assert done.rewards[0].tolist() == pytest.approx([-0.1, 1, 1, -0.1, -0.1, -0.1])
    stuck = act(data, given, lambda seen, time: left, torch.zeros(1, dtype=torch.int64))
    assert (stuck.observations == 0).all()


def test_goals_of_the_grid_are_all_cells_outside_the_corner():
    data = GridNav(0, side=5, horizon=15)
    goals = data.episodes("train", SPEC, 0).drawn(range(4000))["goal"]
    cells, counts = np.unique(goals, axis=0, return_counts=True)
    assert len(cells) == 21
    assert not ((cells < 2).all(1)).any()
    assert counts.min() > 0.7 * 4000 / 21


def test_the_oracle_of_the_grid_walks_there():
    data = MADE["gridnav"]()
    bounds = data.episodes("test", SPEC, 0).bounds(12)
    for i in range(12):
        given, keys = params(data, i)

        def walk(seen, time, goal=given["goal"]):
            x, y = seen[:, 0], seen[:, 1]
            return torch.where(x < goal[0], MOVES.index((1, 0)), torch.where(y < goal[1], MOVES.index((0, 1)), MOVES.index((0, 0))))

        done = act(data, given, walk, keys)
        assert float(done.returns.mean()) == pytest.approx(bounds["oracle"][i])


def test_random_moves_on_the_grid_by_a_transition_matrix():
    data = MADE["gridnav"]()
    side, horizon = 4, 6
    cells = [(x, y) for x in range(side) for y in range(side)]
    matrix = np.zeros((16, 16))
    for i, (x, y) in enumerate(cells):
        for dx, dy in MOVES:
            matrix[i, cells.index((min(max(x + dx, 0), 3), min(max(y + dy, 0), 3)))] += 1 / len(MOVES)
    episodes = data.episodes("test", SPEC, 0)
    for goal, found in zip(episodes.drawn(range(10))["goal"], episodes.bounds(10)["random"]):
        rewards = np.array([1.0 if tuple(goal) == cell else -0.1 for cell in cells])
        expected = sum(np.linalg.matrix_power(matrix, t)[0] @ rewards for t in range(1, horizon + 1))
        assert found == pytest.approx(expected)


def test_tables_are_distributions_and_bounds_are_a_linear_system():
    data = MADE["tabular_mdp"]()
    episodes = data.episodes("test", SPEC, 0)
    drawn, bounds = episodes.drawn(range(6)), episodes.bounds(6)
    np.testing.assert_allclose(drawn["transitions"].sum(-1), 1)
    rewards = data.episodes("train", SPEC, 0).drawn(range(3000))["rewards"]
    assert (rewards.mean(), rewards.std()) == (pytest.approx(1, abs=0.03), pytest.approx(1, abs=0.03))
    states, horizon = 3, 4
    for i in range(6):
        step, paid = drawn["transitions"][i].mean(1), drawn["rewards"][i].mean(1)
        # Values of (time, state) solve (I − P) v = r over all times at once.
        system, right = np.eye(states * horizon), np.tile(paid, horizon)
        for t in range(horizon - 1):
            system[t * states : (t + 1) * states, (t + 1) * states : (t + 2) * states] -= step
        assert bounds["random"][i] == pytest.approx(np.linalg.solve(system, right)[0])
    rules = [*itertools.product(range(2), repeat=states)]  # a choice for every state; a policy has one such rule for every time
    values = np.zeros((1, states))
    for _ in range(horizon):
        paid = np.array([[drawn["rewards"][0, s, a] for s, a in enumerate(rule)] for rule in rules])
        moves = np.array([[drawn["transitions"][0, s, a] for s, a in enumerate(rule)] for rule in rules])
        values = (paid[:, None] + np.einsum("rst,vt->rvs", moves, values)).reshape(-1, states)
    assert len(values) == len(rules) ** horizon
    assert bounds["oracle"][0] == pytest.approx(values[:, 0].max())


def test_a_table_moves_and_pays_as_it_says():
    data = MADE["tabular_mdp"]()
    given, _ = params(data)
    keys = torch.arange(3000)
    done = act(data, given, lambda seen, time: torch.ones(3000, dtype=torch.int64), keys)
    states = done.observations.argmax(-1)
    assert (done.observations.sum(-1) == 1).all()
    assert (states[:, 0] == 0).all()
    for s in range(3):
        here = states[:, 1] == s
        after = torch.bincount(states[here, 2], minlength=3) / here.sum()
        torch.testing.assert_close(after.double(), given["transitions"][s, 1], atol=0.06, rtol=0)
        paid = done.rewards[here, 1]
        assert float(paid.mean()) == pytest.approx(float(given["rewards"][s, 1]), abs=0.15)
        assert float(paid.std()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", [*MADE, "navigation2d"])
def test_random_actions_get_what_the_bound_says(name):
    words = {"bandits": ["data.horizon=8"], "gridnav": ["data.horizon=8"], "tabular_mdp": [], "navigation2d": ["data.horizon=5"]}[name]
    run = Run(small(f"data={name}", *words, "algo=random", "net=mlp", "way=1", "shot=0", "query=400", "engine.chunk=40"))
    assert not run.algorithm.learns
    episodes = run.episodes("test")
    found = engine().evaluate(run.algorithm, episodes.batch(range(40)), LAST)["score"][:, 0].numpy()
    bounds = episodes.bounds(40)
    if name == "navigation2d":
        assert (found < bounds["trivial"]).mean() > 0.8  # who wanders about comes away from where goals lie all around
    else:
        error = found - bounds["random"]
        assert abs(error.mean()) < 4 * error.std() / np.sqrt(40)
        assert np.abs(error).max() < 0.35 * (bounds["oracle"] - bounds["random"]).mean()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data=gridnav", "data.side=2", "algo=random"], "data.side=2 is not possible: it should be 3 or more"),
        (["data=bandits", "data.arms=1", "algo=random"], "data.arms=1 is not possible: it should be 2 or more"),
        (["data=tabular_mdp", "data.horizon=0", "algo=random"], "data.horizon=0 is not possible: it should be 1 or more"),
        (["data=gridnav", "algo=ucb1"], "algo=ucb1 is for bandits, but data=gridnav is control; choose another"),
        (["data=gridnav", "algo=maml_rl", "shot=0"], "shot=0 is not for algo=maml_rl, whose steps need trajectories: choose shot >= 1"),
    ],
)
def test_what_is_not_possible_is_said_in_one_line(words, line):
    with pytest.raises(UserError, match=line) as refused:
        Run(small("net=mlp", "way=1", *words))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("preset", ["bandits_rl2", "gridnav_rl2"])
def test_presets_compose(preset):
    assert Run(resolve(compose([f"experiment={preset}", "device=cpu", "logger=quiet"]))).algorithm.learns
