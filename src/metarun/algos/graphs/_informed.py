"""What attacks share that train a surrogate: its settings, and the classes that it tells."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Gt, Lt
from torch import Tensor

from metarun.algos.graphs._attack import Attack
from metarun.algos.graphs._surrogate import Surrogate, self_trained
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class Informed(Attack):
    """An attack whose labels of unlabelled nodes are those that a surrogate of the clean graph tells.

    Args:
        net, problem, settings: as of ``Attack``.
        hidden: units of the surrogate's hidden layer.
        train_steps: T, of the surrogate's training.
        train_lr, momentum: of these steps.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        hidden: Annotated[int, Ge(1)],
        train_steps: Annotated[int, Ge(1)],
        train_lr: Annotated[float, Gt(0)],
        momentum: Annotated[float, Ge(0), Lt(1)],
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, **settings)
        self.surrogate = Surrogate(hidden, train_steps, train_lr, momentum)

    def labels(self, context: Context) -> Tensor:
        return self_trained(self.surrogate, context, self.key(context))
