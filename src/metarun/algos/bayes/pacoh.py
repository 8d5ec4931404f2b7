"""PACOH-MAP: the prior of a Gaussian process, mean and kernel by nets, that PAC-Bayesian bounds for few tasks prefer.
Rothfuss, Fortuin, Josifoski, Krause 2021, arXiv:2002.05551."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
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

    As in the authors' code, inputs and targets are normalised by the mean and deviation that those of training tasks have, each input for
    itself, the targets' deviation being one for all outputs; answers are in the targets' own units.

    Deviation: the hyper-prior holds the kernel's parameters, too, by their logarithms.

    Args:
        net, problem: the backbone and the data's shape; g is this net, f another like it.
        features: length of z.
        noise, scale, length: of the noise, the function and its features before meta-training, see ``GaussianProcess``.
    """

    x_mean: Tensor  # [*input_shape], of training tasks, as these:
    x_deviation: Tensor  # [*input_shape]
    y_mean: Tensor  # [outputs]
    y_deviation: Tensor  # []

    def __init__(self, net: Net, problem: Problem, *, features: Annotated[int, Ge(1)], **settings: Any) -> None:
        super().__init__(net, problem, features, **settings)
        self.kernel_net, self.kernel_head = another(net), nn.Linear(net.features, features)
        self.head = nn.Linear(net.features, problem.outputs)
        self.register_buffer("x_mean", torch.zeros(problem.input_shape))
        self.register_buffer("x_deviation", torch.ones(problem.input_shape))
        self.register_buffer("y_mean", torch.zeros(problem.outputs))
        self.register_buffer("y_deviation", torch.ones(()))

    @property
    def unit(self) -> Tensor:
        return self.y_deviation

    def places(self, x: Tensor, support_x: Tensor) -> Tensor:
        return inner.upcast(self.kernel_head(self.kernel_net(self.normalised(x), self.normalised(support_x))))

    def mean(self, x: Tensor, support_x: Tensor) -> Tensor:
        return self.y_mean + self.y_deviation * inner.upcast(self.head(self.net(self.normalised(x), self.normalised(support_x))))

    def normalised(self, x: Tensor) -> Tensor:
        """x [n, *input_shape] with the mean 0 and the deviation 1 over training tasks."""
        return (x - self.x_mean) / self.x_deviation

    def prepare(self, tasks: Iterable[Task]) -> None:
        pairs = [part for task in tasks for part in (task.context.support, task.query)]
        x, y = torch.cat([part.x for part in pairs]), torch.cat([part.y for part in pairs])
        self.x_mean, self.y_mean = x.mean(0), y.mean(0)
        self.x_deviation, self.y_deviation = above_zero(x.std(0)), above_zero((y - self.y_mean).square().mean().sqrt())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("x_mean", "x_deviation", "y_mean", "y_deviation"):  # the first checkpoints lack them, and normalised nothing
            state_dict.setdefault(prefix + name, self.get_buffer(name))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def calibrate(self, tasks: Iterable[Task]) -> None:
        seen = [self.normalised(task.query.x) for task in tasks]
        self.net.calibrate(seen)
        self.kernel_net.calibrate(seen)


def above_zero(deviation: Tensor) -> Tensor:
    """A deviation, or 1 where nothing deviates."""
    return torch.where(deviation > 0, deviation, 1)
