"""MAML's meta-gradient against implementations that are not ours, in float64: native layers in plain autograd loops, and learn2learn.
learn2learn is compared where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from helpers import engine, in_float64, meta_gradient, relative_error, small
from torch import Tensor, nn
from torch.func import functional_call

from metarun.algorithm import Algorithm
from metarun.errors import MissingLibrary
from metarun.task import Task

LR, WIDTH = 0.3, 24
PLAIN = {"conv4": ["net.down=pool", "net.flatten=true"], "mlp": ["net.activation=relu"]}


def ours(net: str, steps: int, first_order: bool, algo: str = "maml") -> tuple[Algorithm, Task]:
    values = small(f"algo={algo}", f"net={net}", "net.norm=batch", *PLAIN[net])
    values["algo"] |= {"inner_lr": LR, "inner_steps": steps, "first_order": first_order}
    return in_float64(values)


def conv4() -> tuple[nn.Module, list[str]]:
    """Conv-4 and head in torch's own layers, and our names of its parameters."""
    blocks = []
    for channels in (2, WIDTH, WIDTH, WIDTH):
        blocks += [nn.Conv2d(channels, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH, track_running_stats=False)]
        blocks += [nn.ReLU(), nn.MaxPool2d(2)]
    names = [f"net.blocks.{i}.{name}" for i in range(4) for name in ("conv.weight", "norm.weight", "norm.bias")]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(WIDTH, 3)), names


def mlp() -> tuple[nn.Module, list[str]]:
    """The perceptron and head in torch's own layers, and our names of its parameters."""
    layers = []
    for width in (512, WIDTH):
        layers += [nn.Linear(width, WIDTH), nn.BatchNorm1d(WIDTH, track_running_stats=False), nn.ReLU()]
    names = [f"net.{kind}.{i}.{name}" for i in range(2) for kind in ("linears", "norms") for name in ("weight", "bias")]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(WIDTH, 3)), names


class Native:
    """A native copy of a learner of ours."""

    def __init__(self, net: str, learner: Algorithm) -> None:
        model, names = {"conv4": conv4, "mlp": mlp}[net]()
        self.model, self.learner = model.double(), learner
        self.names = [*names, "head.weight", "head.bias"]
        for parameter, name in zip(self.model.parameters(), self.names, strict=True):
            parameter.data.copy_(learner.get_parameter(name))

    def in_our_order(self, gradients: Iterable[Tensor]) -> Tensor:
        by_name = dict(zip(self.names, gradients, strict=True))
        return torch.cat([by_name[name].flatten() for name, _ in self.learner.named_parameters()])

    def plain_loops(self, tasks: Task, steps: int, first_order: bool) -> Tensor:
        """Loops over tasks and steps around torch.autograd.grad."""
        parameters = dict(self.model.named_parameters())
        losses = []
        for i in range(len(tasks.query.y)):
            (xs, ys), (xq, yq) = ((part.x[i], part.y[i]) for part in (tasks.context.support, tasks.query))
            fast = dict(parameters)
            for _ in range(steps):
                loss = F.cross_entropy(functional_call(self.model, fast, (xs,)), ys)
                gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=not first_order)
                fast = {name: weight - LR * gradient for (name, weight), gradient in zip(fast.items(), gradients)}
            losses.append(F.cross_entropy(functional_call(self.model, fast, (xq,)), yq))
        return self.in_our_order(torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values())))

    def learn2learn(self, library: ModuleType, tasks: Task, steps: int, first_order: bool) -> Tensor:
        """The library's clone and adapt."""
        maml = library.algorithms.MAML(self.model, lr=LR, first_order=first_order)
        losses = []
        for i in range(len(tasks.query.y)):
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(F.cross_entropy(learner(tasks.context.support.x[i]), tasks.context.support.y[i]))
            losses.append(F.cross_entropy(learner(tasks.query.x[i]), tasks.query.y[i]))
        return self.in_our_order(torch.autograd.grad(torch.stack(losses).mean(), list(self.model.parameters())))


CASES = [(net, steps, first_order) for net in ("conv4", "mlp") for steps in (1, 2, 3, 5) for first_order in (False, True)]


@pytest.mark.parametrize(("net", "steps", "first_order"), CASES)
def test_the_meta_gradient_equals_plain_loops_over_native_layers(net: str, steps: int, first_order: bool) -> None:
    learner, tasks = ours(net, steps, first_order)
    expected = Native(net, learner).plain_loops(tasks, steps, first_order)
    assert relative_error(meta_gradient(learner, tasks, engine()), expected) < 1e-9


@pytest.mark.parametrize(("net", "steps", "first_order"), CASES)
def test_the_meta_gradient_equals_learn2learn(learn2learn: ModuleType, net: str, steps: int, first_order: bool) -> None:
    learner, tasks = ours(net, steps, first_order)
    expected = Native(net, learner).learn2learn(learn2learn, tasks, steps, first_order)
    assert relative_error(meta_gradient(learner, tasks, engine()), expected) < 1e-9


@pytest.mark.parametrize(("net", "steps", "first_order"), CASES)
def test_maml_through_the_library_is_maml(learn2learn: ModuleType, net: str, steps: int, first_order: bool) -> None:
    learner, tasks = ours(net, steps, first_order)
    theirs, _ = ours(net, steps, first_order, "maml_learn2learn")
    theirs.load_state_dict(learner.state_dict())
    assert relative_error(meta_gradient(learner, tasks, engine()), meta_gradient(theirs, tasks, engine())) < 1e-9
    expected, actual = (engine().evaluate(algorithm, tasks, curve=True)["loss"] for algorithm in (learner, theirs))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_without_the_library_one_line_tells_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    with pytest.raises(MissingLibrary, match=r"algo=maml_learn2learn needs learn2learn 0\.2\.0.*`make peers` builds it"):
        ours("mlp", 1, False, "maml_learn2learn")
