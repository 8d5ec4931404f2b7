"""Greedy, UCB1, Thompson and Gittins: indices against published values and closed forms, what they remember, and what they get."""

import math

import numpy as np
import pytest
import torch
from helpers import bandits, engine, small

from metarun import inner
from metarun.adaptation import adapt
from metarun.algos.control import _policies
from metarun.algos.control._lives import Counts
from metarun.algos.control.gittins import indices
from metarun.algos.control.thompson import TRIES, gamma
from metarun.protocols.episodes import LAST
from metarun.run import Run
from metarun.task import select

RULES = ("greedy", "ucb1", "thompson", "gittins")


def rule(algo, *words):
    return Run(bandits(algo, *words)).algorithm.double()


def counts(wins, losses):
    wins, losses = torch.tensor([wins], dtype=torch.float64), torch.tensor([losses], dtype=torch.float64)
    return Counts(wins + losses, wins)


@pytest.mark.parametrize(
    ("discount", "wins", "losses", "published"),  # in the tables of Gittins, Glazebrook, Weber 2011, to four digits
    [(0.9, 0, 0, 0.7029), (0.9, 1, 0, 0.8001), (0.9, 0, 1, 0.5001), (0.99, 0, 0, 0.8699), (0.5, 0, 0, 0.5590)],
)
def test_gittins_indices_are_the_published_ones(discount, wins, losses, published):
    assert indices(3, discount)[wins, losses] == pytest.approx(published, abs=2e-4)


def test_an_index_is_the_price_at_which_one_may_as_well_stop():
    """By value iteration over the arms reachable within 60 pulls, at the index itself."""
    discount, index = 0.8, indices(4, 0.8)[2, 1]
    value = {}
    for pulls in range(60, -1, -1):
        for wins in range(pulls + 1):
            p = (wins + 3) / (pulls + 5)
            go_on = (
                p / (1 - discount)
                if pulls == 60
                else p * (1 + discount * value[wins + 1, pulls + 1]) + (1 - p) * discount * value[wins, pulls + 1]
            )
            value[wins, pulls] = max(index / (1 - discount), go_on)
    assert go_on == pytest.approx(index / (1 - discount), abs=1e-4)


def test_an_index_is_above_the_mean_and_falls_to_it():
    table = indices(40, 0.95)
    wins, losses = np.indices((20, 20))
    bonus = table[:20, :20] - (wins + 1) / (wins + losses + 2)
    assert (bonus > 0).all()
    assert np.all(np.diff(bonus.diagonal()) < 0)


def test_greedy_pulls_the_largest_posterior_mean():
    index = rule("greedy").index(counts([0, 1, 3], [0, 0, 2]), ())
    assert index[0].tolist() == pytest.approx([1 / 2, 2 / 3, 4 / 7])


def test_ucb1_is_mean_and_bonus_and_tries_all_arms_first():
    index = rule("ucb1", "algo.width=0.7").index(counts([3, 1, 0], [1, 1, 0]), ())[0]
    assert index[:2].tolist() == pytest.approx([3 / 4 + 0.7 * math.sqrt(math.log(6) / 4), 1 / 2 + 0.7 * math.sqrt(math.log(6) / 2)])
    assert index[2] > 100


def test_thompson_draws_from_the_posterior():
    generator = torch.Generator().manual_seed(0)
    normal, uniform = torch.randn(40_000, TRIES, generator=generator), torch.rand(40_000, TRIES, generator=generator)
    for shape in (1.0, 3.0, 50.0):
        drawn = gamma(torch.full((40_000,), shape), normal, uniform)
        assert float(drawn.mean()) == pytest.approx(shape, rel=0.02)
        assert float(drawn.var()) == pytest.approx(shape, rel=0.05)
    algorithm = rule("thompson")
    chance = torch.vmap(algorithm.chance)(torch.arange(3000))
    drawn = algorithm.index(
        Counts(*(part.expand(3000, 3) for part in counts([0, 4, 1], [0, 1, 9]))), tuple(c[:, 0].double() for c in chance)
    )
    for arm, (a, b) in enumerate([(1, 1), (5, 2), (2, 10)]):
        assert float(drawn[:, arm].mean()) == pytest.approx(a / (a + b), abs=0.02)
        assert float(drawn[:, arm].var()) == pytest.approx(a * b / (a + b) ** 2 / (a + b + 1), rel=0.1)


