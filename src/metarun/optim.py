"""The outer optimizer: one of torch's, a learning-rate schedule as a pure function of progress, and clipping.
The schedule has no state of its own, so a resumed run needs none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import nn

Schedule = Literal["constant", "cosine", "linear"]


def lr_scale(schedule: Schedule, progress: float, warmup: float, final: float) -> float:
    """Factor on the learning rate at ``progress`` 0..1: a linear warm-up over the first ``warmup``, then down to ``final``.

    ``cosine`` is SGDR without restarts (Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5); ``linear`` a straight line.
    """
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    if schedule == "constant":
        return 1.0
    x = (progress - warmup) / (1 - warmup)
    fall = 0.5 * (1 + math.cos(math.pi * x)) if schedule == "cosine" else 1 - x
    return final + (1 - final) * fall


class Outer:
    """The optimizer of the meta-parameters.

    Args:
        parameters: the meta-parameters.
        method: ``adam``, ``adamw`` or ``sgd`` (Nesterov when momentum > 0).
        lr: learning rate at its height.
        momentum: β1 of Adam, or SGD's momentum.
        weight_decay: L2 penalty (adam, sgd) or decoupled decay (adamw).
        schedule, warmup, final_lr: see ``lr_scale``; ``final_lr`` is a fraction of ``lr``.
        clip_norm: largest norm of the whole meta-gradient; null for none.
        clip_value: largest absolute value of each element of the meta-gradient; null for none.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        method: Literal["adam", "adamw", "sgd"],
        lr: Annotated[float, Gt(0)],
        momentum: Annotated[float, Ge(0), Lt(1)],
        weight_decay: Annotated[float, Ge(0)],
        schedule: Schedule,
        warmup: Annotated[float, Ge(0), Lt(1)],
        final_lr: Annotated[float, Ge(0), Le(1)],
        clip_norm: Annotated[float, Gt(0)] | None,
        clip_value: Annotated[float, Gt(0)] | None,
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.lr, self.clip_norm, self.clip_value = lr, clip_norm, clip_value
        self.schedule, self.warmup, self.final_lr = schedule, warmup, final_lr
        # foreach: one fused pass over all parameters.
        common: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "foreach": True}
        self.torch: torch.optim.Optimizer | None = None
        if not self.parameters:
            return  # nothing to learn, as for nearest neighbours
        if method == "sgd":
            self.torch = torch.optim.SGD(self.parameters, momentum=momentum, nesterov=momentum > 0, **common)
        else:
            kind = torch.optim.Adam if method == "adam" else torch.optim.AdamW
            self.torch = kind(self.parameters, betas=(momentum, 0.999), **common)

    def step(self, progress: float) -> dict[str, float]:
        """Update the meta-parameters from their ``.grad``, clear it, and return what to log.

        A gradient that is not finite is not applied; ``grad_norm`` says so.
        """
        if self.torch is None:
            return {}
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm or math.inf)
        if not torch.isfinite(norm):
            return {"grad_norm": float(norm)}
        if self.clip_value:
            torch.nn.utils.clip_grad_value_(self.parameters, self.clip_value)
        lr = self.lr * lr_scale(self.schedule, progress, self.warmup, self.final_lr)
        for group in self.torch.param_groups:
            group["lr"] = lr
        self.torch.step()
        self.torch.zero_grad(set_to_none=True)
        return {"lr": lr, "grad_norm": float(norm)}

    def state_dict(self) -> dict[str, Any]:
        return self.torch.state_dict() if self.torch else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.torch:
            self.torch.load_state_dict(state)
