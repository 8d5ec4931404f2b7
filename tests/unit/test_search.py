"""Searches in a table: best so far, each method against a few lines of plain Python, limiting cases, and what they reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import double, search
from torch import Tensor

import metarun
from metarun import inner
from metarun.adaptation import adapt
from metarun.algos.search._controllers import Logits, Recurrent
from metarun.algos.search.evolution import Population
from metarun.errors import UserError
from metarun.experiment import train
from metarun.problem import Space
from metarun.run import Run
from metarun.runtime.private import tree_leaves
from metarun.task import Task, select

METHODS = ["random_search", "evolution", "reinforce"]


def built(algo: str, *words: str, index: int = 0, **settings: Any) -> tuple[Any, Task]:
    values = search(algo, *words)
    values["algo"] |= settings
    run = Run(values)
    return run.algorithm.double(), double(select(run.episodes("test").batch([index]), 0))


def tried(algorithm: Any, task: Task, steps: int) -> tuple[list[tuple[int, ...]], list[Any]]:
    """The words that a search tries, and its states."""
    words, propose = [], algorithm.propose

    def noted(*arguments: Any) -> Tensor:
        words.append(propose(*arguments))
        return words[-1]

    algorithm.propose = noted
    states = list(adapt(algorithm, task.context, steps))
    return [tuple(word.tolist()) for word in words], states


@pytest.mark.parametrize("algo", METHODS)
def test_the_choice_is_the_best_that_was_tried(algo: str) -> None:
    algorithm, task = built(algo)
    words, states = tried(algorithm, task, 40)
    values = [float(algorithm.space.value(task.context.extras["validation"], torch.tensor(word))) for word in words]
    for k, state in enumerate(states[1:]):
        best = int(np.argmax(values[: k + 1]))
        assert tuple(state.best.tolist()) == words[best]
        assert float(state.value) == values[best]
        assert algorithm.predict(state, task.query.x).tolist() == [list(words[best])]
    assert states[0].value == -torch.inf


@pytest.mark.parametrize("algo", METHODS)
def test_a_search_never_sees_what_candidates_are_worth(algo: str) -> None:
    algorithm, task = built(algo)
    before, _ = tried(algorithm, task, 20)
    algorithm, other = built(algo)
    other = other._replace(query=other.query._replace(y=other.query.y.flip(-1)))
    assert tried(algorithm, other, 20)[0] == before


@pytest.mark.parametrize("algo", METHODS)
def test_searches_are_keyed(algo: str) -> None:
    first, again, other = (tried(*built(algo, index=index), 20)[0] for index in (0, 0, 1))
    assert first == again != other


def test_evolution_is_a_queue() -> None:
    """Algorithm 1 with Python's own lists: whoever has a child is the best of some sample, and the oldest is gone."""
    algorithm, task = built("evolution", population=6, sample=3)
    words, states = tried(algorithm, task, 40)
    table = task.context.extras["validation"]
    for k in range(6, 40):
        alive = [torch.tensor(word) for word in words[k - 6 : k]]
        members = states[k].memory
        assert sorted(map(tuple, members.words.tolist())) == sorted(words[k - 6 : k])
        torch.testing.assert_close(members.values.sort()[0], torch.stack([algorithm.space.value(table, w) for w in alive]).sort()[0])
        ranked = sorted(alive, key=lambda word: -float(algorithm.space.value(table, word)))
        changes = [int((torch.tensor(words[k]) != parent).sum()) for parent in ranked]
        assert 1 in changes[: 6 - 3 + 1], "the best of three of six is never one of the last two"


@pytest.mark.parametrize(("sample", "share"), [(6, 1.0), (1, 1 / 6)])
def test_a_sample_of_all_is_greedy_and_a_sample_of_one_is_blind(sample: int, share: float) -> None:
    algorithm, _ = built("evolution", population=6, sample=sample)
    words = torch.zeros(6, 4, dtype=torch.int64)
    words[3] = torch.tensor([2, 1, 3, 2])  # the best, unlike all others in every decision
    members = Population(words, torch.tensor([0.0, 1, 2, 9, 3, 4], dtype=torch.float64))
    children = torch.vmap(lambda key: algorithm.child(members, key))(torch.arange(3000))
    changed = (children != words[3]).sum(-1)
    assert float((changed == 1).double().mean()) == pytest.approx(share, abs=0.03)


