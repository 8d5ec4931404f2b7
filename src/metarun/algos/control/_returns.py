"""What policy gradients are made of: discounted returns, a baseline that is fitted to them, and the surrogates that are differentiated."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metarun import inner
from metarun.problem import Trajectories

Estimator = Literal["naive", "dice", "promp"]
PENALTY = 1e-5  # of the baseline's ridge regression


def returns_to_go(rewards: Tensor, discount: float) -> Tensor:
    """R_t = Σ_{t' ≥ t} discount^(t' − t) r_{t'}, of rewards [n, horizon]."""
    time = torch.arange(rewards.shape[1], device=rewards.device)
    ahead = time - time[:, None]
    weights = torch.where(ahead >= 0, discount ** ahead.clamp(min=0).to(rewards.dtype), 0.0)
    return rewards @ weights.T


def gae(rewards: Tensor, values: Tensor, discount: float, trace: float) -> Tensor:
    """Generalised advantages Σ_i (discount trace)^i δ_{t+i}, δ_t = r_t + discount V_{t+1} − V_t, of rewards and values [n, horizon].

    After the last action nothing is to come, V = 0. Schulman et al. 2016, arXiv:1506.02438, equation 16.
    """
    later = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    return returns_to_go(rewards + discount * later - values, discount * trace)


def others(values: Tensor) -> Tensor:
    """The mean of values [n, horizon] over the n − 1 other rows; zeros where there are none."""
    return (values.sum(0) - values) / max(values.shape[0] - 1, 1)


def baseline(observations: Tensor, returns: Tensor) -> Tensor:
    """What is to be expected of returns [n, horizon], linear in (s, s², t, t², t³, 1), t in 0..1, fitted to these very returns.

    In float64, as s and t are nearly the same on a straight way. Duan et al. 2016, arXiv:1604.06778, section 6.1.
    """
    time = torch.arange(returns.shape[1], device=returns.device, dtype=torch.float64) / returns.shape[1]
    time = time.expand(returns.shape)[..., None]
    seen = observations.flatten(2).double()
    rows = torch.cat([seen, seen.square(), time, time**2, time**3, torch.ones_like(time)], -1).flatten(0, 1)
    weights = inner.ridge(rows, returns.double().flatten(), rows.new_full((), PENALTY))
    return (rows @ weights).view_as(returns).to(returns.dtype)


def advantages(trajectories: Trajectories, discount: float) -> Tensor:
    """How much more than the baseline followed each action, [n, horizon], of mean 0 and standard deviation 1 over a task."""
    returns = returns_to_go(trajectories.rewards, discount)
    better = returns - baseline(trajectories.observations, returns)
    return (better - better.mean()) / (better.std(unbiased=False) + 1e-8)


def surrogate(log_probs: Tensor, advantages: Tensor, estimator: Estimator) -> Tensor:
    """A scalar whose gradient is the policy gradient, the mean over actions of ∇ log π(a_t|s_t) Â_t.

    ``naive``: the mean of log π(a_t|s_t) Â_t, whose further derivatives forget that other weights would have acted otherwise.
    ``dice``: with □(z) = exp(z − sg(z)), the mean of (□(Σ_{t' ≤ t} log π_t') − □(Σ_{t' < t} log π_t')) Â_t, right in every derivative,
    which is Foerster et al. 2018, arXiv:1802.05098, with the baseline of Farquhar et al. 2019, arXiv:1909.10549.
    ``promp``: the mean of □(log π_t) Â_t, which leaves out how earlier actions led to the state where a_t was taken, and with it most of
    the variance (Rothfuss et al. 2019, arXiv:1810.06784, equation 10).

    Args:
        log_probs, advantages: [n, horizon]; no gradient flows through the advantages.
    """
    if estimator == "naive":
        return (log_probs * advantages).mean()
    if estimator == "promp":
        return (_one(log_probs) * advantages).mean()
    upto = log_probs.cumsum(1)
    return ((_one(upto) - _one(upto - log_probs)) * advantages).mean()


def _one(z: Tensor) -> Tensor:
    """□(z): 1, with the derivatives of exp(z) / exp(z)."""
    return torch.exp(z - z.detach())
