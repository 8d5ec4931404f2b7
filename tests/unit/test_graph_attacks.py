"""GCN and the attacks on it: training against torch's own, the surrogate's gradient against plain forms, and what no flip may break."""

from __future__ import annotations

import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import classification, engine, in_float64, nodes, random
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import metarun
from metarun.adaptation import adapt
from metarun.algorithm import Algorithm
from metarun.algos.graphs._attack import Attack, drawn
from metarun.algos.graphs._surrogate import Surrogate, Weights, self_trained
from metarun.algos.graphs.metattack import Metattack
from metarun.errors import UserError
from metarun.experiment import evaluate, train
from metarun.protocols.episodes import LAST
from metarun.run import Run
from metarun.task import Task, select

ATTACKS = ["metattack", "graph_dice", "random_flips"]


def built(algo: str, *words: str, **changes: Any) -> tuple[Any, Task]:
    """A method on the made-up graph in float64, and one task."""
    values = nodes(algo, *words)
    values["algo"] |= changes
    algorithm, tasks = in_float64(values, tasks=1)
    return algorithm, select(tasks, 0)


def plain_hops(linked: Tensor) -> Tensor:
    looped = linked + torch.eye(len(linked), dtype=linked.dtype)
    half = looped.sum(1).pow(-0.5).diag()
    return half @ looped @ half


def real(task: Task) -> Tensor:
    return task.context.shared.adjacency().double()


def states_of(algorithm: Algorithm, task: Task) -> list[Any]:
    with torch.no_grad():
        return list(adapt(algorithm, task.context, algorithm.steps(task.context, False)))


def test_a_gcn_is_trained_as_torch_would_train_it() -> None:
    """Two models side by side, each as torch's Adam trains it alone; the weights of the step that validates best answer."""
    algorithm, task = built("gcn", models=2, dropout=0.0, test_steps=4, decay=0.1, lr=0.2)
    context, features = task.context, task.context.shared.features
    states, hops = states_of(algorithm, task), plain_hops(real(task))
    answers = algorithm.predict(states[-1], task.query.x)
    for model in range(2):
        first = states[0].weights["first"].unflatten(1, (2, -1))[:, model].clone().requires_grad_()
        second = states[0].weights["second"][model].clone().requires_grad_()
        optimizer = torch.optim.Adam([first, second], 0.2, weight_decay=0.1)
        found = []
        for state in states[1:]:
            logits = hops @ F.relu(hops @ features @ first) @ second
            validation = F.cross_entropy(logits[context.extras["validation"]], context.extras["validation_y"])
            found.append((float(validation.detach()), logits[task.query.x].detach()))
            optimizer.zero_grad()
            F.cross_entropy(logits[context.support.x], context.support.y).backward()
            optimizer.step()
            torch.testing.assert_close(state.weights["second"][model], second.detach())
            torch.testing.assert_close(state.weights["first"].unflatten(1, (2, -1))[:, model], first.detach())
        assert min(found)[0] < found[0][0]
        torch.testing.assert_close(answers[:, :, model], min(found, key=lambda pair: pair[0])[1])


def test_dropout_leaves_out_its_share_and_keeps_the_mean() -> None:
    algorithm, task = built("gcn", dropout=0.25)
    seen: list[Tensor] = []
    logits = algorithm.logits
    algorithm.logits = lambda *given: (seen.append(given[4]), logits(*given))[1]
    list(adapt(algorithm, task.context, 3))
    kept = [given for given in seen if isinstance(given, Tensor)]
    assert len(kept) == 3
    assert all(set(each.unique().tolist()) == {0.0, 1 / 0.75} for each in kept)
    assert float(torch.stack(kept).mean()) == pytest.approx(1, abs=0.08)
    assert not torch.equal(kept[0], kept[1])


def surrogate_of(linked: Tensor, task: Task, start: Weights, steps: int) -> list[tuple[Tensor, Tensor]]:
    """Its weights after every step, by plain gradient descent with momentum on all of them, in a graph."""
    features, (x, y) = task.context.shared.features, task.context.support
    hops = plain_hops(linked)
    weights = [w.clone().requires_grad_() for w in start]
    speed, found = [torch.zeros_like(w) for w in weights], []
    for _ in range(steps):
        loss = F.cross_entropy((hops @ hops @ features @ weights[0] @ weights[1])[x], y)
        slopes = torch.autograd.grad(loss, weights, create_graph=True)
        speed = [0.9 * v + g for v, g in zip(speed, slopes)]
        weights = [w - 0.1 * v for w, v in zip(weights, speed)]
        found.append((weights[0], weights[1]))
    return found


def of_attack(algorithm: Metattack, task: Task) -> tuple[tuple[Any, ...], Weights]:
    """What ``Metattack.loss`` takes beside the graph in the first step."""
    features, support = task.context.shared.features, task.context.support
    start = Weights.drawn(algorithm.key(task.context), features, algorithm.surrogate.hidden, 4)
    share = algorithm.share(support.x, len(features)).double()
    return (features, *support, algorithm.labels(task.context), share, start), start


