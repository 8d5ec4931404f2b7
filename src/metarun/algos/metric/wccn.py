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
        z = A (u − m) / ‖A (u − m)‖,   AᵀA = (I + W / (α tr W / d))⁻¹,   m the mean of all images
        logit_c(x) = −τ ‖z − p_c‖²,   p_c = mean over class c of z

    What a class is in one picture and not in the next, such as where a face looks, has a large variance in W and is passed over; that
    holds for classes never seen. Nothing is meta-trained: the net is as it is (a frozen one, or another run's by ``init_from``), and W
    is found before validation.

    Deviations: (1) The paper puts AᵀA into the kernel of a support vector machine; here what it makes of an image is brought to length 1,
    and compared with a mean. (2) α is relative to the mean variance; the paper mixes W with I, which is the same family, as
    the scale of A does not matter. (3) Features are brought to length 1 and centred first. (4) The images are those
    of ``CALIBRATION_TASKS`` training episodes (see ``Trainer``), each class's mean that of its images in the episode: choose
    ``episode.train.way`` and ``query`` as large as the data allow.

    Args:
        net, problem: the backbone and the data's shape.
        shrinkage: α, how far the covariance is drawn to the identity; a large one leaves the nearest mean.
        scale: τ.
    """

    weight: Tensor  # [features, features], the transpose of A
    centre: Tensor  # [features], m

    def __init__(self, net: Net, problem: Problem, *, shrinkage: Annotated[float, Gt(0)], scale: Annotated[float, Gt(0)]) -> None:
        super().__init__(net, problem)
        self.shrinkage, self.scale = shrinkage, scale
        self.requires_grad_(False)
        self.register_buffer("weight", torch.eye(net.features))
        self.register_buffer("centre", torch.zeros(net.features))

    @torch.no_grad()
    def calibrate(self, tasks: Iterable[Task]) -> None:
        held = list(tasks)
        super().calibrate(held)
        was_training = self.training
        self.eval()
        centres, scatters = zip(*map(self.moments, held))
        within = torch.stack(scatters).mean(0)
        self.train(was_training)
        mean = within.diagonal().mean().clamp(min=1e-12)
        root = torch.linalg.cholesky(torch.eye(len(within), dtype=within.dtype) + within.cpu() / (self.shrinkage * mean.cpu()))
        self.weight.copy_(torch.linalg.solve_triangular(root, torch.eye(len(root), dtype=root.dtype), upper=False).T)
        self.centre.copy_(torch.stack(centres).mean(0))

    def moments(self, task: Task) -> tuple[Tensor, Tensor]:
        """m [features] and W [features, features] of the images of a task, float64."""
        (support_x, support_y), (query_x, query_y) = task.context.support, task.query
        u = inner.directions(torch.cat([self.net(support_x, support_x), self.net(query_x, support_x)]).double())
        y = torch.cat([support_y, query_y])
        apart = u - inner.class_means(u, y, task.context.classes.shape[0])[y]
        return u.mean(0), apart.T @ apart / len(y)

    def embed(self, x: Tensor, support_x: Tensor) -> Tensor:
        """z [n, features] of x [n, *input_shape]."""
        return inner.directions((inner.directions(self.net(x, support_x)) - self.centre) @ self.weight)

    def begin(self, context: Context) -> Prototypes:
        x, y = context.support
        return Prototypes(inner.class_means(self.embed(x, x), y, context.classes.shape[0]), x)

    def predict(self, state: Prototypes, x: Tensor) -> Tensor:
        return -self.scale * inner.squared_distances(self.embed(x, state.support_x), state.means)
