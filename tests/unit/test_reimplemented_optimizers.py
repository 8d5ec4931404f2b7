"""The MLP optimizer and the LSTM optimizer against their equations written out a second time, over an inner loop that is cut in three:
losses and meta-gradients of meta-updates between which the meta-parameters move, and answers after training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from helpers import Double, engine, quadratics, regression
from reimplemented import Weights, close, jittered, parameters
from torch import Tensor

from metarun import inner
from metarun.adaptation import adapt
from metarun.algos.optimizers.lstm_optimizer import LSTMOptimizer
from metarun.algos.optimizers.mlp_optimizer import MLPOptimizer
from metarun.data.slots import slots
from metarun.run import Run
from metarun.task import Context, Task, select

F64 = torch.float64
PLACES, STEPS, CUTS = 4, 2, 3  # of a meta-batch; of a meta-update; meta-updates of a task
LOOP = ["algo.test_steps=5", f"algo.inner_steps={STEPS}", f"algo.horizon={STEPS * CUTS}"]
NET = ["net.sizes=[4,3]", "net.activation=tanh", "net.norm=none", "query=3"]


class Training(NamedTuple):
    """Of one net, by the name of a weight."""

    theta: Weights
    past: dict[str, Any]  # what the rule keeps
    k: int = 0  # steps so far


Rule = Callable[[Weights, Training, Weights, int], Training]  # meta-parameters, where training is, gradients, steps of the whole training


def answer(theta: Weights, x: Tensor) -> Tensor:
    """Of a multilayer perceptron with hyperbolic tangents, or of a linear map."""
    x = x.flatten(1)
    for i, layer in enumerate(dict.fromkeys(name.rpartition(".")[0] for name in theta)):
        x = (x.tanh() if i else x) @ theta[layer + ".weight"].T + theta.get(layer + ".bias", 0)
    return x


def loss(theta: Weights, x: Tensor, y: Tensor) -> Tensor:
    """The mean squared error; of a quadratic function, which is linear in x, the sum."""
    errors = (answer(theta, x) - y) ** 2
    return errors.sum() if len(theta) == 1 else errors.mean()


def stepped(w: Weights, rule: Rule, training: Training, context: Context, batch: int, whole: int) -> Training:
    """After a step by the gradient of the minibatch, the examples having been shuffled, end on end, by the task's key."""
    x, y = context.support
    if batch:
        shuffles = torch.cat([inner.uniform(context.key, (len(y),), turn).argsort() for turn in range(8)])
        chosen = shuffles[training.k * batch : (training.k + 1) * batch]
        x, y = x[chosen], y[chosen]
    theta = {name: weight.detach().requires_grad_() for name, weight in training.theta.items()}
    slopes = torch.autograd.grad(loss(theta, x, y), [*theta.values()])
    return rule(w, training, dict(zip(theta, slopes)), whole)


def perceptron_rule(algorithm: MLPOptimizer) -> Rule:
    """The docstring's equations, running means being sums over all gradients so far, which are all that is kept."""

    def rms(a: Tensor) -> Tensor:
        return torch.sqrt((a**2).mean() + 1e-16)

    def moved(w: Weights, theta: Tensor, slopes: list[Tensor], k: int, whole: int) -> Tensor:
        ages, g = torch.arange(len(slopes) - 1, -1, -1, dtype=F64), torch.stack([slope.flatten() for slope in slopes])
        means = [(decay**ages @ g) / (decay**ages).sum() for decay in (0.9, 0.99, 0.999)]  # without their bias towards 0
        v = (0.999**ages @ g**2) / (0.999**ages).sum() + 1e-16
        common, flat, over = v.mean().sqrt(), theta.flatten(), min(k, whole - 1) / whole
        seen = [a / size for size in (v.sqrt(), common) for a in (g[-1], *means)]
        seen += [v.sqrt() / common, flat / rms(flat), torch.full_like(flat, over), torch.full_like(flat, 0.9**k)]
        numbers = torch.stack(seen)  # one in a row, coordinates in columns
        for layer in (0, 2, 4):
            numbers = w[f"mlp.{layer}.weight"] @ (numbers.clamp(min=0) if layer else numbers) + w[f"mlp.{layer}.bias"][:, None]
        direction, size, forgotten = numbers
        if algorithm.nominal:
            direction = direction + 0.1 * (0.9**ages @ g) / torch.sqrt(v.sqrt() * common)
        u = direction * size.exp()
        if algorithm.normalise:
            u = u / rms(u)
        rate = algorithm.scale * (1 - over if algorithm.schedule == "linear" else 1)
        return theta - rate * (u + algorithm.decay * forgotten.exp() * flat).view_as(theta)

    def rule(w: Weights, training: Training, slopes: Weights, whole: int) -> Training:
        past = {name: [*training.past.get(name, []), slope] for name, slope in slopes.items()}
        theta = {name: moved(w, weight, past[name], training.k, whole) for name, weight in training.theta.items()}
        return Training(theta, past, training.k + 1)

    return rule


