"""The MLP optimizer: against numpy, every coordinate alike, whatever the size of the loss, and any net."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import double, random, regression, same
from torch import Tensor, nn

from metarun.adaptation import adapt
from metarun.algos.optimizers.mlp_optimizer import SEEN
from metarun.run import Run
from metarun.task import Task, select

WORDS = ["net.sizes=[5]", "net.activation=tanh", "algo.inner_steps=3", "algo.horizon=6", "algo.test_steps=6"]


def built(*words: str) -> tuple[Any, Task]:
    """The method on sine waves, and a task, in float64."""
    run = Run(regression("mlp_optimizer", *WORDS, *words))
    return run.algorithm.double(), double(select(run.episodes("train").batch([1]), 0))


def by_hand(algorithm: Any, weights: list[np.ndarray], slopes: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Weights after as many steps as there are ``slopes``, in numpy."""
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in algorithm.mlp if isinstance(m, nn.Linear)]
    means = [[np.zeros_like(w) for _ in range(3)] for w in weights]
    squares = [np.zeros_like(w) for w in weights]
    for t, grads in enumerate(slopes, 1):
        for i, g in enumerate(grads):
            means[i] = [b * m + (1 - b) * g for b, m in zip(algorithm.decays.tolist(), means[i])]
            squares[i] = 0.999 * squares[i] + 0.001 * g**2
            unbiased = [m / (1 - b**t) for b, m in zip(algorithm.decays.tolist(), means[i])]
            root = 1 / np.sqrt(squares[i] / (1 - 0.999**t) + 1e-16)
            sized = [v / np.sqrt((v**2).mean() + 1e-16) for v in (weights[i], g, *unbiased, root)]
            x = np.stack([(v * root).ravel() for v in (g, *unbiased)] + [v.ravel() for v in sized], 1)
            for n, (matrix, bias) in enumerate(layers):
                x = x @ matrix.T + bias
                x = np.maximum(x, 0) if n < len(layers) - 1 else x
            adam = (unbiased[0] * root).ravel() if algorithm.nominal else 0.0
            update = ((x[:, 0] + adam) * np.exp(x[:, 1])).reshape(g.shape)
            if algorithm.normalise:
                update = update / np.sqrt((update**2).mean() + 1e-16)
            weights[i] = weights[i] - algorithm.scale * update
    return weights


@pytest.mark.parametrize("nominal", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_it_is_what_numpy_makes_of_the_equations(normalise: bool, nominal: bool) -> None:
    algorithm, _ = built(f"algo.normalise={str(normalise).lower()}", f"algo.nominal={str(nominal).lower()}")
    shapes = {"a": (3, 4), "b": (4,)}
    fast = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    slopes = [{name: random(*shape, seed=10 * t + i) for i, (name, shape) in enumerate(shapes.items())} for t in range(5)]
    expected = by_hand(algorithm, [w.numpy() for w in fast.values()], [[g.numpy() for g in grads.values()] for grads in slopes])
    memory = algorithm.remember(fast)
    for k, grads in enumerate(slopes):
        before = fast
        fast, memory = algorithm.advance(fast, grads, memory, k)
    for w, theirs in zip(fast.values(), expected):
        np.testing.assert_allclose(w.detach().numpy(), theirs, rtol=1e-10, atol=1e-12)
    if normalise:  # the steps of every tensor have one length
        for name, w in fast.items():
            assert float((w - before[name]).detach().square().mean().sqrt()) == pytest.approx(algorithm.scale)


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
    first, *_, last = silenced("algo.nominal=false")
    assert same(last.fast, first.fast)


def test_or_it_is_adam() -> None:
    run = Run(regression("supervised", "net.sizes=[5]", "net.activation=tanh", "algo.rule=adam", "algo.rate=0.1", "algo.test_steps=6"))
    task = double(select(run.episodes("train").batch([1]), 0))
    for mine, theirs in zip(silenced("algo.scale=0.1"), adapt(run.algorithm.double(), task.context, 6), strict=True):
        for name, w in theirs.fast.items():
            torch.testing.assert_close(mine.fast[name], w, rtol=1e-5, atol=1e-5)


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
    assert small.mlp[0].in_features == SEEN == 10
