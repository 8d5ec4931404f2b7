"""The MLP optimizer: against numpy, every coordinate alike, whatever the size of the loss, and any net."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import double, random, regression, same
from torch import Tensor, nn

from metarun import inner
from metarun.adaptation import adapt
from metarun.algos.optimizers.mlp_optimizer import CLOCK, SEEN
from metarun.run import Run
from metarun.task import Task, select

WORDS = ["net.sizes=[5]", "net.activation=tanh", "algo.inner_steps=3", "algo.horizon=6", "algo.test_steps=6"]


def built(*words: str) -> tuple[Any, Task]:
    """The method on sine waves, and a task, in float64."""
    run = Run(regression("mlp_optimizer", *WORDS, *words))
    return run.algorithm.double(), double(select(run.episodes("train").batch([1]), 0))


def by_hand(algorithm: Any, weights: list[np.ndarray], slopes: list[list[np.ndarray]], steps: int) -> list[np.ndarray]:
    """Weights after as many steps as there are ``slopes``, of a training of so many ``steps``, in numpy."""
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in algorithm.mlp if isinstance(m, nn.Linear)]
    means = [[np.zeros_like(w) for _ in range(3)] for w in weights]
    squares = [np.zeros_like(w) for w in weights]
    for t, grads in enumerate(slopes, 1):
        done = min((t - 1) / steps, 1 - 1 / steps)
        rate = algorithm.scale * (1 - done if algorithm.schedule == "linear" else 1.0)
        for i, g in enumerate(grads):
            means[i] = [b * m + (1 - b) * g for b, m in zip(algorithm.decays.tolist(), means[i])]
            squares[i] = 0.999 * squares[i] + 0.001 * g**2
            seen = [g, *(m / (1 - b**t) for b, m in zip(algorithm.decays.tolist(), means[i]))]
            square = squares[i] / (1 - 0.999**t) + 1e-16
            every = np.sqrt(square.mean())
            theta = weights[i] / np.sqrt((weights[i] ** 2).mean() + 1e-16)
            numbers = [v / np.sqrt(square) for v in seen] + [v / every for v in seen] + [np.sqrt(square) / every, theta]
            x = np.stack([*(v.ravel() for v in numbers), np.full(g.size, done), np.full(g.size, 0.9 ** (t - 1))], 1)
            for n, (matrix, bias) in enumerate(layers):
                x = x @ matrix.T + bias
                x = np.maximum(x, 0) if n < len(layers) - 1 else x
            nominal = (means[i][0] / np.sqrt(np.sqrt(square) * every)).ravel() if algorithm.nominal else 0.0
            update = ((x[:, 0] + nominal) * np.exp(x[:, 1])).reshape(g.shape)
            if algorithm.normalise:
                update = update / np.sqrt((update**2).mean() + 1e-16)
            weights[i] = weights[i] - rate * (update + algorithm.decay * np.exp(x[:, 2]).reshape(g.shape) * weights[i])
    return weights


@pytest.mark.parametrize("words", [[], ["algo.normalise=true", "algo.decay=0"], ["algo.nominal=false"], ["algo.schedule=constant"]])
def test_it_is_what_numpy_makes_of_the_equations(words: list[str]) -> None:
    algorithm, _ = built(*words)
    algorithm.eval()
    shapes = {"a": (3, 4), "b": (4,)}
    fast = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    slopes = [{name: random(*shape, seed=10 * t + i) for i, (name, shape) in enumerate(shapes.items())} for t in range(5)]
    steps = algorithm.test_steps
    assert steps < 5  # so that some are beyond the end
    expected = by_hand(algorithm, [w.numpy() for w in fast.values()], [[g.numpy() for g in grads.values()] for grads in slopes], steps)
    memory = algorithm.remember(fast)
    for k, grads in enumerate(slopes):
        before = fast
        fast, memory = algorithm.advance(fast, grads, memory, k)
    for w, theirs in zip(fast.values(), expected):
        np.testing.assert_allclose(w.detach().numpy(), theirs, rtol=1e-10, atol=1e-12)
    if algorithm.normalise:  # the steps of every tensor have one length
        for name, w in fast.items():
            assert float((w - before[name]).detach().square().mean().sqrt()) == pytest.approx(algorithm.scale / steps)


def test_the_time_is_a_part_of_meta_trainings_horizon_or_of_the_tests_steps() -> None:
    algorithm, _ = built("algo.horizon=12")
    assert algorithm.test_steps != 12
    for mode, steps in ((True, 12), (False, algorithm.test_steps)):
        (over, warm), left = algorithm.train(mode).clock(torch.tensor(2))
        assert float(over) == pytest.approx(2 / steps)
        assert float(left) == pytest.approx(1 - 2 / steps)
        assert float(warm) == pytest.approx(0.9**2)


def moved(algorithm: Any, fast: dict[str, Tensor], factor: float = 1.0) -> dict[str, Tensor]:
    """Weights after three steps down ½‖w − 1‖² times ``factor``."""
    memory = algorithm.remember(fast)
    for k in range(3):
        fast, memory = algorithm.advance(fast, {name: factor * (w - 1) for name, w in fast.items()}, memory, k)
    return fast


def test_the_size_of_the_loss_does_not_matter() -> None:
    algorithm, _ = built()
    fast = {"w": random(4, 3)}
    torch.testing.assert_close(moved(algorithm, fast, 1000.0), moved(algorithm, fast), rtol=1e-9, atol=1e-12)


def test_permuted_coordinates_have_permuted_updates() -> None:
    algorithm, _ = built()
    fast, order = {"w": random(7)}, torch.tensor([3, 0, 6, 1, 2, 5, 4])
    plain, permuted = moved(algorithm, fast), moved(algorithm, {"w": fast["w"][order]})
    torch.testing.assert_close(permuted["w"], plain["w"][order], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(plain["w"], fast["w"])


def silenced(*words: str) -> list[Any]:
    """States of training with a last layer of zeros."""
    algorithm, task = built(*words)
    for p in algorithm.mlp[-1].parameters():
        nn.init.zeros_(p)
    return list(adapt(algorithm, task.context, 6))


def test_a_last_layer_of_zeros_leaves_the_weights_where_they_are() -> None:
    first, *_, last = silenced("algo.nominal=false", "algo.decay=0")
    assert same(last.fast, first.fast)


def test_or_it_decays_them_as_adamw_does() -> None:
    first, second, *_ = silenced("algo.nominal=false", "algo.scale=0.5", "algo.decay=0.2", "algo.schedule=constant")
    for name, w in first.fast.items():
        torch.testing.assert_close(second.fast[name], 0.9 * w, rtol=1e-12, atol=1e-14)


def test_or_it_is_between_adam_and_sgd() -> None:
    """Where all coordinates of a tensor have slopes of one size, the nominal term is Adam's step with its bias, 1 − .9^t of it."""
    algorithm, _ = built("algo.decay=0", "algo.schedule=constant", "algo.scale=0.1")
    for p in algorithm.mlp[-1].parameters():
        nn.init.zeros_(p)
    mine, theirs, grads = {"w": random(6)}, {"w": random(6)}, {"w": random(6, seed=3).sign()}
    memory, moments = algorithm.remember(mine), inner.no_moments(theirs)
    for k in range(4):
        theirs_before, mine_before = theirs, mine
        mine, memory = algorithm.advance(mine, grads, memory, k)
        theirs, moments = inner.adam(theirs, grads, moments, k, 0.1, beta1=0.9)
        expected = (theirs["w"] - theirs_before["w"]) * (1 - 0.9 ** (k + 1))
        torch.testing.assert_close(mine["w"] - mine_before["w"], expected, rtol=1e-6, atol=1e-8)


