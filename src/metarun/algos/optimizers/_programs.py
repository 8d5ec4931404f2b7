"""Update rules as short programs: registers, instructions as integers, and an interpreter in tensor operations.
In the manner of AutoML-Zero (Real, Liang, So, Le 2020, arXiv:2003.03384) and of Lion's search (Chen et al. 2023, arXiv:2302.06675)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# Registers: what a step begins with, what stays from step to step, what does not, and the update that is taken off the weights.
GIVEN = ("g", "w", "t")  # the gradient, the weight, and the number of the step, from 1 on
CONSTANTS, MEMORIES, TEMPORARIES = 4, 3, 3
FIRST_CONSTANT = len(GIVEN)
FIRST_MEMORY = FIRST_CONSTANT + CONSTANTS
FIRST_TEMPORARY = FIRST_MEMORY + MEMORIES
UPDATE = FIRST_TEMPORARY + TEMPORARIES
REGISTERS = UPDATE + 1
WRITABLE = REGISTERS - FIRST_MEMORY  # the last ones
NAMES = (
    *GIVEN,
    *(f"c{i}" for i in range(CONSTANTS)),
    *(f"m{i}" for i in range(MEMORIES)),
    *(f"x{i}" for i in range(TEMPORARIES)),
    "u",
)
TINY = 1e-12  # what a divisor or the argument of a logarithm is at least, and its root's square
LARGEST = 1e15  # in size, of what an operation returns: no register is without a number as long as gradient and weight are finite


def away_from_zero(b: Tensor) -> Tensor:
    return torch.where(b.abs() < TINY, torch.where(b < 0, -TINY, TINY), b)


def power(a: Tensor, b: Tensor) -> Tensor:
    return torch.exp((b * torch.log(a.abs() + TINY)).clamp(-80, 30))


# op(a, b, what the target held): name, and how it is computed. The order is that of the opcodes; append only, or stored rules change.
OPERATIONS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "keep": lambda a, b, old: old,
    "add": lambda a, b, old: a + b,
    "subtract": lambda a, b, old: a - b,
    "multiply": lambda a, b, old: a * b,
    "divide": lambda a, b, old: a / away_from_zero(b),
    "average": lambda a, b, old: b * old + (1 - b) * a,  # a running mean of a, b its decay
    "maximum": lambda a, b, old: torch.maximum(a, b),
    "minimum": lambda a, b, old: torch.minimum(a, b),
    "root": lambda a, b, old: torch.sqrt(a.abs() + TINY**2),
    "sign": lambda a, b, old: a.sign(),
    "size": lambda a, b, old: a.abs(),
    "complement": lambda a, b, old: 1 - a,
    "power": lambda a, b, old: power(a, b),
    "exponential": lambda a, b, old: torch.exp(a.clamp(-80, 30)),
    "logarithm": lambda a, b, old: torch.log(a.abs() + TINY),
    "tanh": lambda a, b, old: torch.tanh(a),
}
CODES = {name: code for code, name in enumerate(OPERATIONS)}


class Rule(NamedTuple):
    """A program and its constants."""

    program: Tensor  # [instructions, 4] int64: opcode, registers a and b, target
    logits: Tensor  # [CONSTANTS]; the constants are their sigmoids, in 0..1


def execute(program: Tensor, registers: Tensor) -> Tensor:
    """The registers [REGISTERS, coordinates] after a program [instructions, 4], for every coordinate alike.

    Every instruction computes all operations and takes one, so that programs of other rules run beside each other under torch.vmap.
    """
    places = torch.arange(REGISTERS, device=registers.device)[:, None]
    for instruction in program.unbind(0):
        code, a, b, target = instruction.unsqueeze(-1).unbind(0)  # [1] each
        read, other, old = (registers.index_select(0, place).squeeze(0) for place in (a, b, target))
        results = torch.stack([operation(read, other, old) for operation in OPERATIONS.values()])
        result = results.index_select(0, code).clamp(-LARGEST, LARGEST)
        registers = torch.where(places == target, result, registers)
    return registers


def assembled(lines: list[tuple[str, str, str, str]], constants: list[float], instructions: int) -> Rule:
    """A rule of lines (operation, a, b, target) by name, padded with instructions that do nothing.

    Raises:
        ValueError: there are more lines than ``instructions``.
    """
    if len(lines) > instructions:
        raise ValueError(f"algo.instructions={instructions} is too few: the longest seed has {len(lines)}; choose that or more")
    lines = lines + [("keep", "g", "g", "x0")] * (instructions - len(lines))
    rows = [[CODES[operation], *(NAMES.index(name) for name in names)] for operation, *names in lines]
    filled = constants + [0.5] * (CONSTANTS - len(constants))
    return Rule(torch.tensor(rows), torch.tensor([math.log(c) - math.log1p(-c) for c in filled]))


# c0 is the rate, c1 and c2 are decays.
SGD = [("multiply", "g", "c0", "u")]
MOMENTUM = [("multiply", "m0", "c1", "m0"), ("add", "m0", "g", "m0"), ("multiply", "m0", "c0", "u")]
SIGN_MOMENTUM = [("average", "g", "c1", "m0"), ("sign", "m0", "g", "x0"), ("multiply", "x0", "c0", "u")]
ADAM = [
    ("average", "g", "c1", "m0"),
    ("multiply", "g", "g", "x0"),
    ("average", "x0", "c2", "m1"),
    ("power", "c1", "t", "x0"),
    ("complement", "x0", "g", "x0"),
    ("divide", "m0", "x0", "x0"),
    ("power", "c2", "t", "x1"),
    ("complement", "x1", "g", "x1"),
    ("divide", "m1", "x1", "x1"),
    ("root", "x1", "g", "x1"),
    ("add", "x1", "c3", "x1"),
    ("divide", "x0", "x1", "x0"),
    ("multiply", "x0", "c0", "u"),
]
SEEDS: Mapping[str, tuple[list[tuple[str, str, str, str]], list[float]]] = {
    "sgd": (SGD, []),
    "momentum": (MOMENTUM, [0.9]),
    "sign_momentum": (SIGN_MOMENTUM, [0.9]),
    "adam": (ADAM, [0.9, 0.999, 1e-8]),
}


def seed(name: str, rate: float, instructions: int) -> Rule:
    """One of ``SEEDS`` with this learning rate, in 0..1."""
    lines, constants = SEEDS[name]
    return assembled(lines, [rate, *constants], instructions)


def mutated(rule: Rule, numbers: list[float]) -> Rule:
    """A rule with one change, which seven ``numbers`` in 0..1 choose: an instruction drawn anew, inserted or taken out (15 % each), one
    part of an instruction drawn anew (25 %), or the logit of a constant moved by a normal number of deviation 0.7 (30 %), to −25..15."""
    kind, where, *parts = numbers
    program, logits = rule.program.clone(), rule.logits.clone()
    at = int(where * len(program))
    drawn = torch.tensor(
        [
            int(parts[0] * len(OPERATIONS)),
            int(parts[1] * REGISTERS),
            int(parts[2] * REGISTERS),
            FIRST_MEMORY + int(parts[3] * WRITABLE),
        ]
    )
    if kind < 0.15:
        program[at] = drawn
    elif kind < 0.3:
        program = torch.cat([program[:at], drawn[None], program[at:-1]])  # the last one falls off, as a rule one that does nothing
    elif kind < 0.45:
        nothing = torch.tensor([[CODES["keep"], 0, 0, FIRST_TEMPORARY]])
        program = torch.cat([program[:at], program[at + 1 :], nothing])
    elif kind < 0.7:
        part = int(parts[4] * 4)
        program[at, part] = drawn[part]
    else:
        which, size = int(parts[0] * CONSTANTS), math.sqrt(-2 * math.log(max(parts[1], 1e-12))) * math.cos(2 * math.pi * parts[2])
        logits[which] = (logits[which] + 0.7 * size).clamp(-25, 15)
    return Rule(program, logits)
