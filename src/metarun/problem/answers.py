"""What learners answer, and what is read of an answer whatever its form."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.inner import upcast


class Gaussian(NamedTuple):
    """A prediction with its uncertainty, for regression."""

    mean: Tensor  # [n, outputs]
    variance: Tensor  # [n, outputs], > 0


class JointGaussian(NamedTuple):
    """What a process says of n targets together: their errors depend on each other, those of different outputs do not."""

    mean: Tensor  # [n, outputs]
    covariance: Tensor  # [outputs, n, n], or [1, n, n] if it is that of every output; positive definite


class Samples(NamedTuple):
    """The answers of several members: of an ensemble, of particles, of samples of a posterior.

    For regression the members are Gaussian: one that predicts points alone says with which noise.
    """

    members: Tensor | Gaussian  # logits [members, n, way], or a Gaussian of [members, n, outputs]


class Trajectories(NamedTuple):
    """What a policy did in n episodes of an environment."""

    observations: Tensor  # [n, horizon, *observation], before each action
    actions: Tensor  # [n, horizon, size] numbers, or [n, horizon] int64 choices
    rewards: Tensor  # [n, horizon]

    @property
    def returns(self) -> Tensor:
        """The sum of rewards of every episode, [n]."""
        return self.rewards.sum(-1)


Prediction = Tensor | Gaussian | Samples | Trajectories


def best_guess(prediction: Tensor | Gaussian | Samples) -> Tensor:
    """One answer: logits as they are, a mean, or of several members the logarithm of the mean probability or the mean; [n, outputs]."""
    if isinstance(prediction, Samples):
        members = prediction.members
        return members.mean.mean(0) if isinstance(members, Gaussian) else log_mean(F.log_softmax(upcast(members), -1))
    return prediction.mean if isinstance(prediction, Gaussian) else prediction


def spread(prediction: Gaussian | Samples) -> Tensor:
    """The variance of a regression's answer [n, outputs]: of a mixture, the members' mean variance plus the variance of their means."""
    if isinstance(prediction, Gaussian):
        return prediction.variance
    members = prediction.members
    if not isinstance(members, Gaussian):
        raise TypeError("logits have no variance")
    return members.variance.mean(0) + members.mean.var(0, unbiased=False)


def log_mean(logs: Tensor) -> Tensor:
    """The logarithm of the mean over the first axis of numbers that come as logarithms."""
    return torch.logsumexp(logs, 0) - math.log(logs.shape[0])


def log_density(prediction: Gaussian, y: Tensor) -> Tensor:
    """Of every target y [n, outputs] under its own Gaussian."""
    mean, variance = map(upcast, prediction)
    return -0.5 * ((mean - y).square() / variance + torch.log(2 * math.pi * variance))


def joint_log_density(prediction: Gaussian | JointGaussian | Samples, y: Tensor) -> Tensor:
    """Of all targets y [n, outputs] together, a number.

    A Gaussian's targets are independent; those of several members are so for each of them, and it is one member that is right about all.
    """
    if isinstance(prediction, Gaussian):
        return log_density(prediction, y).sum()
    if isinstance(prediction, Samples):
        members = prediction.members
        if not isinstance(members, Gaussian):
            raise TypeError("logits have no density")
        return log_mean(log_density(members, y).sum((-2, -1)))
    mean, covariance = map(upcast, prediction)
    gap, n = (y - mean).T, len(y)
    rounding = n * torch.finfo(covariance.dtype).eps * covariance.diagonal(dim1=-2, dim2=-1)  # may have made it indefinite
    factor = torch.linalg.cholesky_ex(covariance + rounding.diag_embed())[0]
    whitened = torch.linalg.solve_triangular(factor, gap[..., None], upper=False)
    scales = factor.diagonal(dim1=-2, dim2=-1).expand_as(gap)
    return -(whitened.square().sum() / 2 + scales.log().sum() + gap.numel() * math.log(2 * math.pi) / 2)
