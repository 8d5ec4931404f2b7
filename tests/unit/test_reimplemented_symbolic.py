"""The optimizer that is a program against its instructions written out a second time, one number after the other: the loss after six steps
on quadratic functions, and its gradient in the constants, for the rules of old and for programs that mutations made of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from helpers import engine, in_float64, quadratics
from reimplemented import close
from torch import Tensor

from metarun import inner
from metarun.algos.optimizers import _programs as programs
from metarun.algos.optimizers.symbolic_optimizer import SymbolicOptimizer
from metarun.task import Task, count, select

F64, STEPS, TASKS = torch.float64, 6, 3
WORDS = ["algo=symbolic_optimizer", *(f"algo.{key}={STEPS}" for key in ("inner_steps", "horizon", "test_steps"))]
REGISTERS = ["g", "w", "t", "c0", "c1", "c2", "c3", "m0", "m1", "m2", "x0", "x1", "x2", "u"]
LARGEST, LEAST = 1e15, 1e-12


class Line(NamedTuple):
    """target ← operation(a, b)."""

    operation: str
    a: str
    b: str
    target: str


def lines(program: Tensor) -> list[Line]:
    """What the numbers of a program [instructions, 4] say."""
    names = list(programs.OPERATIONS)
    return [Line(names[operation], *(REGISTERS[place] for place in places)) for operation, *places in program.tolist()]


def result(operation: str, a: Tensor, b: Tensor, old: Tensor) -> Tensor:
    """Of numbers []."""
    if operation == "divide" and b.detach().abs() < LEAST:
        b = torch.tensor(-LEAST if b < 0 else LEAST, dtype=F64)
    found = {
        "keep": lambda: old,
        "add": lambda: a + b,
        "subtract": lambda: a - b,
        "multiply": lambda: a * b,
        "divide": lambda: a / b,
        "average": lambda: b * old + (1 - b) * a,
        "maximum": lambda: torch.max(a, b),
        "minimum": lambda: torch.min(a, b),
        "root": lambda: (abs(a) + LEAST**2) ** 0.5,
        "sign": lambda: torch.sign(a),
        "size": lambda: abs(a),
        "complement": lambda: 1 - a,
        "power": lambda: torch.exp((b * torch.log(abs(a) + LEAST)).clamp(-80, 30)),
        "exponential": lambda: torch.exp(a.clamp(-80, 30)),
        "logarithm": lambda: torch.log(abs(a) + LEAST),
        "tanh": lambda: torch.tanh(a),
    }[operation]()
    return found.clamp(-LARGEST, LARGEST)


def trained(program: list[Line], logits: Tensor, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """Weights [d] after the steps from ``start`` on, by the gradients of ‖x w − y‖², which count as constants."""
    constants = {f"c{i}": 1 / (1 + torch.exp(-logit)) for i, logit in enumerate(logits)}
    weights = list(start)
    memories = [{f"m{j}": torch.zeros((), dtype=F64) for j in range(3)} for _ in weights]
    for k in range(STEPS):
        gradient = 2 * x.T @ (x @ torch.stack(weights).detach() - y)
        for i, (weight, memory) in enumerate(zip(weights, memories)):
            register = {"g": gradient[i], "w": weight, "t": torch.tensor(float(k + 1), dtype=F64), **constants, **memory}
            register |= {name: torch.zeros((), dtype=F64) for name in ("x0", "x1", "x2", "u")}
            for operation, a, b, target in program:
                register[target] = result(operation, register[a], register[b], register[target])
            weights[i], memories[i] = weight - register["u"], {name: register[name] for name in memory}
    return torch.stack(weights)


def checked(algorithm: SymbolicOptimizer, tasks: Task) -> float:
    """Holds loss and gradient to the second writing, and tells the gradient's length; infinity where the loss is beyond 1e9."""
    program, logits = lines(algorithm.program), algorithm.logits.detach().clone().requires_grad_()
    losses = []
    for task in (select(tasks, i) for i in range(count(tasks))):
        (x, y), (asked, truth) = task.context.support, task.query[:2]
        start = 0.01 * inner.normal(task.context.key + 1, (1, x.shape[1]), 0).double().flatten()
        losses.append(((asked @ trained(program, logits, x, y[:, 0], start) - truth[:, 0]) ** 2).sum())
    loss = torch.stack(losses).mean()
    slope = torch.autograd.grad(loss, logits, allow_unused=True)[0] if loss.requires_grad else None
    algorithm.train().zero_grad(set_to_none=True)
    found = engine().meta_gradient(algorithm, tasks, 0.0)
    assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-9 if loss < 1e9 else 1e-6)  # differences of huge numbers lose digits
    if loss >= 1e9:
        return math.inf
    ours = torch.zeros(4, dtype=F64) if algorithm.logits.grad is None else algorithm.logits.grad
    close(ours, torch.zeros(4, dtype=F64) if slope is None else slope)
    return float(ours.norm())


@pytest.fixture(scope="module")
def learner() -> tuple[SymbolicOptimizer, Task]:
    algorithm, tasks = in_float64(quadratics(*WORDS), TASKS)
    assert isinstance(algorithm, SymbolicOptimizer)
    return algorithm, tasks


@pytest.mark.parametrize("name", programs.SEEDS)
def test_a_rule_of_old_steps_as_written(name: str, learner: tuple[SymbolicOptimizer, Task]) -> None:
    algorithm, tasks = learner
    algorithm.adopt(programs.seed(name, 0.1, algorithm.instructions)._asdict())
    assert checked(algorithm, tasks) > 0


def test_mutants_step_as_written(learner: tuple[SymbolicOptimizer, Task]) -> None:
    """Nonsense as well: numbers beyond all bounds are cut alike."""
    algorithm, tasks = learner
    uniform, lengths = torch.Generator().manual_seed(3), []
    for i in range(16):
        rule = programs.seed(list(programs.SEEDS)[i % len(programs.SEEDS)], 0.1, algorithm.instructions)
        for _ in range(1 + i % 9):
            rule = programs.mutated(rule, torch.rand(7, generator=uniform).tolist())
        algorithm.adopt(rule._asdict())
        lengths.append(checked(algorithm, tasks))
    assert sum(0 < length < math.inf for length in lengths) > 8
    assert math.inf in lengths
