"""Imaginary data: a generator adds examples to the support, and is trained by how well a few-shot learner does with them.
Wang, Girshick, Hebert, Hariharan 2018, arXiv:1801.05401."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Algorithm, Footprint, Method, Metrics, State
from metarun.algos.generated._around import Around
from metarun.nets.base import Net
from metarun.nets.encoded import Encoded
from metarun.problem import Problem
from metarun.task import Batch, Context, Task

STREAM = 102  # of the episode's key: no member and no augmentation draws from it


class Imagined(NamedTuple):
    """The member's state, and the support as it sees it."""

    member: State
    support: Batch  # features [n * (1 + generated), features], those of the images first
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class Imaginary(Around):
    """Low-shot learning from imaginary data.

        S* = S ∪ {(G(x, z), y) : (x, y) in S},   z ~ N(0, I)                 (x: features of a net)
        min_{G, member}  mean over tasks of L_query(member(S*))              (G is trained for nothing but that)

    The member is any method that sees images through its net alone: of prototypes, of a solved head, of a head that takes gradient steps.
    With ``generated=0`` there is no generator, and the run is the member's, bit for bit. ``frozen``, or a net that comes from another run
    and goes on learning: ``init_from=RUN``.

    Deviations: (1) Every example of the support is imagined from, with the same draws of z, in place of examples drawn at random: classes
    stay balanced, and neither the order of the support nor that of labels matters. (2) G(x, z) = x + MLP(x, z), whose last layer begins at
    zero, in place of layers that begin as identity matrices, which features below zero would not pass: at first nothing is imagined but
    what was seen. (3) The authors freeze a ResNet that was trained on all base classes; by default the net learns here.

    Args:
        net, problem: the backbone and the data's shape.
        member: makes the few-shot learner.
        generated: imagined examples for every one of the support.
        noise: length of z.
        hidden: width of the two hidden layers of G.
        frozen: the net stays as it is.
    """

    encodes = True

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        member: Method,
        generated: Annotated[int, Ge(0)],
        noise: Annotated[int, Ge(1)],
        hidden: Annotated[int, Ge(1)],
        frozen: bool,
    ) -> None:
        learner = member(Encoded(net), replace(problem, input_shape=(net.features,)))
        super().__init__(net, problem, learner)
        if not learner.encodes:
            raise self.refusal(learner, "one that sees images through its net alone, as protonet, relation, r2d2 and anil do")
        if frozen:
            net.requires_grad_(False)
        self.generated, self.noise = generated, noise
        self.generator = Generator(net.features, noise, hidden) if generated else None

    def imagine(self, seen: Batch, key: Tensor) -> Batch:
        """Features and labels of the support, [n], and of what is imagined of them, [n * (1 + generated)] together."""
        if self.generator is None:
            return seen
        z = inner.normal(key, (self.generated, self.noise), STREAM)
        return Batch(torch.cat([seen.x, self.generator(seen.x, z)]), seen.y.repeat(1 + self.generated))

    def begin(self, context: Context) -> Imagined:
        x, y = context.support
        support = self.imagine(Batch(self.net(x, x), y), context.key)
        return Imagined(self.member.begin(context._replace(support=support)), support, x)

    def step(self, state: Imagined, context: Context, k: int) -> Imagined:
        return state._replace(member=self.member.step(state.member, context._replace(support=state.support), k))

    def answers(self, state: Imagined, x: Tensor) -> Callable[[Imagined], Any]:
        answer = self.member.answers(state.member, self.net(x, state.support_x))
        return lambda state: answer(state.member)

    def predict(self, state: Imagined, x: Tensor) -> Any:
        return self.member.predict(state.member, self.net(x, state.support_x))

    def objective(self, states: Sequence[Imagined], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        last = states[-1]
        query = Batch(self.net(task.query.x, last.support_x), task.query.y)
        seen = Task(task.context._replace(support=last.support), query)
        return self.member.objective([state.member for state in states], seen, progress)

    def footprint(self, task: Task, train: bool) -> Footprint:
        own = Algorithm.footprint(self, task, train)
        return self.member.footprint(task, train)._replace(examples=own.examples, repeated=0)  # the net sees the support once

    def follow_net(self) -> None:
        """Nothing: the member's net is the identity."""

    def calibrate(self, tasks: Iterable[Task]) -> None:
        Algorithm.calibrate(self, tasks)


class Generator(nn.Module):
    """G(x, z) = x + MLP(x, z), of two hidden layers."""

    def __init__(self, features: int, noise: int, hidden: int) -> None:
        super().__init__()
        self.of_x, self.of_z = nn.Linear(features, hidden), nn.Linear(noise, hidden, bias=False)
        self.second, self.last = nn.Linear(hidden, hidden), nn.Linear(hidden, features)
        for weight in self.last.parameters():
            nn.init.zeros_(weight)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Of features x [n, features], and z [m, noise] the m-th part of the answer: [m * n, features]."""
        hidden = F.relu(self.of_x(x) + self.of_z(z.to(x.dtype))[:, None])
        return (x + self.last(F.relu(self.second(hidden)))).flatten(0, 1)