@pytest.mark.parametrize("algo", RULES)
def test_it_remembers_every_pull_of_every_episode(algo):
    run = Run(bandits(algo))
    task = select(run.episodes("test").batch([0]), 0)
    *_, before, state = adapt(run.algorithm, task.context, 3)
    assert float(before.past.memory.pulls.sum()) == 2 * 6 - 1  # the last pull is counted before the next
    assert float(state.past.memory.pulls.sum()) == 3 * 6 - 1
    done = run.algorithm.predict(state, task.query.x)
    assert done.actions.shape == done.rewards.shape == (4, 6)


def test_a_pull_is_that_of_the_largest_index_of_what_is_known():
    run = Run(bandits("greedy", "shot=0"))
    task = select(run.episodes("test").batch([0]), 0)
    done = run.algorithm.predict(run.algorithm.begin(task.context), task.query.x)
    for actions, rewards in zip(done.actions.tolist(), done.rewards.tolist()):
        wins, pulls = [0.0] * 3, [0.0] * 3
        for arm, reward in zip(actions, rewards):
            means = [(w + 1) / (n + 2) for w, n in zip(wins, pulls)]
            assert means[arm] == max(means)
            wins[arm] += reward
            pulls[arm] += 1


@pytest.mark.parametrize("algo", ["greedy", "ucb1"])
def test_among_equals_chance_decides(algo):
    run = Run(bandits(algo, "shot=0", "query=600"))
    task = select(run.episodes("test").batch([0]), 0)
    first = run.algorithm.predict(run.algorithm.begin(task.context), task.query.x).actions[:, 0]
    assert (torch.bincount(first, minlength=3) - 200).abs().max() < 4 * math.sqrt(600 * 2 / 9)


@pytest.mark.parametrize(
    "words",
    [
        *(("data=bandits", f"algo={algo}") for algo in ("random", *RULES, "rl2")),
        *(
            (f"data={data}", f"algo={algo}")
            for data in ("cartpole", "gridnav", "tabular_mdp", "navigation2d")
            for algo in ("random", "rl2")
        ),
        ("data=cartpole", "algo=maml_rl"),
    ],
)
def test_chance_of_the_world_is_not_that_of_who_acts_in_it(words, monkeypatch):
    """Numbers of one stream of an episode's key are the same numbers."""
    run = Run(small(*words, "net=mlp", "way=1", "shot=1", "query=2"))
    keys, drawn, uniform = torch.arange(2), [], inner.uniform
    monkeypatch.setattr(inner, "uniform", lambda key, shape, stream=0: drawn.append(stream) or uniform(key, shape, stream))
    context, simulator = select(run.episodes("test").batch([0]), 0).context, run.problem.simulator
    simulator.reset(context.extras, keys)
    simulator.noise(keys)
    world, drawn[:] = {*drawn}, []
    run.algorithm.noise(keys) if hasattr(run.algorithm, "noise") else _policies.noise(run.problem, keys)
    assert drawn
    assert not world & {*drawn}


def test_they_get_what_is_known():
    """Five arms, a hundred pulls: against values of other programs, the luck is the same for all."""
    known, found = {"random": 50.0, "greedy": 75.7, "ucb1": 77.5, "gittins": 78.7}, {}
    for algo in known:
        run = Run(bandits(algo, "data.arms=5", "data.horizon=100", "shot=0", "query=1"))
        episodes = run.episodes("test")
        scores = engine(chunk=300).evaluate(run.algorithm, episodes.batch(range(300)), LAST)["score"][:, 0].numpy()
        found[algo] = scores - episodes.bounds(300)["oracle"] + 100 * 5 / 6
    for algo, scores in found.items():
        assert scores.mean() == pytest.approx(known[algo], abs=3 * scores.std() / math.sqrt(300))
    better = found["gittins"] - found["greedy"]
    assert better.mean() > 1.96 * better.std() / math.sqrt(300)


def test_regret_of_ucb1_grows_ever_more_slowly():
    run = Run(bandits("ucb1", "algo.width=1.4142", "data.arms=2", "data.horizon=200", "shot=0", "query=50"))
    task = select(run.episodes("test").batch([1]), 0)
    done = run.algorithm.predict(run.algorithm.begin(task.context), task.query.x)
    means = task.context.extras["means"]
    gap = float(means.max() - means.min())
    assert gap > 0.1
    regret = gap * (done.actions != means.argmax()).float().mean(0).cumsum(0)
    assert regret[199] < 8 * math.log(200) / gap + (1 + math.pi**2 / 3) * gap  # theorem 1 of Auer et al. 2002
    assert regret[199] - regret[100] < 0.8 * regret[99]
