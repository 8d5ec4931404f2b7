"""An embarrassingly simple approach to zero-shot learning: features and attributes, compared by one matrix that is solved for.
Romera-Paredes, Torr 2015 (ICML), equation 4."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, NamedTuple

import torch
from annotated_types import Gt
from torch import Tensor

from metarun import inner
from metarun.learners import ZeroShotLearner
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context, Task


class Weights(NamedTuple):
    """A linear classifier of the episode's classes."""

    of_classes: Tensor  # [features, way]


class ESZSL(ZeroShotLearner):
    """ESZSL, the closed form.

        min_V  ‖Xᵀ V S − Y‖² + γ ‖V S‖² + λ ‖Xᵀ V‖² + γ λ ‖V‖²                (equation 3)
        V = (X Xᵀ + γ I)⁻¹ X Y Sᵀ (S Sᵀ + λ I)⁻¹,   logit_c(x) = f(x)ᵀ V s_c   (equation 4)

    X: features of training images, as columns; S: attributes of training classes, likewise; Y: 1 for an image's own class, −1 for others.
    Nothing is meta-trained: the net is as it is (another run's, by ``init_from``), and V is solved for before validation.

    Deviations: (1) X Xᵀ, X Y and S Sᵀ are means over images and over classes, so that γ and λ do not depend on how many there are; and they
    are relative, in units of the mean of the diagonals of these two. (2) The images are those of the queries of ``CALIBRATION_TASKS``
    training episodes (see ``Trainer``): choose ``episode.train.way`` as large as there are training classes, and these are the paper's.

    Args:
        net, problem: the backbone and the data's shape.
        gamma: γ, of the features.
        penalty: λ, of the attributes.
    """

    weight: Tensor  # [features, attributes], V

    def __init__(self, net: Net, problem: Problem, *, gamma: Annotated[float, Gt(0)], penalty: Annotated[float, Gt(0)]) -> None:
        super().__init__(net, problem, sizes=[])
        self.gamma, self.penalty = gamma, penalty
        self.requires_grad_(False)
        self.register_buffer("weight", torch.zeros(net.features, problem.attributes))

    @torch.no_grad()
    def calibrate(self, tasks: Iterable[Task]) -> None:
        held = list(tasks)
        super().calibrate(held)
        was_training = self.training
        self.eval()
        sums = [torch.zeros((), dtype=torch.float64)] * 3
        for task in held:
            features, known = self.net(task.query.x).double(), task.context.support.x.double()
            signs = 2.0 * inner.one_hot(task.query.y, len(known)).double() - 1
            found = features.T @ features / len(features), features.T @ signs @ known / len(features), known.T @ known / len(known)
            sums = [total.to(part.device) + part / len(held) for total, part in zip(sums, found)]
        self.train(was_training)
        images, both, classes = sums
        left = torch.linalg.solve(_ridge(images, self.gamma), both)
        self.weight.copy_(torch.linalg.solve(_ridge(classes, self.penalty), left.T).T)

    def begin(self, context: Context) -> Weights:
        attributes, y = context.support
        return Weights(self.weight @ inner.class_means(attributes, y, context.classes.shape[0]).T)

    def predict(self, state: Weights, x: Tensor) -> Tensor:
        return inner.upcast(self.net(x)) @ state.of_classes


def _ridge(matrix: Tensor, penalty: float) -> Tensor:
    """matrix + penalty · (mean of its diagonal) · I."""
    diagonal = matrix.diagonal()
    return matrix + torch.diag(torch.full_like(diagonal, penalty * float(diagonal.mean().clamp(min=1e-12))))
