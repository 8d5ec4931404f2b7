"""What MAML, FOMAML and Reptile follow to first order in α, averaged over the order of two minibatches (arXiv:1803.02999, section 5.1):
AvgGrad, which is joint training, and AvgGradInner, by which the minibatches' gradients come to point the same way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Identity, engine, meta_gradient
from torch import Tensor

from metarun import inner
from metarun.algos.gradient.maml import MAML
from metarun.algos.gradient.reptile import Reptile
from metarun.learners import StepLearner
from metarun.problem import EpisodeSpec, Problem, Regression
from metarun.task import Batch, Context, Task

F64 = torch.float64
Pair = tuple[Batch, Batch]


def minibatches(n: int) -> Pair:
    """Two minibatches of n examples of linear regression."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(n, 4, generator=generator, dtype=F64) for _ in range(2))
    return Batch(first[:, :3], first[:, 3:]), Batch(second[:, :3], second[:, 3:])


def build(method: type[StepLearner], **settings: Any) -> StepLearner:
    torch.manual_seed(0)
    spec = EpisodeSpec(way=1, shot=1, query=1)
    return method(Identity(3), Problem(Regression(), (3,), 1, 0, spec, spec), test_steps=1, **settings).double()


def tasks(supports: list[Batch], queries: list[Batch], keys: list[int]) -> Task:
    support, query = (Batch(*map(torch.stack, zip(*batches))) for batches in (supports, queries))
    return Task(Context(support, torch.zeros(2, 1, dtype=torch.int64), torch.tensor(keys), {}), query)


def terms(learner: StepLearner, pair: Pair) -> tuple[Tensor, Tensor]:
    """AvgGrad and AvgGradInner = mean of H_2 g_1 over both orders, of mean squared errors."""
    weights = torch.cat([learner.head.weight[0], learner.head.bias]).detach()
    designs = [inner.with_ones(batch.x) for batch in pair]
    hessians = [2 * z.T @ z / len(z) for z in designs]
    grads = [2 * z.T @ (z @ weights - batch.y[:, 0]) / len(z) for z, batch in zip(designs, pair)]
    return (grads[0] + grads[1]) / 2, (hessians[1] @ grads[0] + hessians[0] @ grads[1]) / 2


@pytest.mark.parametrize(("first_order", "c"), [(False, 2), (True, 1)])
def test_maml_follows_the_gradient_less_c_alpha_times_the_inner_term(first_order: bool, c: int) -> None:
    pair, remainders = minibatches(5), []
    for alpha in (0.02, 0.01):
        learner = build(MAML, inner_lr=alpha, inner_steps=1, first_order=first_order, mode="unroll")
        average, together = terms(learner, pair)
        found = meta_gradient(learner, tasks([*pair], [*reversed(pair)], [0, 1]), engine())
        remainders.append(found - (average - c * alpha * together))
    if first_order:  # for quadratics there is no more
        assert max(float(remainder.norm()) for remainder in remainders) < 1e-12
    else:
        assert remainders[0].norm() > 1e-6
        torch.testing.assert_close(remainders[0], 4 * remainders[1])  # of second order in α


def test_two_steps_of_reptile_follow_twice_the_gradient_less_alpha_times_the_inner_term() -> None:
    pair, alpha = minibatches(1), 0.02
    both = Batch(*map(torch.cat, zip(*pair)))
    first = [int(inner.minibatch(torch.tensor(key), 2, 1, 0)) for key in range(20)]
    learner = build(Reptile, inner_lr=alpha, inner_steps=2, inner_batch=1, optimizer="sgd")
    average, together = terms(learner, pair)
    found = meta_gradient(learner, tasks([both, both], [both, both], [first.index(0), first.index(1)]), engine()) / alpha
    torch.testing.assert_close(found, 2 * average - alpha * together)
