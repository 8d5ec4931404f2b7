"""What attacks on a graph share: a budget of flipped edges, which flips are allowed, and victims that are trained on what came of it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Gt, Le
from torch import Tensor

from metarun import inner
from metarun.abilities import Attacks
from metarun.algorithm import Algorithm, Footprint, Method
from metarun.data.graph import Graph
from metarun.nets.base import Net
from metarun.nets.pixels import Pixels
from metarun.problem import Problem
from metarun.task import Context, Task

MATRICES = 12  # of nodes by nodes, as numbers, that an attack and its victims hold at a time


class Attacked(NamedTuple):
    """An attack under way."""

    flips: Tensor  # [budget, 2] int64, see ``Graph``; (0, 0) where there is none yet
    labels: Tensor  # [nodes] int64: what the attacker takes for the nodes' classes
    context: Context  # of the task as it was given, which victims are trained on with these flips

    @property
    def poisoned(self) -> Graph:
        """The graph with the flips."""
        graph: Graph = self.context.shared
        return graph._replace(flips=self.flips)


class Attack(Algorithm, Attacks):
    """A poisoning attack: edges are flipped, one a step, before victims are trained; nothing else may change.

    No edge is flipped twice, so that after k steps exactly k pairs of nodes are linked that were not, or the other way round. No edge is
    removed that is the last of one of its nodes. An attack knows the whole graph, and labels of labelled nodes alone.

    Args:
        net, problem: the backbone, which is left aside, and the data's shape.
        budget: of flips, a share of the graph's edges (rounded down, but at least one).
        victim: makes what is attacked, a method that tells nodes of a graph; it answers, from random weights, whenever the attack is asked.
    """

    kinds = frozenset({"node classification"})
    label_dependent = True

    def __init__(self, net: Net, problem: Problem, *, budget: Annotated[float, Gt(0), Le(1)], victim: Method) -> None:
        super().__init__(Pixels(problem.input_shape), problem)
        self.budget, self.victim = budget, victim(net, problem)
        if isinstance(self.victim, Attacks) or problem.kind.name not in self.victim.kinds:
            raise ValueError(f"algo.victim={type(self.victim).__name__} is not possible: take a method that tells nodes, as gcn")

    def steps(self, context: Context, train: bool) -> int:
        return max(1, int(self.budget * context.shared.edges.shape[0]))

    def begin(self, context: Context) -> Attacked:
        flips = torch.zeros(self.steps(context, False), 2, dtype=torch.int64, device=context.key.device)
        return Attacked(flips, self.labels(context), context)

    def labels(self, context: Context) -> Tensor:
        """What the attacker takes for the classes of all nodes, [nodes] int64; by default it does not care, and takes none."""
        return torch.zeros(0, dtype=torch.int64, device=context.key.device)

    @staticmethod
    def key(context: Context) -> Tensor:
        """The attacker's own random key, apart from that of victims."""
        return inner.fold_in(context.key, 0)

    def step(self, state: Attacked, context: Context, k: int | Tensor) -> Attacked:
        linked = state.poisoned.adjacency()
        allowed = self.allowed(linked, state.poisoned.pairs(state.flips))
        place = self.choose(state, linked, allowed, k)
        pair = torch.stack([place // linked.shape[0], place % linked.shape[0]])
        now = torch.arange(state.flips.shape[0], device=pair.device) == k
        return state._replace(flips=torch.where(now[:, None], pair, state.flips))

    @staticmethod
    def allowed(linked: Tensor, flipped: Tensor) -> Tensor:
        """Which pairs may be flipped, [nodes, nodes] bool, above the diagonal: see the class."""
        lonely = linked.sum(1) == 1
        last = linked & (lonely[:, None] | lonely)
        return (~(flipped | last)).triu(1)

    @abstractmethod
    def choose(self, state: Attacked, linked: Tensor, allowed: Tensor, k: int | Tensor) -> Tensor:
        """The pair to flip in step k: the place of one of those ``allowed`` [nodes, nodes], counted row by row, [] int64."""

    def predict(self, state: Attacked, x: Tensor) -> Any:
        """What victims answer that are trained on the graph as it is now."""
        context, victim = state.context._replace(shared=state.poisoned), self.victim
        trained = inner.loop(lambda state, k: victim.step(state, context, k), victim.begin(context), victim.steps(context, False))
        return victim.predict(trained, x)

    def footprint(self, task: Task, train: bool) -> Footprint:
        features = task.context.shared.features
        return Footprint(0, bytes=MATRICES * features.shape[0] ** 2 * features.element_size())


def drawn(allowed: Tensor, key: Tensor, stream: int | Tensor) -> Tensor:
    """One of the pairs ``allowed`` [n, n] bool, each as likely as another: its place, counted row by row, [] int64.

    First the row, then one of its places, as a single float32 cannot tell millions of pairs apart.
    """
    u, v = inner.uniform(key, (2,), stream)
    row = at(allowed.sum(1), u)
    return row * allowed.shape[1] + at(allowed[row].long(), v)


def at(counts: Tensor, u: Tensor) -> Tensor:
    """The index of counts [n] int64 below whose running sum the share u of their sum falls, [] int64."""
    ends = counts.cumsum(0)
    return (ends <= (u * ends[-1]).long().clamp(max=ends[-1] - 1)).sum()
