"""DARTS: an architecture by gradient descent, the choice between operations being relaxed to a softmax over them.
Liu, Simonyan, Yang 2019, arXiv:1806.09055; with MAML as the learner near T-NAS, Lian et al. 2020 (ICLR)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.func import functional_call

from metarun import inner
from metarun.abilities import Searches
from metarun.adaptation import adapt
from metarun.algorithm import Algorithm, Footprint, Method, Metrics, State
from metarun.learners import Caller
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Batch, Context, Task

LIKE_LEARNER = ("inner_steps", "test_steps", "fixed_way", "label_dependent", "ordered", "pairwise", "reads")
BETAS = (0.5, 0.999)  # of Adam for α (section 3.1)


class Darts(Algorithm, Searches):
    """Differentiable architecture search, for any method that learns by episodes.

        w descends  L(w, α; a),      α descends  L(w − ξ ∇_w L(w, α; a), α; b)                 (algorithm 1, equation 3)

    L(·; a) and L(·; b) are the learner's own objective on an episode whose queries are every other one, a, or the rest, b; both have
    the same support. α is the parameter that the net names as its ``architecture``. ξ = 0 is the first order. The search ends as any
    training does, and ``net=cell net.genotype=RUN`` is the net that it found.

    Deviations: (1) Both players move in the same step, from the same point; the paper's take turns. (2) The second order is exact, by
    autograd; the paper's product with the Hessian is a central difference. (3) The step ahead is plain gradient descent, without momentum
    and decay of w's optimizer, which is ``optim``: by default Adam, the paper's SGD. (4) An image may serve w in one episode and α in
    another, as in T-NAS; the paper halves the training set for good. (5) Defaults: a rate for α of 0.01, for hundreds of steps; the
    paper has 0.0003 for 20,000.

    Args:
        net, problem: a net with an ``architecture``, and the data's shape.
        learner: makes the method that w and α serve.
        virtual_lr: ξ; 0 for first order.
        rate: Adam's learning rate of α.
        decay: weight decay of α.
    """

    kinds = frozenset({"classification"})

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        learner: Method,
        virtual_lr: Annotated[float, Ge(0)],
        rate: Annotated[float, Gt(0)],
        decay: Annotated[float, Ge(0)],
    ) -> None:
        super().__init__(net, problem)
        self.learner = learner(net, problem)
        self.net, self.virtual_lr, self.rate, self.decay = self.learner.net, virtual_lr, rate, decay
        name = type(self.learner).__name__
        if isinstance(self.learner, Searches) or self.learner.unrolls > 1 or self.learner.reads == "attributes":
            raise ValueError(f"algo.learner={name} is not possible: take a method that meta-learns from episodes, such as protonet or maml")
        if not self.net.architecture or not self.mixture.requires_grad:
            raise ValueError(f"algo.learner={name} does not train the weights of the net, so that there is nothing to search by")
        for attribute in LIKE_LEARNER:
            setattr(self, attribute, getattr(self.learner, attribute))

    def steps(self, context: Context, train: bool) -> int:
        return 0 if train else self.learner.steps(context, train)  # in training the objective goes through tasks itself

    def begin(self, context: Context) -> State:
        return self.learner.begin(context)

    def step(self, state: State, context: Context, k: int) -> State:
        return self.learner.step(state, context, k)

    def predict(self, state: State, x: Tensor) -> Any:
        return self.learner.predict(state, x)

    def answers(self, state: State, x: Tensor) -> Callable[[State], Any]:
        return self.learner.answers(state, x)

    def objective(self, states: Sequence[State], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        """``states`` are not used: whose weights they are made of, w's or α's, is not to be told any more."""
        named = dict(self.learner.named_parameters())
        weights: dict[str, Tensor] = {name: p for name, p in named.items() if p is not self.mixture and p.requires_grad}
        (place,) = (name for name, p in named.items() if p is self.mixture)

        def gone_through(learner: Algorithm, task: Task) -> tuple[Tensor, Metrics]:
            return learner.objective(list(adapt(learner, task.context, learner.steps(task.context, True))), task, progress)

        def learned(weights: dict[str, Tensor], mixture: Tensor, task: Task) -> tuple[Tensor, Metrics]:
            """The learner's objective with these weights, and its metrics."""
            given = {f"method.{name}": w for name, w in {**weights, place: mixture}.items()}
            found: tuple[Tensor, Metrics] = functional_call(Caller(self.learner), given, (gone_through, task))
            return found

        def loss(weights: dict[str, Tensor], mixture: Tensor, task: Task) -> Tensor:
            return learned(weights, mixture, task)[0]

        of_w, of_alpha = (task._replace(query=Batch(task.query.x[first::2], task.query.y[first::2])) for first in (0, 1))
        still = inner.constant(weights)
        if self.virtual_lr:
            slope = inner.gradient(loss, still, self.mixture, of_w)
            played = torch.stack([(w * slope[name].detach()).sum() for name, w in weights.items()]).sum()  # its gradient is w's
            ahead = inner.sgd(still, slope, self.virtual_lr)
        else:
            played, ahead = loss(weights, self.mixture.detach(), of_w), still
        value, metrics = learned(ahead, self.mixture, of_alpha)
        return played + value, {**metrics, **self.net.monitored()}

    def footprint(self, task: Task, train: bool) -> Footprint:
        one = self.learner.footprint(task, train)
        if not train:
            return one
        passes = 4 if self.virtual_lr else 2
        return Footprint(passes * (one.examples + one.repeated * self.learner.steps(task.context, True)), bytes=one.bytes)

    def groups(self) -> list[dict[str, Any]]:
        others = [{**group, "params": [p for p in group["params"] if p is not self.mixture]} for group in self.learner.groups()]
        return [*others, {"params": [self.mixture], "lr": self.rate, "betas": BETAS, "weight_decay": self.decay}]

    def anneal(self, progress: float) -> None:
        self.learner.anneal(progress)

    def follow_net(self) -> None:
        self.learner.follow_net()

    def calibrate(self, tasks: Iterable[Task]) -> None:
        self.learner.calibrate(tasks)
