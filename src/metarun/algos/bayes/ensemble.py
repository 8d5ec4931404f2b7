"""An ensemble of any method that learns by episodes: several members, each with meta-parameters of its own, answer together.
Lakshminarayanan, Pritzel, Blundell 2017, arXiv:1612.01474; of MAML, as a baseline of Yoon et al. 2018, arXiv:1806.03836."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, cast

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.func import functional_call

from metarun.algorithm import Algorithm, Footprint, Method, Metrics, State
from metarun.algos.bayes._several import each
from metarun.nets.base import Net
from metarun.problem import Gaussian, Problem, Samples
from metarun.runtime.replica import Caller
from metarun.task import Context, Task

STRIDE = 0x5851F42D4C957F2D  # between the members' random keys


class Ensemble(Algorithm):
    """Deep ensemble.

        p(y | x) = mean over members m of p_m(y | x),   each trained for itself: min_θm L_m(θm)       (section 2.4)

    Members are alike but for their random initial weights. They go through a task together, their axis mapped as that of tasks is.
    The objective is the sum of the members' own, and clipping takes each for itself, so that each has the gradient it would have
    alone; the loss and the score that meta-training logs are the members' means, and those of validation and test the ensemble's.

    Deviations: (1) No adversarial training. (2) Members of a regression that predict points alone are Gaussian with a fixed ``noise``;
    the paper's learn theirs.

    Args:
        net, problem: the backbone and the data's shape. The first member has this net, the others nets like it with weights of their own.
        members: how many.
        member: makes one of them.
        noise: of a regression's targets around the prediction of a member, a standard deviation.
    """

    def __init__(
        self, net: Net, problem: Problem, *, members: Annotated[int, Ge(1)], member: Method, noise: Annotated[float, Gt(0)]
    ) -> None:
        nets = [net, *(another(net) for _ in range(members - 1))]
        super().__init__(net, problem)
        self.members = nn.ModuleList(member(each, problem) for each in nets)
        self.noise = noise
        first = self.learners[0]
        if isinstance(first, Ensemble) or first.reads == "attributes" or problem.kind.name not in first.kinds:
            raise ValueError(f"algo.member={type(first).__name__} is not possible: take a method for {problem.kind.name} from examples")
        self.net = first.net
        for name in ("inner_steps", "test_steps", "unrolls", "every_state", "fixed_way", "label_dependent", "ordered"):
            setattr(self, name, getattr(first, name))

    @property
    def learners(self) -> list[Algorithm]:
        """The members, as what they are."""
        return cast(list[Algorithm], list(self.members))

    def steps(self, context: Context, train: bool) -> int:
        return self.learners[0].steps(context, train)

    def each(self, function: Callable[[Algorithm, Tensor, State], Any], states: Any = ()) -> Any:
        """``function(member, shift, state)`` of every member and of its own one of ``states``, stacked: a first axis of members.

        ``shift`` [] int64 makes a member's random key of the task's; the first member's is the task's itself.
        """
        pairs = zip(*([*member.named_parameters(), *member.named_buffers()] for member in self.learners))
        weights = {f"method.{same[0][0]}": torch.stack([tensor for _, tensor in same]) for same in pairs}
        some = next(iter(weights.values()))
        shifts = STRIDE * torch.arange(len(self.members), device=some.device)

        def one(weights: dict[str, Tensor], shift: Tensor, state: State) -> Any:
            return functional_call(Caller(self.learners[0]), weights, (function, shift, state))

        return each(one, weights, shifts, states)

    def begin(self, context: Context) -> State:
        return self.each(lambda member, shift, _: member.begin(keyed(context, shift)))

    def step(self, state: State, context: Context, k: int) -> State:
        return self.each(lambda member, shift, state: member.step(state, keyed(context, shift), k), state)

    def predict(self, state: State, x: Tensor) -> Samples:
        answers = self.each(lambda member, _, state: member.predict(state, x), state)
        if isinstance(answers, Tensor) and not self.problem.kind.labelled:
            answers = Gaussian(answers, torch.full_like(answers, self.noise**2))
        return Samples(answers)

    def objective(self, states: Sequence[State], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        def own(member: Algorithm, shift: Tensor, states: Sequence[State]) -> tuple[Tensor, Metrics]:
            return member.objective(states, task._replace(context=keyed(task.context, shift)), progress)

        losses, metrics = self.each(own, list(states))
        return losses.sum(), {name: values.mean(0) for name, values in metrics.items()}

    def footprint(self, task: Task, train: bool) -> Footprint:
        one, members = self.learners[0].footprint(task, train), len(self.members)
        return one._replace(examples=members * one.examples, repeated=members * one.repeated, bytes=members * one.bytes)

    def groups(self) -> list[dict[str, Any]]:
        alike = zip(*(member.groups() for member in self.learners))
        return [{**same[0], "params": [p for group in same for p in group["params"]], "parts": len(self.members)} for same in alike]

    def anneal(self, progress: float) -> None:
        for member in self.learners:
            member.anneal(progress)

    def follow_net(self) -> None:
        for member in self.learners:
            member.net.load_state_dict(self.net.state_dict())
            member.follow_net()

    def calibrate(self, tasks: Iterable[Task]) -> None:
        seen = list(tasks)
        for member in self.learners:
            member.calibrate(seen)


def keyed(context: Context, shift: Tensor) -> Context:
    """The context as a member has it, its random key being its own."""
    return context._replace(key=context.key + shift)


def another(net: Net) -> Net:
    """A net like it, with random weights of its own, from torch's global generator."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        for name, weight in net.draw(torch.randint(2**62, ())).items():
            other.get_parameter(name).copy_(weight)
    return other