def test_a_mutation_changes_one_decision_to_any_other_option() -> None:
    algorithm, _ = built("evolution", population=1, sample=1)
    parent = torch.tensor([[1, 0, 2, 0]])
    members = algorithm.remember(torch.tensor(0), torch.tensor(0.0))._replace(words=parent)
    children = torch.vmap(lambda key: algorithm.child(members, key))(torch.arange(4000))
    assert ((children != parent).sum(-1) == 1).all()
    assert (children < torch.tensor([3, 2, 4, 3])).all()
    assert len({tuple(child) for child in children.tolist()}) == 2 + 1 + 3 + 2
    np.testing.assert_allclose((children != parent).double().mean(0), 0.25, atol=0.03)


def test_evolution_refuses_a_sample_larger_than_the_population() -> None:
    with pytest.raises(UserError, match=r"algo\.sample=7 cannot be drawn from algo\.population=6"):
        built("evolution", population=6, sample=7)


@pytest.mark.parametrize("controller", ["logits", "lstm"])
def test_the_log_probability_of_a_word_is_the_sum_of_its_decisions(controller: str) -> None:
    """Probabilities of all words, as counted among very many draws, add up to one and are the frequencies."""
    torch.manual_seed(0)
    space = Space((2, 3))
    policy = (Logits(space) if controller == "logits" else Recurrent(space, 4)).double()
    for weight in policy.parameters():
        weight.data.normal_(0, 0.7)
    noise = -torch.log(-torch.log(torch.vmap(lambda key: inner.uniform(key, (2, 3)))(torch.arange(20_000)).double()))
    words, logs = torch.vmap(policy)(noise)
    places = space.index(words)
    frequencies = torch.bincount(places, minlength=6) / len(places)
    found = torch.stack([logs[places == place][0] for place in range(6)]).detach().exp()
    assert float(found.sum()) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(found, frequencies.double(), atol=0.015, rtol=0)


def test_reinforce_is_its_rule() -> None:
    """The closed form of a softmax: ∇ log π(word) = one-hot(word) − π, with Adam of torch and a moving average in plain numbers."""
    algorithm, task = built("reinforce", momentum=0.8, rate=0.05)
    words, states = tried(algorithm, task, 25)
    table = task.context.extras["validation"]
    logits = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    options = (3, 2, 4, 3)
    adam, rewards = torch.optim.Adam([logits], 0.05), []
    for word in words:
        reward = float(algorithm.space.value(table, torch.tensor(word)))
        weights = 0.8 ** np.arange(len(rewards))[::-1]
        baseline = float(weights @ rewards / weights.sum()) if rewards else reward
        logits.grad = torch.zeros(4, 4, dtype=torch.float64)
        for row, option, many in zip(range(4), word, options):
            slope = torch.eye(4, dtype=torch.float64)[option, :many] - logits[row, :many].detach().softmax(0)
            logits.grad[row, :many] = -(reward - baseline) * slope
        adam.step()
        rewards.append(reward)
    torch.testing.assert_close(states[-1].memory.fast["logits"].view(4, 4), logits.detach(), rtol=1e-5, atol=1e-5)


def test_without_an_advantage_nothing_is_learned() -> None:
    algorithm, task = built("reinforce")
    flat = task._replace(context=task.context._replace(extras={"validation": torch.full((72,), 0.5)}))
    first, *_, last = adapt(algorithm, flat.context, 10)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(first.memory.fast), tree_leaves(last.memory.fast)))


@pytest.mark.parametrize(("controller", "rate"), [("logits", 0.1), ("lstm", 0.03)])
def test_reinforce_becomes_sure_of_a_good_word(controller: str, rate: float) -> None:
    algorithm, task = built("reinforce", controller=controller, rate=rate, hidden=8)
    words, _ = tried(algorithm, task, 200)
    values = [float(algorithm.space.value(task.context.extras["validation"], torch.tensor(word))) for word in words]
    assert len(set(words[-30:])) < 0.6 * len(set(words[:30]))
    assert np.mean(values[-30:]) > np.quantile(task.context.extras["validation"], 0.9)


def test_a_run_shows_the_best_so_far_beside_its_bounds(tmp_path: Any) -> None:
    values = search("evolution", "trainer.test_episodes=50", "trainer.curve=all")
    values["algo"] |= {"test_steps": 40, "population": 6}
    summary = train(values, tmp_path)
    curve = [point["mean"] for point in summary["test"]["curve"]]
    trivial, oracle = (summary["bounds"][name]["mean"] for name in ("trivial", "oracle"))
    assert (summary["metric"], summary["higher_is_better"], len(curve)) == ("accuracy", True, 41)
    assert curve[0] == pytest.approx(trivial, abs=0.1)
    assert trivial + 0.8 * (oracle - trivial) < curve[-1] <= oracle
    with pytest.raises(UserError, match="is a search, and data=letters has no examples to predict: test it with metarun eval"):
        metarun.load(tmp_path)
