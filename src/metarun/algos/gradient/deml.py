"""DEML, deep meta-learning: a net of concepts is trained by the tasks of a meta-learner and by supervised classification at once.
Zhou, Wu, Li 2018, arXiv:1802.03596."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Metrics
from metarun.learners import AdaptedHead, HeadLearner
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Task


class DEML(HeadLearner):
    """Deep meta-learning: concept generator G (the net), concept discriminator D, meta-learner M.

        M      head_{k+1} = head_k − α ∘ ∇ L_support(head_k; G)             (Meta-SGD on concepts G(x); α as large as the head, learned)
        min_{G, D, M}  mean over tasks of  w_M L_query(head_K; G) + w_D CE(D(G(x)), class of x)

    The second loss is over all training classes at once, so concepts cannot shrink to what a few examples of a few classes need.

    Deviations: (1) The authors have a large external data set for D; here it sees the images of the episodes, with their classes in the
    training split. (2) M's net is a linear head; the authors give Meta-SGD a small net of its own.

    Args:
        net, problem: the concept generator and the data's shape.
        inner_lr: α before meta-training, on the mean support loss.
        inner_steps, test_steps: K in meta-training, and in validation and test.
        first_order: drop the second derivatives.
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
        task_weight, concept_weight: w_M and w_D; without the second it is a plain meta-learner, without the first plain pre-training.
    """

    kinds = frozenset({"classification"})

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        task_weight: Annotated[float, Ge(0)],
        concept_weight: Annotated[float, Ge(0)],
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, **settings)
        self.task_weight, self.concept_weight = task_weight, concept_weight
        self.discriminator = nn.Linear(net.features, problem.classes)
        self.rates = nn.ParameterList(torch.full_like(weight, self.inner_lr) for weight in self.head.parameters())

    def step_size(self, fast: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(fast, self.rates))

    def objective(self, states: Sequence[AdaptedHead], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        state, support, query = states[-1], task.context.support, task.query
        concepts = self.net(query.x, state.support_x)
        prediction = self.answer(state.fast, concepts)
        loss = self.problem.loss(prediction, query.y)
        seen = self.discriminator(torch.cat([state.features, concepts]))
        classes = task.context.classes[torch.cat([support.y, query.y])]
        joint = F.cross_entropy(inner.upcast(seen), classes)
        metrics = {"loss": loss, self.problem.metric: self.problem.score(prediction, query.y), "concept_loss": joint}
        return self.task_weight * loss + self.concept_weight * joint, metrics