@pytest.mark.parametrize("target", ["self", "train", "both"])
@pytest.mark.parametrize("first_order", [False, True])
def test_the_loss_that_is_raised_and_its_gradient_are_those_of_plain_training(target: str, first_order: bool) -> None:
    algorithm, task = built("metattack", target=target, first_order=first_order, train_steps=6)
    given, start = of_attack(algorithm, task)
    features, x, _, labels, *_ = given
    linked = (real(task) * 0.8 + 0.05).requires_grad_()  # any numbers will do
    weights = surrogate_of(linked, task, start, 6)
    hops, unlabelled = plain_hops(linked), torch.ones(len(features), dtype=torch.bool).scatter(0, x, False)
    expected = torch.zeros((), dtype=torch.float64)
    for first, second in [(a.detach(), b.detach()) for a, b in weights] if first_order else weights[-1:]:
        losses = F.cross_entropy(hops @ hops @ features @ first @ second, labels, reduction="none")
        parts = {"self": [losses[unlabelled].mean()], "train": [losses[x].mean()]}
        expected = expected + torch.stack(parts.get(target) or [*parts["self"], *parts["train"]]).mean()
    loss = algorithm.loss(linked, *given)
    torch.testing.assert_close(loss, expected)

    def both_ways(loss: Tensor) -> Tensor:
        slope = torch.autograd.grad(loss, linked)[0]
        return slope + slope.T

    torch.testing.assert_close(both_ways(loss), both_ways(expected))


def test_the_gradient_is_that_of_finite_differences() -> None:
    """Of both ways of a link together, on numbers between 0 and 1."""
    algorithm, task = built("metattack", train_steps=5)
    given, _ = of_attack(algorithm, task)
    linked = (real(task) * 0.7 + 0.1 * random(*real(task).shape).abs()).clamp(0, 1)
    linked = ((linked + linked.T) / 2).fill_diagonal_(0).requires_grad_()
    slope = torch.autograd.grad(algorithm.loss(linked, *given), linked)[0]
    for i, j in ((0, 1), (0, 9), (5, 20), (11, 12), (3, 25)):
        nudge = torch.zeros_like(linked)
        nudge[i, j] = nudge[j, i] = 1e-6
        with torch.no_grad():
            up, down = (algorithm.loss(linked + sign * nudge, *given) for sign in (1, -1))
        assert float(slope[i, j] + slope[j, i]) == pytest.approx(float(up - down) / 2e-6, rel=1e-5, abs=1e-9)


def test_the_score_of_a_flip_tells_what_it_does_to_the_loss() -> None:
    algorithm, task = built("metattack", train_steps=5)
    given, _ = of_attack(algorithm, task)
    linked = real(task)
    slope = torch.autograd.grad(algorithm.loss(linked.requires_grad_(), *given), linked)[0]
    scores = ((slope + slope.T) * (1 - 2 * linked)).detach()
    changes, told = [], []
    with torch.no_grad():
        before = algorithm.loss(linked, *given)
        for i in range(0, len(linked), 3):
            for j in range(i + 1, len(linked), 2):
                flipped = linked.detach().clone()
                flipped[i, j] = flipped[j, i] = 1 - linked[i, j]
                changes.append(algorithm.loss(flipped, *given) - before)
                told.append(scores[i, j])
    assert float(torch.corrcoef(torch.stack([torch.stack(changes), torch.stack(told)]))[0, 1]) > 0.8


@pytest.mark.parametrize("algo", ATTACKS)
def test_every_flip_keeps_the_graph_a_graph_and_to_the_budget(algo: str) -> None:
    algorithm, task = built(algo, budget=0.3)
    clean = task.context.shared.adjacency()
    states = states_of(algorithm, task)
    assert len(states) == int(0.3 * len(task.context.shared.edges)) + 1 == 27
    for k, state in enumerate(states):
        linked = state.poisoned.adjacency()
        assert linked.dtype == torch.bool
        assert torch.equal(linked, linked.T)
        assert not linked.diagonal().any()
        assert int((linked ^ clean).sum()) == 2 * k
        assert linked.any(1).all()
        assert torch.equal(state.flips[k:], torch.zeros_like(state.flips[k:]))
        assert (state.flips[:k, 0] < state.flips[:k, 1]).all()
        assert k == 0 or torch.equal(state.flips[: k - 1], states[k - 1].flips[: k - 1])


def test_the_pair_of_the_largest_score_is_flipped() -> None:
    algorithm, task = built("metattack", train_steps=5)
    before, after = states_of(algorithm, task)[:2]
    linked = before.poisoned.adjacency()
    seen: list[Tensor] = []
    loss = algorithm.loss
    algorithm.loss = lambda linked, *given: (seen.append(given), loss(linked, *given))[1]
    algorithm.step(before, task.context, 0)
    variable = linked.double().requires_grad_()
    slope = torch.autograd.grad(loss(variable, *seen[0]), variable)[0]
    scores = (slope + slope.T) * (1 - 2 * linked.double())
    lonely = linked.sum(1) == 1
    for i, j in torch.triu_indices(*linked.shape, 1).T.tolist():
        if not (linked[i, j] and (lonely[i] or lonely[j])):
            assert scores[i, j] <= scores[tuple(after.flips[0])]


