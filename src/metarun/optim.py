"""The outer optimizer: one of torch's, a learning-rate schedule as a pure function of progress, and clipping.
The schedule has no state of its own, so a resumed run needs none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Len, Lt
from torch import Tensor, nn

from metarun.algorithm import Algorithm
from metarun.data.episodes import Episodes
from metarun.data.slots import Slots
from metarun.engine import Engine
from metarun.errors import UserError
from metarun.estimators.ageing import AgeingEvolution
from metarun.estimators.evolution import Evolution
from metarun.runtime.threads import alone

Schedule = Literal["constant", "cosine", "linear", "steps"]


def lr_scale(schedule: Schedule, progress: float, warmup: float, final: float, steps: Sequence[Sequence[float]] = ()) -> float:
    """Factor on the learning rate at ``progress`` 0..1: a linear warm-up over the first ``warmup``, then down to ``final``.

    ``cosine`` is SGDR without restarts (Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5); ``linear`` a straight line; ``steps``
    goes down in ``steps``, whose pairs are a progress and the factor from there on.
    """
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    if schedule == "constant":
        return 1.0
    if schedule == "steps":
        return ([1.0] + [factor for start, factor in steps if start <= progress])[-1]
    x = (progress - warmup) / (1 - warmup)
    fall = 0.5 * (1 + math.cos(math.pi * x)) if schedule == "cosine" else 1 - x
    return final + (1 - final) * fall


class MetaOptimizer:
    """The optimizer of the meta-parameters, and how it comes by their gradient.

    Args:
        parameters: the meta-parameters, or torch's groups of them, one for each player of a game. A group with an ``lr`` or ``betas`` of
            its own keeps that in place of the common one; one with ``every`` takes every so many-th step only; one with ``parts`` is of so
            many learners side by side, as many parameters of each.
        method: ``adam``, ``adamw`` or ``sgd`` (Nesterov when momentum > 0).
        lr: learning rate at its height.
        momentum: β1 of Adam, or SGD's momentum.
        weight_decay: L2 penalty (adam, sgd) or decoupled decay (adamw).
        schedule, warmup, final_lr, steps: see ``lr_scale``; ``final_lr`` is a fraction of ``lr``.
        clip_norm: largest norm of the meta-gradient of each group, or part of it; null for none.
        clip_value: largest absolute value of each element of the meta-gradient; null for none.
        hyper_lr: h, by which the learning rate itself descends: β ← β + h ∇F_t · u, where β u was the last step and ∇F_t is the gradient
            after it, clipped (Baydin et al. 2018, arXiv:1703.04782); β stays above a thousandth of ``lr``; 0 for never.
        gradient: ``backprop``, through the inner loop; or estimated by ``evolution``, without derivatives: ``es``, or ``pes``, which is
            unbiased for inner loops that are cut (``Algorithm.unrolls``).
        sigma: standard deviation of the perturbations of evolution strategies.
        pairs: antithetic pairs of perturbations for each task.

    Raises:
        UserError: ``steps`` do not rise, or there are none for the schedule of that name.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
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
        hyper_lr: Annotated[float, Ge(0)] = 0.0,
        gradient: Literal["backprop", "es", "pes"] = "backprop",
        sigma: Annotated[float, Gt(0)] = 0.01,
        pairs: Annotated[int, Ge(1)] = 1,
        steps: list[Annotated[list[Annotated[float, Ge(0)]], Len(2, 2)]] | None = None,
    ) -> None:
        starts = [start for start, _ in steps or []]
        if starts != sorted(starts) or (schedule == "steps" and not steps):
            raise UserError(f"optim.steps={steps} is not possible: write [[PROGRESS,FACTOR],…], the progress from 0 to 1, and rising")
        given: list[Any] = list(parameters)
        groups: list[dict[str, Any]] = given if given and isinstance(given[0], dict) else [{"params": given}]
        groups = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
        for group in groups:
            group.pop("descends", None)  # the gradient is that of all objectives together
        groups = [group for group in groups if group["params"]]
        self.clipped = [part for group in groups for part in _split(group["params"], group.pop("parts", 1))]
        self.parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self.known = {id(p) for p in self.parameters}
        if len(self.known) < len(self.parameters):
            raise UserError("groups() names a parameter twice: put each into one group")
        self.groups = [group["params"] for group in groups]
        self.own_lrs: list[float | None] = [group.get("lr") for group in groups]
        self.every: list[int] = [group.pop("every", 1) for group in groups]
        self.steps = 0
        self.evolution = None if gradient == "backprop" else Evolution(sigma, pairs, persistent=gradient == "pes")
        self.common = [p for group in groups for p in group["params"] if "lr" not in group]
        self.lr, self.least_lr, self.hyper_lr, self.clip_norm, self.clip_value = lr, 1e-3 * lr, hyper_lr, clip_norm, clip_value
        self.direction: list[Tensor] = []  # u, if the learning rate is to be learned
        self.scale = partial(lr_scale, schedule, warmup=warmup, final=final_lr, steps=steps or ())
        # All parameters at once: on a GPU in one kernel.
        how = "fused" if all(p.is_cuda for p in self.parameters) else "foreach"
        common: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, how: True}
        self.torch: torch.optim.Optimizer | None = None
        if not self.parameters:
            return  # nothing to learn, as for nearest neighbours
        if method == "sgd":
            self.torch = torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, **common)
        else:
            kind = torch.optim.Adam if method == "adam" else torch.optim.AdamW
            self.torch = kind(groups, betas=(momentum, 0.999), **common)

    def estimate(
        self, engine: Engine, algorithm: Algorithm, episodes: Episodes, slots: Slots, carried: Any, progress: float
    ) -> tuple[dict[str, float], Any]:
        """Put the meta-gradient of a meta-batch into ``.grad``; arguments and returns are those of ``Engine.train_on``."""
        if self.evolution:
            found = self.evolution.train_on(engine, algorithm, episodes, slots, carried, progress)
        else:
            found = engine.train_on(algorithm, episodes, slots, carried, progress)
        if any(p.grad is not None and id(p) not in self.known for p in algorithm.parameters()):
            lost = next(name for name, p in algorithm.named_parameters() if p.grad is not None and id(p) not in self.known)
            raise UserError(
                f"{lost} has a gradient, but is in none of {type(algorithm).__name__}.groups(), and would stay as it is: put it there; "
                "what learns later must not be frozen when training begins"
            )
        return found

    def carries(self, algorithm: Algorithm, begun: Any) -> Any:
        """A tree of the form that ``estimate`` carries on, for a learner whose tasks begin in the state ``begun``."""
        return self.evolution.carries(algorithm, begun) if self.evolution else begun

    @alone()
    def step(self, progress: float) -> dict[str, float]:
        """Update the meta-parameters from their ``.grad``, clear it, and return what to log.

        A gradient that is not finite is not applied; ``grad_norm`` says so.
        """
        if self.torch is None:
            return {}
        norms = [torch.nn.utils.clip_grad_norm_(group, self.clip_norm or math.inf) for group in self.clipped]
        norm = float(torch.linalg.vector_norm(torch.stack(norms))) if len(norms) > 1 else float(norms[0])
        if not math.isfinite(norm):
            return {"grad_norm": norm}
        if self.clip_value:
            torch.nn.utils.clip_grad_value_(self.parameters, self.clip_value)
        if self.direction:
            slope = sum(float((p.grad * u).sum()) for p, u in zip(self.common, self.direction) if p.grad is not None)
            self.lr = max(self.lr + self.hyper_lr * slope, self.least_lr)
        scale = self.scale(progress)
        for group, own in zip(self.torch.param_groups, self.own_lrs):
            group["lr"] = (self.lr if own is None else own) * scale
        for group, every in zip(self.groups, self.every):
            if self.steps % every:
                for p in group:
                    p.grad = None  # it sits this step out
        self.steps += 1
        before = [p.detach().clone() for p in self.common] if self.hyper_lr else []
        self.torch.step()
        self.direction = [(old - p.detach()) / self.lr for old, p in zip(before, self.common)]
        self.torch.zero_grad(set_to_none=True)
        return {"lr": self.lr * scale, "grad_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        if self.torch is None:
            return {}
        learned = {"learned_lr": self.lr, "way": self.direction} if self.hyper_lr else {}
        return self.torch.state_dict() | learned | {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.torch is None:
            return
        if self.hyper_lr:
            self.lr, self.direction = state["learned_lr"], [u.to(p.device) for u, p in zip(state["way"], self.common)]
        self.steps = state.get("steps", 0)  # the first checkpoints lack it, and had no group that sits steps out
        self.torch.load_state_dict({name: state[name] for name in ("state", "param_groups")})


def _split(params: list[nn.Parameter], parts: int) -> list[list[nn.Parameter]]:
    """A list in so many pieces of one length."""
    n = len(params) // parts
    return [params[i * n : (i + 1) * n] for i in range(parts)]


class Ageing(MetaOptimizer):
    """No gradient at all: ageing evolution of a method's programs, see ``AgeingEvolution``.

    Args:
        parameters: stay as the search sets them.
        population: candidates that are alive, the method's seeds at first.
        sample: of them, the best of whom has a child.
        children: candidates that an iteration tries.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        population: Annotated[int, Ge(1)],
        sample: Annotated[int, Ge(1)],
        children: Annotated[int, Ge(1)],
    ) -> None:
        if not (sample <= population and children <= population):
            raise UserError(f"optim.sample={sample} and optim.children={children} go up to optim.population={population}")
        plain: dict[str, Any] = {"weight_decay": 0.0, "schedule": "constant", "warmup": 0.0, "final_lr": 1.0}
        super().__init__((), method="sgd", lr=1.0, momentum=0.0, clip_norm=None, clip_value=None, **plain)
        self.search = AgeingEvolution(population, sample, children)

    def estimate(
        self, engine: Engine, algorithm: Algorithm, episodes: Episodes, slots: Slots, carried: Any, progress: float
    ) -> tuple[dict[str, float], Any]:
        return self.search.train_on(engine, algorithm, episodes, slots, progress)

    def state_dict(self) -> dict[str, Any]:
        return self.search.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.search.load_state_dict(state)
