"""What tests of a method against its equations, written out a second time, share: generic parameters, and the comparison of losses and
gradients. The second writing is plain torch autograd on named parameters, without a line of metarun."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from helpers import engine, meta_gradient, random
from torch import Tensor

from metarun.algorithm import Algorithm
from metarun.contract.measures import mean_objective
from metarun.task import Task

Weights = dict[str, Tensor]
ACCURACY = 1e-9


def jittered(algorithm: Algorithm, scale: float = 0.1) -> None:
    """Moves every parameter at random: what begins at zero or at one number for all would else hide factors and places."""
    for place, parameter in enumerate(algorithm.parameters()):
        parameter.data += scale * random(1, *parameter.shape, seed=place)[0]


def parameters(algorithm: Algorithm) -> Weights:
    """Leaves of their own, by name."""
    return {name: p.detach().clone().requires_grad_() for name, p in algorithm.named_parameters()}


def close(found: Tensor, wanted: Tensor) -> None:
    """Equal to ``ACCURACY``, relative to the largest number."""
    torch.testing.assert_close(found, wanted, rtol=ACCURACY, atol=ACCURACY * float(wanted.detach().abs().max()))


def same_objective(algorithm: Algorithm, task: Task, loss: Callable[[Weights], Tensor], idle: Collection[str] = ()) -> None:
    """The meta-training loss of one task, stacked, and its gradient in every parameter, are those of ``loss``.

    Args:
        idle: parameters on which the loss does not depend, which is also tested.
    """
    algorithm.train()
    mine = parameters(algorithm)
    wanted = loss(mine)
    gradients = torch.autograd.grad(wanted, [*mine.values()], materialize_grads=True, allow_unused=True)
    close(torch.tensor(mean_objective(algorithm, task), dtype=torch.float64), wanted.detach())
    meta_gradient(algorithm, task, engine())
    steepest = max(float(gradient.abs().max()) for gradient in gradients)
    for (name, parameter), gradient in zip(algorithm.named_parameters(), gradients):
        found, largest = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad, float(gradient.abs().max())
        assert (largest <= ACCURACY * steepest) == (name in idle), name
        scale = steepest if name in idle else largest
        torch.testing.assert_close(found, gradient, rtol=ACCURACY, atol=ACCURACY * scale, msg=f"{name}: {{}}".format)