def test_a_last_link_and_a_flipped_pair_are_not_allowed() -> None:
    linked = torch.zeros(4, 4, dtype=torch.bool)
    for i, j in ((0, 1), (1, 2), (0, 2), (2, 3)):
        linked[i, j] = linked[j, i] = True
    flipped = torch.zeros_like(linked)
    flipped[0, 1] = flipped[1, 0] = True
    assert Attack.allowed(linked, flipped).nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]


def test_pairs_are_drawn_evenly_and_of_those_allowed_alone() -> None:
    allowed = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]).bool()
    places = torch.vmap(lambda key: drawn(allowed, key, 0))(torch.arange(6000))
    counts = torch.bincount(places, minlength=16)
    assert counts.nonzero().flatten().tolist() == allowed.flatten().nonzero().flatten().tolist()
    assert float((counts[counts > 0] / 6000 - 1 / 3).abs().max()) < 4 * math.sqrt(2 / 9 / 6000)


def test_dice_disconnects_within_classes_and_connects_between_them() -> None:
    algorithm, task = built("graph_dice", budget=0.3, train_steps=16)
    state = states_of(algorithm, task)[-1]
    removed = task.context.shared.adjacency()[state.flips[:, 0], state.flips[:, 1]]
    same = state.labels[state.flips[:, 0]] == state.labels[state.flips[:, 1]]
    assert torch.equal(removed, same)
    assert 4 <= int(removed.sum()) <= 22


def test_an_attacker_knows_given_labels_and_guesses_the_others_well() -> None:
    _, task = built("graph_dice")
    labels = self_trained(Surrogate(16, 50, 0.1, 0.9), task.context, task.context.key)
    x, y = task.context.support
    assert torch.equal(labels[x], y)
    assert float((labels[task.query.x] == task.query.y).double().mean()) > 0.6


def test_metattack_raises_the_loss_more_than_random_flips_do() -> None:
    losses = {}
    for algo in ("metattack", "random_flips"):
        algorithm, task = built(algo, budget=0.15)
        linked = states_of(algorithm, task)[-1].poisoned.adjacency().double()
        judge, _ = built("metattack", train_steps=30)
        given, _ = of_attack(judge, task)
        losses["clean"] = float(judge.loss(real(task), *given))
        losses[algo] = float(judge.loss(linked, *given))
    assert losses["metattack"] > losses["clean"] + 3 * abs(losses["random_flips"] - losses["clean"])


class Living(TorchDispatchMode):
    """Counts the tensors of at least ``size`` numbers that are there at a time."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.alive, self.most = size, weakref.WeakSet[Any](), 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.numel() >= self.size:
                self.alive.add(leaf.untyped_storage())
        self.most = max(self.most, len(self.alive))
        return made


@pytest.mark.parametrize("map", ["vmap", "loop"])
def test_no_more_matrices_of_nodes_by_nodes_are_held_for_a_longer_training(map: str) -> None:
    most = []
    for steps in (5, 30):
        algorithm, tasks = in_float64(nodes("metattack", "algo.budget=0.02"), tasks=1)
        algorithm.surrogate = algorithm.surrogate._replace(steps=steps)
        with Living(len(tasks.context.shared.features) ** 2) as living:
            engine(map, record=False).evaluate(algorithm, tasks, LAST)
        most.append(living.most)
    assert most[0] == most[1] > 3


def test_a_run_goes_straight_to_its_test_and_without_validation_if_that_is_wanted(tmp_path: Path) -> None:
    values = nodes("random_flips", "trainer.val_episodes=0", "trainer.test_episodes=2", "algo.budget=0.05")
    summary = train(values, tmp_path)
    assert (summary["val"], summary["iterations"]) == ({}, 0)
    assert (summary["metric"], summary["higher_is_better"]) == ("error", True)
    assert [point["step"] for point in summary["test"]["curve"]] == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"trainer.val_episodes=0 leaves nothing to measure: add trainer.val_episodes=N"):
        evaluate(values, tmp_path, "best", tmp_path / "eval", "val")
    with pytest.raises(UserError, match=r"tells nodes of its own graph alone, and data=graph has no examples to predict: test it"):
        metarun.load(tmp_path)


def test_what_learns_is_validated(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer.val_episodes=0 is for methods that have nothing to learn"):
        train(classification("protonet", "trainer.val_episodes=0"), tmp_path)


def test_a_victim_is_what_tells_nodes() -> None:
    with pytest.raises(UserError, match=r"algo.victim=RandomFlips is not possible: take a method that tells nodes, as gcn"):
        Run(nodes("metattack", "algo@algo.victim=random_flips"))
    with pytest.raises(UserError, match=r"algo.victim=ProtoNet is not possible"):
        Run(nodes("metattack", "algo@algo.victim=protonet"))
