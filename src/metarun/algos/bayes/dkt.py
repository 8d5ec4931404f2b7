"""Deep kernel transfer: a Gaussian process on features of a net, both learned by the likelihood of whole tasks.
Patacchiola, Turner, Crowley, O'Boyle, Storkey 2020, arXiv:1910.05199."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metarun import inner
from metarun.algos.bayes._gp import GaussianProcess
from metarun.nets.base import Net
from metarun.problem import Problem


class DKT(GaussianProcess):
    """Deep kernel transfer, for regression: z(x) are the net's features, m is a learned constant.

        min over θ, kernel and noise  mean over tasks of −log p(y | x) / n                (equation 5)

    Deviations: (1) Only the kernel of squared distances; the authors have a spectral mixture beside. (2) The likelihood is divided by the
    number of targets. (3) No classification.

    Args:
        net, problem: the backbone and the data's shape.
        noise, scale, length: of the noise, the function and its features before meta-training, see ``GaussianProcess``.
    """

    def __init__(self, net: Net, problem: Problem, **settings: Any) -> None:
        super().__init__(net, problem, net.features, **settings)
        self.constant = nn.Parameter(torch.zeros(problem.outputs))

    def places(self, x: Tensor, support_x: Tensor) -> Tensor:
        return inner.upcast(self.net(x, support_x))

    def mean(self, x: Tensor, support_x: Tensor) -> Tensor:
        return self.constant.expand(len(x), -1)
