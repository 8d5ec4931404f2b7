"""BOIL: the inner loop adapts the body and leaves the head alone, so that representations have to change.
Oh, Yoo, Kim, Yun 2021, arXiv:2008.08882."""

from __future__ import annotations

from typing import Any

from metarun.learners import Adapted, InnerLoop
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class BOIL(InnerLoop):
    """Body only update in the inner loop.

        body_{k+1} = body_k − α ∇_body L_support(body_k, head)      (section 3.1; the head's inner rate is 0)
        min_{body_0, head}  mean over tasks of L_query(body_K, head)

    Deviations: (1) For residual nets the authors also report a variant without the last skip connection; the nets here keep it.
    (2) Default: three steps in the test, as MAML's here; the authors take one, as in training.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: α, on the mean support loss.
        inner_steps, test_steps: K in meta-training, and in validation and test.
        first_order: drop the second derivatives.
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
    """

    def __init__(self, net: Net, problem: Problem, **settings: Any) -> None:
        super().__init__(net, problem, **settings)
        if not any(name.startswith("net.") for name in self.learner()):
            raise ValueError(
                "algo=boil adapts the net and leaves the head alone, and this net has no weights: choose another, or algo=anil"
            )

    def begin(self, context: Context) -> Adapted:
        body = {name: weight for name, weight in self.learner().items() if name.startswith("net.")}
        return Adapted(body, context.support.x)
