"""MetaGAN: a generator paints examples of no class, and a few-shot learner that has to tell them from real ones learns sharper classes.
Zhang, Che, Ghahramani, Bengio, Song 2018, "MetaGAN: An Adversarial Approach to Few-Shot Learning", NeurIPS 2018."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.func import functional_call

from metarun import inner
from metarun.algorithm import Algorithm, Footprint, Method, Metrics, State
from metarun.algos.generated._around import Around
from metarun.errors import UserError
from metarun.nets.base import Net
from metarun.nets.conv import Conv
from metarun.problem import Problem
from metarun.runtime.replica import Caller
from metarun.task import Context, Task

STREAM = 107  # of the episode's key: no member and no augmentation draws from it


class MetaGAN(Around):
    """An adversary in few-shot learning.

        s(x) = a log Σ_c exp f_c(x) + b,   P(fake | x) = σ(−s(x))             (f: the member's N logits of the episode)
        learner:    min  L_query − w (mean of log(1 − P(fake | x)) over real x + mean of log P(fake | G(z, T)))
        generator:  min  −mean of log(1 − P(fake | G(z, T))),   z ~ N(0, I),  T: the mean of an encoding of the support

    With a = 1 and b = 0 that is a softmax over N + 1 outputs, the last of which is 0 (Salimans et al. 2016, arXiv:1606.03498, section 5):
    L_query is the loss given that x is not fake, and answers go by the first N. Real are the queries, and unlabelled images if the user
    asks for some. Each player holds the other constant; their sum is the objective. ``weight=0`` leaves the member alone, bit for bit. The
    member's loss is that of its answers to the queries, after its inner loop if it has one (MAML: fakes are in the outer loss).

    Deviations: (1) a and b are learned with the learner, as −‖f(x) − p_c‖² of prototypes lies far below 0. (2) The output N + 1 of MAML's
    head is 0 as well, not a unit of its own, which makes no difference to what it can say. (3) The generator is small and has no norm; the
    authors' is a ResNet.

    Args:
        net, problem: the backbone and the data's shape.
        member: makes the few-shot learner, whose answers are scores that are not normalised.
        fakes: painted images of an episode.
        weight: w.
        slope: a before meta-training.
        noise: length of z.
        hidden: filters of the generator.
        generator_lr: the generator's learning rate.
        every: it takes every so many-th step.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        member: Method,
        fakes: Annotated[int, Ge(1)],
        weight: Annotated[float, Ge(0)],
        slope: Annotated[float, Gt(0)],
        noise: Annotated[int, Ge(1)],
        hidden: Annotated[int, Ge(1)],
        generator_lr: Annotated[float, Gt(0)],
        every: Annotated[int, Ge(1)],
    ) -> None:
        shape = self.image_shape(problem, "paints")
        learner = member(net, problem)
        super().__init__(net, problem, learner)
        if type(learner).objective is not Algorithm.objective:
            raise self.refusal(learner, "one that is trained by the loss of its answers to queries, as protonet, relation and maml are")
        self.fakes, self.weight, self.noise, self.lr, self.every = fakes, weight, noise, generator_lr, every
        if weight:
            self.log_slope, self.offset = nn.Parameter(torch.tensor(slope).log()), nn.Parameter(torch.tensor(0.0))
            self.generator = Painter(shape, noise, hidden)

    def begin(self, context: Context) -> State:
        return self.member.begin(context)

    def objective(self, states: Sequence[State], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        last, (x, y) = states[-1], task.query
        answers = self.member.predict(last, x)
        loss, metrics = self.member.judged(answers, y)
        if not self.weight:
            return loss, metrics
        if not isinstance(answers, Tensor):
            raise UserError(f"algo.member={type(self.member).__name__} is not possible: its answers are no logits, which can tell fakes")
        z = inner.normal(task.context.key, (self.fakes, self.noise), STREAM).to(x.dtype)
        fakes = self.generator(z, task.context.examples().x)
        unlabelled = task.context.unlabelled
        others = self.member.predict(last, unlabelled) if len(unlabelled) else answers[:0]
        real, fake = self.sureness(torch.cat([answers, others])), self.sureness(self.member.predict(last, fakes.detach()))
        learner = loss + self.weight * (F.softplus(-real).mean() + F.softplus(fake).mean())
        fooled = self.constant(lambda whole, state: whole.sureness(whole.member.predict(state, fakes)), inner.constant(last))
        generator = F.softplus(-fooled).mean()
        caught = ((fake < 0).to(loss.dtype).mean() + (real > 0).to(loss.dtype).mean()) / 2
        return learner + generator, metrics | {"learner_loss": learner, "generator_loss": generator, "fakes_told": caught}

    def sureness(self, logits: Tensor) -> Tensor:
        """s [n], the log-odds of being real, of logits [n, way]."""
        return self.log_slope.exp() * inner.upcast(logits).logsumexp(-1) + self.offset

    def constant(self, function: Callable[[MetaGAN, State], Tensor], state: State) -> Tensor:
        """``function(self, state)`` through which no gradient reaches the meta-parameters."""
        fixed = {f"method.{name}": p.detach() for name, p in self.named_parameters()}
        return functional_call(Caller(self), fixed, (function, state), tie_weights=False)  # the net has two names

    def groups(self) -> list[dict[str, Any]]:
        """The learner, and the generator, at rates of their own."""
        if not self.weight:
            return self.member.groups()
        painted = {id(p) for p in self.generator.parameters()}
        learner = [p for p in self.parameters() if id(p) not in painted]
        generator = {"params": list(self.generator.parameters()), "descends": "generator_loss", "lr": self.lr, "every": self.every}
        return [{"params": learner, "descends": "learner_loss"}, generator]

    def footprint(self, task: Task, train: bool) -> Footprint:
        held = self.member.footprint(task, train)
        return held._replace(examples=held.examples + 3 * self.fakes) if train and self.weight else held  # painted once, seen twice


class Painter(nn.Module):
    """G(z, T): images in 0..1 that resemble those of a task; of two convolutions that shrink, a linear layer, and two that grow."""

    def __init__(self, shape: tuple[int, int, int], noise: int, hidden: int) -> None:
        super().__init__()
        channels, self.height, self.width = shape
        self.look = nn.Sequential(Conv(channels, hidden, 3, stride=2), nn.ReLU(), Conv(hidden, hidden, 3, stride=2), nn.ReLU())
        self.start = hidden, -(-self.height // 4), -(-self.width // 4)
        self.first = nn.Linear(noise + hidden, hidden * self.start[1] * self.start[2])
        self.second, self.last = Conv(hidden, hidden, 3), Conv(hidden, channels, 3)

    def forward(self, z: Tensor, support_x: Tensor) -> Tensor:
        """Images [m, *shape] from z [m, noise] and the support [n, *shape]."""
        task = self.look(support_x).mean((0, 2, 3))
        maps = F.relu(self.first(torch.cat([z, task.expand(len(z), -1)], 1))).unflatten(1, self.start)
        images = torch.sigmoid(self.last(doubled(F.relu(self.second(doubled(maps))))))
        return images[..., : self.height, : self.width]


def doubled(x: Tensor) -> Tensor:
    """Maps [n, channels, height, width] at twice the size, every value four times."""
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)
