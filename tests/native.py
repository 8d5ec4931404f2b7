"""Learners of ours rebuilt from torch's own layers, for comparisons with implementations that are not ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from helpers import in_float64, small
from torch import Tensor, nn
from torch.func import functional_call

from metarun.algorithm import Algorithm
from metarun.task import Task

LR, WIDTH = 0.3, 24
PLAIN = {"conv4": ["net.down=pool", "net.flatten=true"], "mlp": ["net.activation=relu"]}


def ours(algo: str, net: str, steps: int, first_order: bool) -> tuple[Algorithm, Task]:
    """A method of ours on a net that ``Native`` can rebuild, in float64, and tasks."""
    values = small(f"algo={algo}", f"net={net}", "net.norm=batch", *PLAIN[net])
    values["algo"] |= {"inner_lr": LR, "inner_steps": steps, "first_order": first_order}
    return in_float64(values)


def conv4() -> tuple[nn.Sequential, list[str]]:
    """Conv-4 and head in torch's own layers, and our names of its parameters."""
    blocks: list[nn.Module] = []
    for channels in (2, WIDTH, WIDTH, WIDTH):
        blocks += [nn.Conv2d(channels, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH, track_running_stats=False)]
        blocks += [nn.ReLU(), nn.MaxPool2d(2)]
    names = [f"net.blocks.{i}.{name}" for i in range(4) for name in ("conv.weight", "norm.weight", "norm.bias")]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(WIDTH, 3)), names


def mlp() -> tuple[nn.Sequential, list[str]]:
    """The perceptron and head in torch's own layers, and our names of its parameters."""
    layers: list[nn.Module] = []
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

    def in_our_order(self, by_parameter: Iterable[Tensor]) -> list[Tensor]:
        """What belongs to the native parameters, in the order of our learner's."""
        by_name = dict(zip(self.names, by_parameter, strict=True))
        return [by_name[name] for name in self.learner.learner()]

    def plain_loops(self, tasks: Task, steps: int, first_order: bool) -> Tensor:
        """Mean query loss of MAML: loops over tasks and steps around torch.autograd.grad."""
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
        return torch.stack(losses).mean()


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def clone_and_adapt(wrapper: Any, tasks: Task, steps: int, body: Callable[[Tensor], Tensor] = nn.Identity()) -> Tensor:
    """Mean query loss after learn2learn's ``clone`` and ``adapt`` of ``wrapper``, which sees what ``body`` makes of the images."""
    losses = []
    for i in range(len(tasks.query.y)):
        learner = wrapper.clone()
        for _ in range(steps):
            learner.adapt(F.cross_entropy(learner(body(tasks.context.support.x[i])), tasks.context.support.y[i]))
        losses.append(F.cross_entropy(learner(body(tasks.query.x[i])), tasks.query.y[i]))
    return torch.stack(losses).mean()
