"""L2RW, "Learning to reweight examples for robust deep learning".
Ren, Zeng, Yang, Urtasun 2018, ICML, arXiv:1803.09050."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metarun import inner
from metarun.algos.weights._weighing import Training, Weighted, to_mean_one
from metarun.task import Batch, Context


class L2RW(Weighted):
    """Learning to reweight.

        θ̂(ε) = θ − rate · ∇ Σ_i ε_i ℓ_i(θ)                         a step that is only tried   (equation 4)
        u_i = max(−∂L_clean(θ̂(ε)) / ∂ε_i at ε = 0, 0)                                        (equations 6 and 7)
        w_i = u_i / Σ_j u_j, or 0 if all u are                                                (equation 8)

    So an example weighs as much as its gradient agrees with that of the clean examples, and nothing if it opposes it. There is nothing to
    meta-learn across tasks: a run goes straight to its test.

    Deviations: (1) weights are n times those of equation 8, and the loss is a mean, which is the same sum. (2) The rate stays as it is;
    the released code halves it after half of the steps.

    Args:
        net, problem, settings: as of ``Weighted``.
    """

    def weigh(self, state: Training, batch: Batch, context: Context, k: int | Tensor) -> tuple[Tensor, Any]:
        none = state.total.new_zeros(batch.y.shape)
        slope = inner.gradient(self.ahead, none, inner.constant(state.fast), batch, self.clean(context, batch, k), mode="none")
        return to_mean_one((-slope).detach().clamp(min=0)), state.own
