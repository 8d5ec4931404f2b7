"""MAML through learn2learn's own wrapper, to cross-check a result of algo=maml against the reference library with one word.
Arnold, Mahajan, Datta, Bunner, Zarkias 2020, arXiv:2008.12284; the method is Finn, Abbeel, Levine 2017, arXiv:1703.03400."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metarun import inner
from metarun.abilities import OneByOne
from metarun.learners import Adapted, StepLearner
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.runtime.learn2learn import library
from metarun.task import Context


class LibraryMAML(StepLearner, OneByOne):
    """Model-agnostic meta-learning as in ``maml``, with every inner step taken by ``learn2learn.algorithms.MAML``.

        φ_{k+1} = φ_k − α ∇L_support(φ_k)                     (``clone`` and ``adapt``)

    Deviations: those of ``maml``. Tasks are done one after the other, as the library does them.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: α, on the mean support loss.
        inner_steps, test_steps: K in meta-training, and in validation and test.
        first_order: drop the second derivatives.

    Raises:
        MissingLibrary: learn2learn is not installed.
    """

    def __init__(self, net: Net, problem: Problem, *, first_order: bool, **settings: Any) -> None:
        super().__init__(net, problem, **settings)
        library()
        self.first_order = first_order

    def step(self, state: Adapted, context: Context, k: int) -> Adapted:
        x, y = context.support
        training = torch.is_grad_enabled()
        with torch.enable_grad():  # the library derives by autograd in evaluation, too
            start = state.fast if training else {name: weight.detach().requires_grad_() for name, weight in state.fast.items()}
            learner = library().algorithms.MAML(self, lr=self.inner_lr, first_order=self.first_order or not training).clone()
            for name, weight in start.items():
                owner, _, leaf = name.rpartition(".")
                learner.module.get_submodule(owner)._parameters[leaf] = weight  # as the library itself updates a clone
            learner.adapt(self.problem.loss(learner(x, x), y))
            fast: dict[str, Tensor] = dict(learner.module.named_parameters())
        return state._replace(fast=fast if training else inner.constant(fast))