def test_numbers_stay_numbers_without_a_gradient() -> None:
    algorithm, _ = built()
    nothing = {"w": torch.zeros(3, dtype=torch.float64)}
    fast, _ = algorithm.advance(nothing, nothing, algorithm.remember(nothing), 0)
    assert fast["w"].isfinite().all()
    loss = fast["w"].square().sum()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(algorithm.mlp.parameters())))


def test_only_the_perceptron_is_learned_which_no_net_changes() -> None:
    small, _ = built()
    large, _ = built("net.sizes=[9,9]")
    learned = {name: p.shape for name, p in small.named_parameters() if p.requires_grad}
    assert learned == {name: p.shape for name, p in large.named_parameters() if p.requires_grad}
    assert {name.partition(".")[0] for name in learned} == {"mlp"}
    assert small.mlp[0].in_features == SEEN + CLOCK == 12


def test_a_single_number_moves_as_a_vector_of_one() -> None:
    algorithm, _ = built()
    number, slope = torch.tensor(0.3, dtype=torch.float64), torch.tensor(-0.7, dtype=torch.float64)
    moved = []
    for shape in ((), (1,)):
        fast, grads = {"w": number.view(shape)}, {"w": slope.view(shape)}
        moved.append(algorithm.advance(fast, grads, algorithm.remember(fast), 0)[0]["w"])
    assert moved[0].shape == ()
    torch.testing.assert_close(moved[0], moved[1][0])
    assert moved[0] != number
