"""A learned optimizer outside of metarun: what ``metarun export RUN optimizer`` writes, and how ``torch.optim`` would have it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarun.abilities import UpdateRule
from metarun.config import schema
from metarun.errors import UserError
from metarun.nets.mlp import MLP
from metarun.problem import EpisodeSpec, Problem, Regression
from metarun.run import Run
from metarun.runtime.private import tree_flatten, tree_unflatten
from metarun.storage import checkpoint, foreign
from metarun.storage.files import replace_file

FORMAT = "metarun optimizer 1"
ONE = "w"  # what a rule is told a parameter is called


def export(run: Run, out: Path, picture: Path | None) -> dict[str, Any]:
    """Write the rule of a run to ``out``: its settings, plain values, and its tensors; returns what was written.

    Raises:
        UserError: a picture is wanted, or there is no rule that was learned.
    """
    if picture:
        raise UserError("an optimizer has no picture: leave --sheet out")
    algorithm, method = run.algorithm, run.values["algo"]["name"]
    assert isinstance(algorithm, UpdateRule)
    if not algorithm.learns:
        raise UserError(f"algo={method} has not learned its rule, which is one of torch.optim: there is nothing to export")
    weights = {name: w.detach().cpu() for name, w in algorithm.lasting(algorithm.state_dict()).items()}
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "algo": run.values["algo"], "weights": weights}, buffer)
    replace_file(out, lambda handle: handle.write(buffer.getbuffer()))
    return {"optimizer": str(out), "method": method, "numbers": sum(w.numel() for w in weights.values())}


def optimizer(file: str | Path, params: Iterable[Any], lr: float = 1.0, steps: int | None = None) -> Optimizer:
    """A learned optimizer for the parameters of any net, as those of ``torch.optim``.

    Args:
        file: what ``metarun export RUN optimizer --out FILE`` wrote. It is read with torch's safe loader: nothing in it is executed.
        params: the parameters, or groups of them.
        lr: a factor on what the rule says, 1 for just that; learning-rate schedulers of torch change it.
        steps: how many steps the training will have, for a rule that looks at the time (``mlp_optimizer``); None: as many as the tests
            of its run (``algo.test_steps``).

    Raises:
        UserError: no such file, or no such optimizer in it.
    """
    if steps is not None and steps < 1:
        raise UserError(f"steps={steps} is not possible: it is how many steps the training will have, 1 or more")
    return Optimizer(params, _read(Path(file).expanduser(), steps), lr)


class Optimizer(torch.optim.Optimizer):
    """A rule of metarun's at work on parameters, each by itself.

    Args:
        params, lr: see ``optimizer``.
        rule: the method, whose own net does not matter.
    """

    def __init__(self, params: Iterable[Any], rule: UpdateRule, lr: float = 1.0) -> None:
        if not lr >= 0:
            raise UserError(f"lr={lr} is not possible: it is a factor on what the optimizer does, 0 or more")
        super().__init__(params, {"lr": lr})
        self._rule = rule
        self._rules: dict[torch.device, UpdateRule] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure``, if given, computes the loss and its gradients anew, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, group["lr"])
        return loss

    def _move(self, p: nn.Parameter, slope: Tensor, lr: float) -> None:
        if p.device not in self._rules:
            self._rules[p.device] = deepcopy(self._rule).to(p.device)
        rule, state = self._rules[p.device], self.state[p]
        weight = p.detach().float()
        start, form = tree_flatten(rule.remember({ONE: weight}))
        # torch gives all that it loads of a state the type of the parameter.
        kept: list[Tensor] = [leaf.to(like.dtype) for leaf, like in zip(state.get("memory", start), start)]
        moved, memory = rule.advance({ONE: weight}, {ONE: slope.float()}, tree_unflatten(kept, form), state.get("step", 0))
        state["step"], state["memory"] = state.get("step", 0) + 1, tree_flatten(memory)[0]
        p.add_((moved[ONE] - weight).to(p.dtype), alpha=lr)


def _read(path: Path, steps: int | None) -> UpdateRule:
    """The method that a file holds, for a training of so many steps.

    Raises:
        UserError: it holds none.
    """
    if not path.exists():
        raise UserError(f"there is no file {path}: write one with metarun export RUN optimizer --out {path}")
    try:
        held = checkpoint.saved(path)
        if not (isinstance(held, dict) and held.get("format") == FORMAT):
            raise ValueError("another program's")
        section, weights = dict(held["algo"]), dict(held["weights"])
        if not all(w.isfinite().all() for w in weights.values() if w.is_floating_point()):
            raise ValueError("numbers that are none")
    except Exception:  # scrambled bytes make the unpickler raise whatever it stumbles over
        raise UserError(f"{path} is no optimizer of metarun's: write one with metarun export RUN optimizer --out FILE") from None
    target = schema.target_of({"algo": section}, "algo")
    if not issubclass(target, UpdateRule):
        raise UserError(f"{path} holds algo={foreign.printable(str(section.get('name')))}, which is no optimizer")
    settings = schema.check(target, schema.without_meta(section), "algo.") | ({"test_steps": steps} if steps else {})
    spec = EpisodeSpec(way=1, shot=1, query=1)
    problem = Problem(Regression(), (1,), 1, 0, spec, spec)
    with torch.random.fork_rng(devices=[]):  # a library leaves its caller's random numbers alone
        rule: UpdateRule = target(MLP((1,), sizes=[], activation="relu", norm="none"), problem, **settings)
    own = rule.state_dict()
    try:
        rule.load_state_dict(weights | {name: own[name] for name in own.keys() - target.lasting(own).keys()})
    except RuntimeError as error:
        raise UserError(f"{path} does not fit this version of metarun: {str(error).splitlines()[-1].strip()}") from None
    return rule.requires_grad_(False).eval()
