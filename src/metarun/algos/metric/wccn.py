"""Within-class covariance normalisation: nearest means, where directions count less in which one class differs from itself.
Hatch, Kajarekar, Stolcke 2006, "Within-class covariance normalization for SVM-based speaker recognition", Interspeech."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from metarun import inner
from metarun.learners import PrototypeLearner, Prototypes
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context, Task


class WCCN(PrototypeLearner):
    """Nearest class means under the within-class covariance of the training classes, in closed form.

        W = mean over images of (u − ū_c)(u − ū_c)ᵀ,   u = f(x) / ‖f(x)‖,   ū_c the mean of its class
        logit_c(x) = −τ (u − p_c)ᵀ (I + W / (α tr W / d))⁻¹ (u − p_c),   p_c = mean over class c of u

    What a class is in one picture and not in the next, such as where a face looks, has a large variance in W and is passed over; that
    holds for classes never seen. Nothing is meta-trained: the net is as it is (a frozen one, or another run's by ``init_from``), and W
    is found before validation.

    Deviations: (1) The paper puts the inverse into the kernel of a support vector machine; here it measures the distance to a mean.
    (2) α is relative to the mean variance, and the matrix is scaled so that directions without variance within classes stay as they are;
    the paper mixes W with I instead. (3) Features are brought to length 1 first. (4) The images are those of
    ``CALIBRATION_TASKS`` training episodes (see ``Trainer``), each class's mean that of its images in the episode: choose
    ``episode.train.way`` and ``query`` as large as the data allow.

    Args:
        net, problem: the backbone and the data's shape.
        shrinkage: α, how far the covariance is drawn to the identity; a large one leaves the nearest mean.
        scale: τ.
    """

    weight: Tensor  # [features, features], a square root of the inverse

    def __init__(self, net: Net, problem: Problem, *, shrinkage: Annotated[float, Gt(0)], scale: Annotated[float, Gt(0)]) -> None:
        super().__init__(net, problem)
        self.shrinkage, self.scale = shrinkage, scale
        self.requires_grad_(False)
        self.register_buffer("weight", torch.eye(net.features))

    @torch.no_grad()
    def calibrate(self, tasks: Iterable[Task]) -> None:
        held = list(tasks)
        super().calibrate(held)
        was_training = self.training
        self.eval()
        within = torch.stack([self.scatter(task) for task in held]).mean(0)
        self.train(was_training)
        mean = within.diagonal().mean().clamp(min=1e-12)
        root = torch.linalg.cholesky(torch.eye(len(within), dtype=within.dtype) + within.cpu() / (self.shrinkage * mean.cpu()))
        self.weight.copy_(torch.linalg.solve_triangular(root, torch.eye(len(root), dtype=root.dtype), upper=False).T)

    def scatter(self, task: Task) -> Tensor:
        """W [features, features] float64 of the images of a task."""
        (support_x, support_y), (query_x, query_y) = task.context.support, task.query
        u = inner.directions(torch.cat([self.net(support_x, support_x), self.net(query_x, support_x)]).double())
        y = torch.cat([support_y, query_y])
        apart = u - inner.class_means(u, y, task.context.classes.shape[0])[y]
        return apart.T @ apart / len(y)

    def embed(self, x: Tensor, support_x: Tensor) -> Tensor:
        """Features [n, features] in which the distance is the Euclidean one."""
        return inner.directions(inner.upcast(self.net(x, support_x))) @ self.weight

    def begin(self, context: Context) -> Prototypes:
        x, y = context.support
        return Prototypes(inner.class_means(self.embed(x, x), y, context.classes.shape[0]), x)

    def predict(self, state: Prototypes, x: Tensor) -> Tensor:
        return -self.scale * inner.squared_distances(self.embed(x, state.support_x), state.means)
