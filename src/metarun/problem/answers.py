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
