"""What methods share that are built around another one, their member: they change what it sees, and leave the learning to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from metarun.algorithm import Algorithm, Footprint, State
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context, Task

# What a member says of itself holds of the whole.
TRAITS = (
    "inner_steps",
    "test_steps",
    "unrolls",
    "every_state",
    "keeps",
    "fixed_way",
    "label_dependent",
    "ordered",
    "pairwise",
    "batchable",
)


class Around(Algorithm):
    """A method around a ``member``, whose state is what the member's is unless a method says otherwise.

    Args:
        net, problem: the backbone and the data's shape.
        member: the other method.
    """

    kinds = frozenset({"classification"})
    member: Algorithm

    def __init__(self, net: Net, problem: Problem, member: Algorithm) -> None:
        super().__init__(net, problem)
        if member.reads == "attributes" or problem.kind.name not in member.kinds:
            raise self.refusal(member, f"a method for {problem.kind.name} from examples")
        self.member = member
        for name in TRAITS:
            setattr(self, name, getattr(member, name))

    @staticmethod
    def refusal(member: Algorithm, wanted: str) -> ValueError:
        """What is said of a member that cannot be one, and what to take in its place."""
        return ValueError(f"algo.member={type(member).__name__} is not possible: take {wanted}")

    @staticmethod
    def image_shape(problem: Problem, does: str) -> tuple[int, int, int]:
        """Channels, height and width of an example.

        Raises:
            ValueError: the examples are not images; ``does`` says what the method does with them.
        """
        if len(problem.input_shape) != 3:
            raise ValueError(f"the method {does} images, and these examples have shape {list(problem.input_shape)}: choose data of images")
        channels, height, width = problem.input_shape
        return channels, height, width

    def steps(self, context: Context, train: bool) -> int:
        return self.member.steps(context, train)

    def step(self, state: State, context: Context, k: int) -> State:
        return self.member.step(state, context, k)

    def predict(self, state: State, x: Any) -> Any:
        return self.member.predict(state, x)

    def answers(self, state: State, x: Any) -> Callable[[State], Any]:
        return self.member.answers(state, x)

    def footprint(self, task: Task, train: bool) -> Footprint:
        return self.member.footprint(task, train)

    def groups(self) -> list[dict[str, Any]]:
        """The member's own, and what the method has beside it with the first of them.

        In the order that the member alone would have: the norm of a gradient is a sum, whose rounding depends on it.
        """
        first, *others = self.member.groups()
        members = {id(p) for p in self.member.parameters()}
        beside = [p for p in self.parameters() if id(p) not in members]
        head = [p for p in self.member.parameters(recurse=False) if any(p is q for q in first["params"])]
        tail = [p for p in first["params"] if all(p is not q for q in head)]
        return [{**first, "params": [*head, *beside, *tail]}, *others]

    def anneal(self, progress: float) -> None:
        self.member.anneal(progress)

    def follow_net(self) -> None:
        self.member.follow_net()

    def calibrate(self, tasks: Iterable[Task]) -> None:
        self.member.calibrate(tasks)