def lstm_rule(algorithm: LSTMOptimizer) -> Rule:
    """Equations of section 2 and of Ravi & Larochelle's section 3.1, tensor by tensor, by torch's own cell."""

    def preprocessed(g: Tensor) -> Tensor:
        """The footnote of section 3, gradient by gradient."""
        p = algorithm.preprocess
        seen = []
        for a in g.tolist():
            pair = [math.log(abs(a)) / p, math.copysign(1, a)] if p and abs(a) >= math.exp(-p) else [-1, math.exp(p) * a]
            seen.append(pair if p else [a])
        return torch.tensor(seen, dtype=F64)

    def cell(w: Weights, name: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """torch has the candidate before the output gate."""
        order = torch.arange(4 * h.shape[1]).view(4, -1)[[0, 1, 3, 2]].flatten()
        weight, bias = w[name + ".weight"][order], w[name + ".bias"][order]
        return torch.lstm_cell(x, (h, c), weight[:, : x.shape[1]], weight[:, x.shape[1] :], bias, torch.zeros_like(bias))

    def moved(w: Weights, theta: Tensor, g: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        x = preprocessed(g)
        kept: list[Tensor] = []
        for i in range(len(algorithm.cells)):
            kept += cell(w, f"cells.{i}.gates", x, *(past[2 * i : 2 * i + 2] or [torch.zeros(len(g), algorithm.hidden, dtype=F64)] * 2))
            x = kept[-2]
        if algorithm.output == "update":
            return theta + algorithm.scale * (w["update.weight"] @ x.T + w["update.bias"])[0], kept
        rate, decay = past[-2:] or [torch.zeros_like(g), torch.ones_like(g)]
        rate = torch.sigmoid(torch.column_stack([x, theta, rate]) @ w["gates.rate.weight"][0] + w["gates.rate.bias"])
        decay = torch.sigmoid(torch.column_stack([x, theta, decay]) @ w["gates.decay.weight"][0] + w["gates.decay.bias"])
        return decay * theta - rate * g, [*kept, rate, decay]

    def rule(w: Weights, training: Training, slopes: Weights, whole: int) -> Training:
        theta, past = {}, {}
        for name, weight in training.theta.items():
            found, past[name] = moved(w, weight.flatten(), slopes[name].flatten(), training.past.get(name, []))
            theta[name] = found.view_as(weight)
        return Training(theta, past, training.k + 1)

    return rule


def compare(algorithm: MLPOptimizer | LSTMOptimizer, episodes: Double, rule: Rule) -> None:
    """Five meta-updates, in which every place of the meta-batch begins a task and goes on with it; and the answers of a training
    that goes on for longer than was meant."""
    held: dict[int, Training] = {}
    carried: Any = ()
    algorithm.train()
    for i in range(CUTS + 2):
        turn = slots(i, PLACES, CUTS, STEPS)
        algorithm.zero_grad(set_to_none=True)
        metrics, carried = engine().train_on(algorithm, episodes, turn, carried, 0.0)
        w, sums, last = parameters(algorithm), [], []
        for place in range(PLACES):
            task: Task = select(episodes.batch(turn.indices), place)
            training = Training(algorithm.weights(task.context.key), {}) if turn.fresh[place] else held[place]
            for _ in range(STEPS):
                training = stepped(w, rule, training, task.context, algorithm.batch, STEPS * CUTS)
                sums.append(loss(training.theta, *task.query))
            last.append(float(sums[-1].detach()))
            held[place] = constant(training)
        learned = {name: p for name, p in algorithm.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(torch.stack(sums).sum() / PLACES, [w[name] for name in learned])
        assert metrics["loss"] == pytest.approx(sum(last) / PLACES, rel=1e-9)
        for p, gradient in zip(learned.values(), gradients):
            close(p.grad, gradient)
            p.data -= 0.1 * gradient / gradient.norm()
    algorithm.eval()
    context, query, *_ = select(episodes.batch([50]), 0)
    training, steps = Training(algorithm.weights(context.key), {}), algorithm.test_steps + 2
    for _ in range(steps):
        training = stepped(parameters(algorithm), rule, training, context, algorithm.batch, algorithm.test_steps)
    *_, state = adapt(algorithm, context, steps)
    close(algorithm.predict(state, query.x).detach(), answer(training.theta, query.x).detach())


def constant(training: Training) -> Training:
    past = {name: [kept.detach() for kept in all_kept] for name, all_kept in training.past.items()}
    return Training({name: weight.detach() for name, weight in training.theta.items()}, past, training.k)


def learner(values: dict[str, Any]) -> tuple[Any, Double]:
    run = Run(values)
    algorithm = run.algorithm.double()
    jittered(algorithm)
    return algorithm, Double(run.episodes("train"))


@pytest.mark.parametrize(
    "words",
    [[], ["algo.batch=3", "algo.normalise=true"], ["algo.nominal=false", "algo.schedule=constant"]],
)
def test_a_perceptron_reads_running_means(words: list[str]) -> None:
    algorithm, episodes = learner(regression("mlp_optimizer", *NET, *LOOP, *words))
    decays = torch.tensor([0.9, 0.99, 0.999], dtype=F64)
    torch.testing.assert_close(algorithm.decays, decays, rtol=1e-7, atol=0)
    algorithm.decays.copy_(decays)  # which are made in float32
    compare(algorithm, episodes, perceptron_rule(algorithm))


@pytest.mark.parametrize("words", [[], ["algo.output=gates"]])
def test_cells_read_gradients_of_quadratic_functions(words: list[str]) -> None:
    algorithm, episodes = learner(quadratics(*LOOP, *words))
    compare(algorithm, episodes, lstm_rule(algorithm))


@pytest.mark.parametrize("words", [["algo.layers=3", "algo.batch=3"], ["algo.output=gates"], ["algo.output=gates", "algo.layers=1"]])
def test_cells_read_logarithms_and_signs(words: list[str]) -> None:
    values = regression("lstm_optimizer", *NET, *LOOP, "algo.hidden=4", "algo.scale=0.3", "algo.preprocess=2", *words)
    algorithm, episodes = learner(values)
    compare(algorithm, episodes, lstm_rule(algorithm))
