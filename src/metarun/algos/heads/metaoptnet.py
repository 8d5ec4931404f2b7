"""MetaOptNet: a support vector machine (or a ridge regression), solved anew, is the head of every task, and the net learns features for it.
Lee, Maji, Ravichandran, Soatto 2019, arXiv:1904.03758."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Algorithm, Metrics
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context

DAMPING = 1.0  # on the diagonal of the kernel, as in the authors' code: the program is strictly convex with fewer features than examples
CENTRAL, FASTER, KEPT = 1e-10, 0.03, 0.9  # end of the central path; reduction per step; share of the way to the border that a step may go


class Solved(NamedTuple):
    """The solution of the convex program."""

    weight: Tensor  # [features, way]
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class MetaOptNet(Algorithm):
    """Meta-learning with differentiable convex optimization.

        svm:    A = argmin ½ Σ_c ‖w_c‖² − Σ_i A_{i, y_i}   with w = Zᵀ A,  A_{i, c} ≤ C [c = y_i],  Σ_c A_{i, c} = 0
                (the dual of Crammer and Singer's machine, equations 7 to 9; Z: features)
        ridge:  w = 2 (ZᵀZ + λ I)⁻¹ Zᵀ Y                    (Y: one-hot; 2 as it comes out of the authors' program)
        logit_c(x) = s w_c · f(x)                           (equation 12, s learned)
        min_{θ, s}  mean over tasks of L_query              (gradients through the optimality conditions, section 3.3)

    The authors train with more shots than they test (15, for all tests): ``episode.train.shot``. Any number of classes.

    Deviations: (1) No DropBlock, which the authors use on miniImageNet. (2) The program is solved by an
    interior-point method made for it, see ``crammer_singer``, and not by a general one.
    (3) Defaults: C = 1, λ = 5 and a scale of 10 for features of 64 numbers, where the authors have 0.1, 50 and 1 for a ResNet's.

    Args:
        net, problem: the backbone and the data's shape.
        head: ``svm`` or ``ridge``.
        cost: C of the support vector machine.
        penalty: λ of the ridge regression.
        scale: s before meta-training.
        solver_steps: of the interior-point method; 10 do for a few examples, 15 for dozens, 20 for hundreds.
        smoothing: ε of the meta-training's labels: 1 − ε for the right class, ε / (way − 1) for every other (the authors' code).
    """

    kinds = frozenset({"classification"})
    encodes = True

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        head: Literal["svm", "ridge"],
        cost: Annotated[float, Gt(0)],
        penalty: Annotated[float, Gt(0)],
        scale: Annotated[float, Gt(0)],
        solver_steps: Annotated[int, Ge(1)],
        smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ) -> None:
        super().__init__(net, problem)
        self.head, self.cost, self.penalty, self.solver_steps = head, cost, penalty, solver_steps
        self.smoothing = smoothing
        self.scale = nn.Parameter(torch.tensor(scale))

    def begin(self, context: Context) -> Solved:
        x, y = context.support
        z = inner.upcast(self.net(x, x))
        target = inner.one_hot(y, context.classes.shape[0]).to(z.dtype)
        if self.head == "ridge":
            return Solved(2 * inner.ridge(z, target, z.new_full((), self.penalty)), x)
        kernel = z @ z.T + DAMPING * torch.eye(len(z), dtype=z.dtype, device=z.device)
        return Solved(z.T @ crammer_singer(kernel, target, self.cost, self.solver_steps), x)

    def predict(self, state: Solved, x: Tensor) -> Tensor:
        return self.scale * (inner.upcast(self.net(x, state.support_x)) @ state.weight)

    def judged(self, prediction: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
        way = prediction.shape[-1]
        loss = F.cross_entropy(prediction, y, label_smoothing=self.smoothing * way / (way - 1))  # torch's ε is spread over all classes
        return loss, {"loss": loss, "accuracy": self.problem.score(prediction, y)}


def crammer_singer(kernel: Tensor, target: Tensor, cost: float, steps: int) -> Tensor:
    """The A [n, way] that minimises ½ tr(Aᵀ kernel A) − ⟨target, A⟩ where A ≤ cost · target and every row of A sums to 0.

    With the slack B = cost · target − A, which is positive and whose rows sum to ``cost``, and multipliers S of B and ν of the sums:

        target − kernel A + ν 1ᵀ = S,   B ∘ S = τ,   B 1 = cost

    A primal-dual interior-point method follows the path τ → CENTRAL from a point inside. Newton's equations fall apart into systems of
    size n, one per class: (kernel + diag(S_c / B_c)) dB_c = τ / B_c − S_c − dν, tied together by Σ_c dB_c = 0 alone. Solved in float64.
    Its first derivative in ``kernel`` is that of the solution for τ = CENTRAL, a smooth function of the kernel also where a
    multiplier and its slack are both zero: one more Newton step from the solution, of which only the residual is differentiated.

    Args:
        kernel: [n, n], positive definite.
        target: [n, way], one-hot.
    """
    dtype, kernel, target = kernel.dtype, kernel.double(), target.double()
    fixed = kernel.detach()
    slack = torch.full_like(target, cost / target.shape[1])
    multiplier = target - fixed @ (cost * target - slack)
    multiplier = multiplier - multiplier.amin(1, keepdim=True)
    multiplier = multiplier + multiplier.amax()  # any constant per row is feasible; of all sizes alike is central
    for _ in range(steps):
        newton = newton_step(fixed, slack, multiplier)
        tau = (FASTER * (slack * multiplier).mean()).clamp(min=CENTRAL * cost)
        first, second = newton(tau / slack - multiplier)
        first, second = newton((tau - first * second) / slack - multiplier)  # what the linear equations left of B ∘ S
        nearest = torch.minimum((first / slack).amin(), (second / multiplier).amin())
        stride = KEPT / (-nearest).clamp(min=KEPT)
        slack, multiplier = slack + stride * first, multiplier + stride * second
    solution = cost * target - slack
    change, _ = newton_step(fixed, slack, multiplier)((kernel - fixed) @ solution)
    return (solution - change).to(dtype)


def newton_step(kernel: Tensor, slack: Tensor, multiplier: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The map from a right-hand side [n, way] to the dB and dS [n, way] that solve Newton's equations of ``crammer_singer``."""
    inverse = torch.linalg.inv_ex(kernel + torch.diag_embed((multiplier / slack).T))[0]  # [way, n, n]; see ``inner.solve``
    summed = inverse.sum(0)

    def solve(right: Tensor) -> tuple[Tensor, Tensor]:
        free = torch.einsum("cij,jc->ic", inverse, right)
        shift = inner.solve(summed, free.sum(1))
        first = free - torch.einsum("cij,j->ic", inverse, shift)
        return first, kernel @ first + shift[:, None]

    return solve
