"""The algorithm itself, not a network: an update rule as a short program, found by evolution, printed as formulas.
In the manner of Real, Liang, So, Le 2020 (AutoML-Zero), arXiv:2003.03384, and Chen et al. 2023 (Lion), arXiv:2302.06675."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from metarun import inner
from metarun.abilities import Evolvable, Word
from metarun.algos.optimizers import _programs as programs
from metarun.algos.optimizers._by_rule import Training
from metarun.algos.optimizers._learned import LearnedOptimizer
from metarun.algos.optimizers._programs import Rule
from metarun.algos.optimizers._scratch import Fast, flat, shaped
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class SymbolicOptimizer(LearnedOptimizer, Evolvable):
    """An update rule as a program.

        registers: g, w, t | constants c0..c3 in 0..1 | memories m0..m2, at first 0 | x0..x2, u, at every step 0
        θ_{k+1} = θ_k − u after ``instructions`` instructions  target ← operation(a, b),   for every coordinate alike
        min over programs and constants:  mean over tasks of f(θ_K)

    The sixteen operations are ``_programs.OPERATIONS``, with what guards them against division by zero and the like; memories, x and u can
    be targets. ``optim=ageing`` searches both, from SGD, momentum, sign-momentum and Adam on at each of ``rates``; any other ``optim``
    leaves the program at the first seed and rate, and learns its constants, sigmoids of logits, by their gradient.

    Deviations: (1) AutoML-Zero evolves set-up, prediction and learning from nothing, Lion's search runs on large nets with hashes that
    spare equal programs; here it is the rule alone, in thousands of trials. (2) One opcode is a running mean, which others build of three.

    Args:
        net, problem, settings: as of ``LearnedOptimizer``.
        instructions: of a program; the longest seed has 13.
        seeds: names of the rules that the search begins with.
        rates: learning rates of each of them, in 0..1.
    """

    every_state = False

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        instructions: Annotated[int, Ge(1)],
        seeds: list[str],
        rates: list[Annotated[float, Gt(0), Lt(1)]],
        **settings: Any,
    ) -> None:
        if not rates or not seeds or (unknown := set(seeds) - set(programs.SEEDS)):
            wrong = f"algo.seeds has '{min(unknown)}'" if rates and seeds else "algo.seeds and algo.rates have none"
            raise ValueError(f"{wrong}: choose one or more of {', '.join(programs.SEEDS)}, and one or more rates")
        super().__init__(net, problem, **settings)
        self.instructions, self.beginnings = instructions, [(name, rate) for name in seeds for rate in rates]
        first = self.seeds()[0]
        self.register_buffer("program", first["program"])
        self.program: Tensor
        self.logits = nn.Parameter(first["logits"])

    def remember(self, fast: Fast) -> Tensor:
        weights = flat(fast)
        return weights.new_zeros(programs.MEMORIES, len(weights))

    def advance(self, fast: Fast, grads: Fast, memory: Tensor, k: int | Tensor) -> tuple[Fast, Tensor]:
        return moved(Rule(self.program, self.logits), fast, grads, memory, k)

    def step(self, state: Training, context: Context, k: int | Tensor) -> Training:
        if not context.extras.keys() >= {*Rule._fields}:
            return super().step(state, context, k)
        candidate = Rule(*(context.extras[name] for name in Rule._fields))
        fast, memories = moved(candidate, state.fast, self.slope(state.fast, context, k), state.memory, k)
        return state._replace(fast=fast, memory=memories)

    def seeds(self) -> list[Word]:
        return [programs.seed(name, rate, self.instructions)._asdict() for name, rate in self.beginnings]

    def child(self, parent: Word, key: Tensor) -> Word:
        return programs.mutated(Rule(**parent), inner.uniform(key, (7,)).tolist())._asdict()

    @torch.no_grad()
    def adopt(self, word: Word) -> None:
        self.program.copy_(word["program"])
        self.logits.copy_(word["logits"])

    def found(self) -> dict[str, Any]:
        from metarun.algos.optimizers import _formulas  # and with it SymPy, which takes half a second

        return {"rule": _formulas.formulas(Rule(self.program.cpu(), self.logits.detach().cpu()))}


def moved(rule: Rule, fast: Fast, grads: Fast, memories: Tensor, k: int | Tensor) -> tuple[Fast, Tensor]:
    """Weights and memories [MEMORIES, coordinates] after step k, counted from 0, by a rule."""
    weights, gradient = flat(fast), flat(grads)
    age = torch.ones_like(weights) * (k + 1)
    constants = torch.sigmoid(rule.logits.to(weights.dtype))[:, None].expand(-1, len(weights))
    free = weights.new_zeros(programs.TEMPORARIES + 1, len(weights))
    registers = torch.cat([torch.stack([gradient, weights, age]), constants, memories, free])
    registers = programs.execute(rule.program, registers)
    return shaped(weights - registers[programs.UPDATE], fast), registers[programs.FIRST_MEMORY : programs.FIRST_TEMPORARY]
