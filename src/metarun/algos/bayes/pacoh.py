"""PACOH-MAP: the prior of a Gaussian process, mean and kernel by nets, that PAC-Bayesian bounds for few tasks prefer.
Rothfuss, Fortuin, Josifoski, Krause 2021, arXiv:2002.05551."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.algos.bayes._gp import GaussianProcess
from metarun.algos.bayes.ensemble import another
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Task


class PACOH(GaussianProcess):
    """PAC-optimal hyper-posterior, its mode, for Gaussian processes.

        z(x) = W_z f(x) + b_z,   m(x) = W_m g(x) + b_m,   f and g nets of one kind, each with weights of its own
        max over φ  mean over tasks of log p(y | x, φ) / n  +  log of the hyper-prior of φ     (equation 9, a point for the hyper-posterior)

    The hyper-prior, a Gaussian around zero, is ``optim.weight_decay`` of ``optim.method=adamw``, as in the authors' code; without it this
    is learning by the marginal likelihood, which overfits to few tasks.

    Deviations: (1) The hyper-prior holds the kernel's parameters, too, by their logarithms. (2) Inputs and targets are not normalised
    by those of the training tasks.

    Args:
        net, problem: the backbone and the data's shape; g is this net, f another like it.
        features: length of z.
        noise, scale, length: of the noise, the function and its features before meta-training, see ``GaussianProcess``.
    """

    def __init__(self, net: Net, problem: Problem, *, features: Annotated[int, Ge(1)], **settings: Any) -> None:
        super().__init__(net, problem, features, **settings)
        self.kernel_net, self.kernel_head = another(net), nn.Linear(net.features, features)
        self.head = nn.Linear(net.features, problem.outputs)

    def places(self, x: Tensor, support_x: Tensor) -> Tensor:
        return inner.upcast(self.kernel_head(self.kernel_net(x, support_x)))

    def mean(self, x: Tensor, support_x: Tensor) -> Tensor:
        return inner.upcast(self.head(self.net(x, support_x)))

    def calibrate(self, tasks: Iterable[Task]) -> None:
        seen = [task.query.x for task in tasks]
        self.net.calibrate(seen)
        self.kernel_net.calibrate(seen)
