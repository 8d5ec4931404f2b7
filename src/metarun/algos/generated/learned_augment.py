"""Learned augmentation: how often and how strongly images are changed, meta-learned through the inner loop that trains on them.
Hataya, Zdenek, Yoshizoe, Nakayama 2020, arXiv:1911.06987; Mounsaveng, Laradji, Ben Ayed, Vazquez, Pedersoli 2021, arXiv:2006.14699."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Len, Lt
from torch import Tensor

from metarun import inner
from metarun.abilities import Augments
from metarun.algorithm import Footprint, Method, Metrics, State
from metarun.algos.generated._around import Around
from metarun.algos.generated._policy import Operation, Policy
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Batch, Context, Task


class LearnedAugment(Around, Augments):
    """A policy of augmentation for any learner.

        w*(φ) = what the member learns from a support changed by the policy φ, anew at every inner step
        min_{φ, member}  mean over tasks of L_query(w*(φ)),   queries unchanged

    With MAML's as the member a task is a few examples, changed at each of its steps; with prototypes, which see a support once, there
    should be several ``copies``; with ``episode=dataset`` and ``algo@algo.member=hyperparameters`` it is a whole training set that a net is
    trained on from random weights. The policy is learned on training tasks and used on new ones. What it has come to is printed as a table
    at the end of a run, and drawn by ``metarun show --what augmentation RUN``.

    Deviations: (1) The papers fit one policy to one training set, in turns with its weights; this one is fitted to many tasks through
    whole inner loops. (2) A gate multiplies an operation's amount, where the papers blend the image with the changed one: all that moves
    an image is one map, and it is read once. (3) The operations are those of ``conf/augment``, applied in a fixed order. (4) ``gate:
    relaxed``, the default, has exact gradients; ``straight`` draws whether or not, as the papers do, and estimates them.

    Args:
        net, problem: the backbone and the data's shape.
        member: makes the learner.
        operations: what may be done to images, see ``_policy``.
        probability: of every operation before meta-training.
        strength: the same, as a part of the strongest there is.
        gate: ``relaxed`` or ``straight``.
        temperature: of the relaxed gates; near 0 they are 0 or 1.
        copies: changed images in place of, or beside, each one of the support.
        keep: beside the image itself.
        batch: examples of the support in an inner step, before they are copied; 0 for all of them.
        policy_lr: the policy's learning rate.
    """

    reads = "minibatches"

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        member: Method,
        operations: Annotated[list[Operation], Len(1)],
        probability: Annotated[float, Gt(0), Lt(1)],
        strength: Annotated[float, Gt(0), Lt(1)],
        gate: Literal["relaxed", "straight"],
        temperature: Annotated[float, Gt(0)],
        copies: Annotated[int, Ge(0)],
        keep: bool,
        batch: Annotated[int, Ge(0)],
        policy_lr: Annotated[float, Gt(0)],
    ) -> None:
        self.image_shape(problem, "changes")
        super().__init__(net, problem, member(net, problem))
        if not (copies or keep):
            raise ValueError("algo.copies=0 leaves nothing to learn from: choose algo.copies=1 or more, or algo.keep=true")
        self.copies, self.keep, self.batch, self.lr = copies, keep, batch, policy_lr
        self.policy = Policy(operations, probability, strength, gate == "straight", temperature) if copies else None
        self.ordered = self.ordered or copies > 0 or batch > 0  # each image has changes of its own, by its place

    def seen(self, context: Context, k: int | Tensor, chosen: Tensor | slice = slice(None)) -> Context:
        """The context with the support, or the ``chosen`` places of it, as the member sees it; k = 0, 1, … says when."""
        x, y = context.examples(chosen)
        if self.policy is not None:
            changed = x.repeat(self.copies, 1, 1, 1)
            changed = self.policy(changed, self.policy.noise(inner.fold_in(context.key, k), len(changed)))
            x = torch.cat([x, changed]) if self.keep else changed
        return context._replace(support=Batch(x, y.repeat(self.copies + self.keep)), shared=())

    def begin(self, context: Context) -> State:
        # What trains by minibatches only looks how the support is made.
        return self.member.begin(context if self.member.reads == "minibatches" else self.seen(context, 0))

    def step(self, state: State, context: Context, k: int) -> State:
        n = context.support.y.shape[0]
        chosen = inner.minibatch(context.key, n, self.batch, k) if 0 < self.batch < n else slice(None)
        return self.member.step(state, self.seen(context, k + 1, chosen), k)

    def objective(self, states: Sequence[State], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        context = task.context if self.member.reads == "minibatches" else self.seen(task.context, 0)
        return self.member.objective(states, task._replace(context=context), progress)

    def footprint(self, task: Task, train: bool) -> Footprint:
        support = task.context.support
        n = min(self.batch or len(support.y), len(support.y)) * (self.copies + self.keep)
        context = task.context._replace(support=support._replace(y=support.y.new_zeros(n)))
        return self.member.footprint(task._replace(context=context), train)

    def groups(self) -> list[dict[str, Any]]:
        """The member's own, and the policy at a rate of its own."""
        policy = [] if self.policy is None else [{"params": list(self.policy.parameters()), "lr": self.lr}]
        return [*self.member.groups(), *policy]

    @property
    def augmentation(self) -> Policy | None:
        return self.policy

    def found(self) -> dict[str, Any]:
        return self.member.found() | ({} if self.policy is None else {"augmentation": self.policy.table()})
