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

    Deviations: (1) Features and attributes are less their means over training images and training classes: what all words have in common
    would otherwise be most of S, and nothing is told by it. (2) X Xᵀ, X Y and S Sᵀ are means over images and over classes, so that γ and λ
    do not depend on how many there are; and they are relative, in units of the mean of the diagonals of these two. (3) The images are those
    of the queries of ``CALIBRATION_TASKS`` training episodes (see ``Trainer``): choose ``episode.train.way`` as large as there are training
    classes, and these are the paper's.

    Args:
        net, problem: the backbone and the data's shape.
        gamma: γ, of the features.
        penalty: λ, of the attributes.
    """

    weight: Tensor  # [features, attributes], V
    image: Tensor  # [features], the mean of training images
    word: Tensor  # [attributes], the mean of training classes

    def __init__(self, net: Net, problem: Problem, *, gamma: Annotated[float, Gt(0)], penalty: Annotated[float, Gt(0)]) -> None:
        super().__init__(net, problem, sizes=[])
        self.gamma, self.penalty = gamma, penalty
        self.requires_grad_(False)
        for name, shape in (("weight", (net.features, problem.attributes)), ("image", net.features), ("word", problem.attributes)):
            self.register_buffer(name, torch.zeros(shape))

    @torch.no_grad()
    def calibrate(self, tasks: Iterable[Task]) -> None:
        held = list(tasks)
        super().calibrate(held)
        was_training = self.training
        self.eval()
        parts = [(self.net(task.query.x).double(), task.query.y, task.context.support.x.double()) for task in held]
        self.train(was_training)
        image = torch.stack([features.mean(0) for features, _, _ in parts]).mean(0)
        word = torch.stack([known.mean(0) for _, _, known in parts]).mean(0)
        found = [moments(features - image, y, known - word) for features, y, known in parts]
        images, both, classes = (torch.stack(each).mean(0) for each in zip(*found))
        left = torch.linalg.solve(_ridge(images, self.gamma), both)
        self.weight.copy_(torch.linalg.solve(_ridge(classes, self.penalty), left.T).T)
        self.image.copy_(image)
        self.word.copy_(word)

    def begin(self, context: Context) -> Weights:
        attributes, y = context.support
        known = inner.class_means(attributes, y, context.classes.shape[0])
        return Weights(self.weight @ (known - self.word).T)

    def predict(self, state: Weights, x: Tensor) -> Tensor:
        return (inner.upcast(self.net(x)) - self.image) @ state.of_classes


def moments(features: Tensor, y: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X Xᵀ [d, d], X Y Sᵀ [d, a] and S Sᵀ [a, a], as means, of features [n, d], labels [n] and attributes of classes [z, a]."""
    n, z = len(features), len(known)
    signs = 2 * inner.one_hot(y, z).to(features.dtype) - 1
    return features.T @ features / n, features.T @ signs @ known / n, known.T @ known / z


def _ridge(matrix: Tensor, penalty: float) -> Tensor:
    """matrix + penalty · (mean of its diagonal) · I."""
    diagonal = matrix.diagonal()
    return matrix + torch.diag(torch.full_like(diagonal, penalty * float(diagonal.mean().clamp(min=1e-12))))
