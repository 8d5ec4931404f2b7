"""Rules as programs: those of old are among them, formulas say what the interpreter does, and a search never ends with a worse one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from helpers import interrupt_after, metrics_of, places, quadratics, random, same, small
from torch import Tensor

from metarun.algos.optimizers import _programs as programs
from metarun.algos.optimizers._formulas import formulas
from metarun.algos.optimizers._programs import Rule
from metarun.algos.optimizers._scratch import flat
from metarun.data.slots import Slots
from metarun.errors import UserError
from metarun.estimators.ageing import AgeingEvolution
from metarun.experiment import train
from metarun.run import Run
from metarun.storage import checkpoint
from metarun.task import select
from metarun.trainer import Interrupted

F64 = torch.float64
SEARCH = ["algo=symbolic_optimizer", "optim=ageing", "optim.population=12", "optim.sample=3", "optim.children=4", "algo.rates=[0.01,0.1]"]
CUT = ["algo.inner_steps=2", "algo.horizon=4", "algo.test_steps=4"]
SHORT = ["algo.inner_steps=6", "algo.horizon=6", "algo.test_steps=6"]


def once(rule: Rule, gradient: Tensor, weight: Tensor, t: int, memories: Tensor) -> tuple[Tensor, Tensor]:
    """The weights [coordinates] and memories after step t = 1, 2, …, in float64."""
    n = len(weight)
    constants = rule.logits.double().sigmoid()[:, None].expand(-1, n)
    given = torch.stack([gradient, weight, torch.full((n,), float(t), dtype=F64)])
    registers = programs.execute(rule.program, torch.cat([given, constants, memories, torch.zeros(4, n, dtype=F64)]))
    return weight - registers[programs.UPDATE], registers[programs.FIRST_MEMORY : programs.FIRST_TEMPORARY]


def lion_of_one_decay(p: Tensor, steps: int, rate: float) -> Tensor:
    m = torch.zeros_like(p)
    for _ in range(steps):
        m = 0.9 * m + 0.1 * torch.cos(p)
        p = p - rate * m.sign()
    return p


@pytest.mark.parametrize("name", programs.SEEDS)
def test_the_rules_of_old_are_programs(name: str) -> None:
    theirs: dict[str, Any] = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1),
        "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, 0.1),
    }
    start = random(6)
    weight, memories = start, torch.zeros(programs.MEMORIES, 6, dtype=F64)
    p = start.clone().requires_grad_()
    optimizer = theirs[name]([p]) if name in theirs else None
    for t in range(1, 31):
        weight, memories = once(programs.seed(name, 0.1, 16), torch.cos(weight), weight, t, memories)
        if optimizer:
            p.grad = torch.cos(p.detach())
            optimizer.step()
    expected = p.detach() if optimizer else lion_of_one_decay(start, 30, 0.1)
    torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)  # constants have the digits of float32
    assert not torch.allclose(weight, start, atol=0.05)


def descendants(n: int) -> list[Rule]:
    """The seeds, and rules that are many mutations away from them."""
    draw = torch.Generator().manual_seed(0)
    found = [programs.seed(name, 0.1, 16) for name in programs.SEEDS]
    for i in range(n):
        rule = found[i % 4]
        for _ in range(1 + i % 7):
            rule = programs.mutated(rule, torch.rand(7, generator=draw).tolist())
        found.append(rule)
    return found


def test_mutations_are_programs_and_differ() -> None:
    rules = descendants(300)
    limits = torch.tensor([len(programs.OPERATIONS), programs.REGISTERS, programs.REGISTERS, programs.REGISTERS])
    for rule in rules:
        assert rule.program.shape == (16, 4)
        assert ((rule.program >= 0) & (rule.program < limits)).all()
        assert (rule.program[:, 3] >= programs.FIRST_MEMORY).all()  # what a step begins with is not written over
        assert rule.logits.isfinite().all()
    changed = sum(not same(rule, rules[i % 4]) for i, rule in enumerate(rules[4:]))
    assert changed > 250


def test_programs_beside_each_other_are_programs_alone() -> None:
    rules = descendants(40)
    registers = random(len(rules), programs.REGISTERS, 5)
    together = torch.vmap(programs.execute)(torch.stack([rule.program for rule in rules]), registers)
    for rule, before, after in zip(rules, registers, together):
        torch.testing.assert_close(after, programs.execute(rule.program, before), rtol=1e-12, atol=1e-12)
    assert together.isfinite().all()  # whatever they compute


def test_formulas_say_what_the_interpreter_does() -> None:
    """Evaluated, they give the next weight and memories; on guards, as against division by zero, they are silent."""
    gradient, weight, memories = random(1, seed=1), random(1, seed=2), random(programs.MEMORIES, 1, seed=3)
    compared = 0
    for rule in descendants(30):
        moved, kept = once(rule, gradient, weight, 3, memories)
        known = {"g": gradient, "w": weight, "t": torch.tensor([3.0])} | {f"m{i}": memories[i] for i in range(programs.MEMORIES)}
        values: dict[str, Any] = {name: float(value) for name, value in known.items()}
        plain = {"Max": sympy.Max, "Min": sympy.Min}
        lines = [line.partition(" = ") for line in formulas(rule)]
        todo = {target: sympy.sympify(text.replace("'", "_new"), locals=plain) for target, _, text in lines}
        while todo:  # in whatever order they need each other
            ready = [target for target, formula in todo.items() if {str(s) for s in formula.free_symbols} <= set(values)]
            assert ready, f"{lines} name what is not there"
            for target in ready:
                value = todo.pop(target).subs(values)
                values[target.replace("'", "_new")] = float(value) if value.is_real and value.is_finite else math.inf
        if not all(abs(value) < 1e4 for value in values.values()):
            continue
        assert values["w_new"] == pytest.approx(float(moved), rel=0.02, abs=0.02)  # constants are printed with three digits
        for i in range(programs.MEMORIES):
            if f"m{i}_new" in values:
                assert values[f"m{i}_new"] == pytest.approx(float(kept[i]), rel=0.02, abs=0.02)
        compared += 1
    assert compared > 15


def test_formulas_leave_out_what_does_not_matter() -> None:
    idle = [("multiply", "g", "g", "x1"), ("average", "x1", "c2", "m2"), ("multiply", "m0", "c1", "m0"), ("add", "m0", "g", "m0")]
    rule = programs.assembled(
        [*idle, ("subtract", "m0", "m0", "x0"), ("multiply", "m0", "c0", "u"), ("add", "u", "x0", "u")], [0.1, 0.9], 9
    )
    assert formulas(rule) == ["m0' = g + 0.9*m0", "w' = w - 0.1*m0'"]
    still = programs.assembled([("multiply", "g", "x0", "u")], [], 3)
    assert formulas(still) == ["w' = w"]


@pytest.mark.parametrize(
    "lines",
    [
        [("logarithm", "x0", "g", "x1"), ("maximum", "x1", "g", "u")],  # SymPy compares nothing with an infinite number
        [("subtract", "c1", "c2", "x0"), ("divide", "g", "x0", "x1"), ("minimum", "x1", "w", "u")],  # zero once constants are put in
        [("divide", "x0", "x1", "x2"), ("sign", "x2", "g", "u")],
    ],
)
def test_a_rule_that_divides_by_zero_is_told_without_nonsense(lines: list[tuple[str, str, str, str]]) -> None:
    told = formulas(programs.assembled(lines, [], 5))
    assert not [line for line in told if "zoo" in line or "nan" in line or "oo" in line]
    assert told[-1].startswith("w' = w")
    if "subtract" in lines[0]:
        assert told[:2] == ["x0 = subtract(0.5, 0.5)", "x1 = divide(g, x0)"]


def test_a_cut_task_goes_on_by_the_rule_of_today() -> None:
    """SGD on quadratics in closed form, its rate moved between the first two steps of every task and the next two."""
    run = Run(quadratics("algo=symbolic_optimizer", "algo.seeds=[sgd]", "algo.rates=[0.1]", *CUT))
    algorithm, episodes = run.algorithm, run.episodes("train")
    carried: Any = ()
    context, query, *_ = select(episodes.batch([0]), 0)
    weight = flat(algorithm.begin(context).fast).detach()
    for i, rate in enumerate((0.1, 0.05)):
        with torch.no_grad():
            algorithm.logits[0] = math.log(rate / (1 - rate))
        algorithm.zero_grad(set_to_none=True)
        metrics, carried = run.engine.train_on(algorithm, episodes, Slots([0], [i == 0], [i], 2), carried, 0.0)
        logit = algorithm.logits[0].detach().clone().requires_grad_()
        for _ in range(2):
            residuals = context.support.x @ weight.detach() - context.support.y[:, 0]
            weight = weight - logit.sigmoid() * 2 * context.support.x.T @ residuals
        loss = (query.x @ weight - query.y[:, 0]).square().sum()
        assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert algorithm.logits.grad is not None
        torch.testing.assert_close(algorithm.logits.grad[0], torch.autograd.grad(loss, logit)[0], rtol=1e-4, atol=1e-6)
        weight = weight.detach()


def test_a_search_wants_whole_tasks() -> None:
    run = Run(quadratics(*SEARCH, *CUT))
    with pytest.raises(UserError, match=r"whole tasks: choose algo.inner_steps=4, as many as algo.horizon"):
        AgeingEvolution(12, 3, 4).train_on(run.engine, run.algorithm, run.episodes("train"), places(0), 0.0)


def test_a_search_ends_with_nothing_worse_than_its_seeds() -> None:
    run = Run(quadratics(*SEARCH, *SHORT))
    evolution = AgeingEvolution(12, 3, 4)
    episodes = run.episodes("train")
    found = []
    for _ in range(8):
        metrics, _ = evolution.train_on(run.engine, run.algorithm, episodes, places(*range(4)), 0.0)
        found.append(metrics["loss"])
    assert found == sorted(found, reverse=True)
    seeds = evolution.judged(run.engine, run.algorithm, episodes.batch(range(4)), run.algorithm.seeds(), 0.0)
    assert len(seeds) == 8
    assert found[-1] <= min(value / 4 for value in seeds)
    assert evolution.tried == 12 + 7 * 4
    assert len(evolution.members) == 12
    # The method is what was best, and alone it is worth the same.
    alone = evolution.judged(run.engine, run.algorithm, episodes.batch(range(4)), [evolution.best], 0.0)[0] / 4
    assert alone == pytest.approx(found[-1], rel=1e-5)
    assert torch.equal(run.algorithm.program, evolution.best["program"])


def test_a_rule_without_numbers_is_the_worst() -> None:
    run = Run(quadratics(*SEARCH, *SHORT))
    huge = programs.assembled([("exponential", "w", "g", "x0"), ("divide", "x0", "x1", "u")], [], 16)._asdict()
    evolution = AgeingEvolution(12, 3, 4)
    values = evolution.judged(run.engine, run.algorithm, run.episodes("train").batch([0]), [huge, run.algorithm.seeds()[0]], 0.0)
    assert not values[0] < 1e20
    assert values[1] < 100


@pytest.mark.slow
def test_a_search_cut_in_the_middle_of_its_population_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = quadratics(*SEARCH, *SHORT)
    straight = train(values, tmp_path / "straight")
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        with pytest.raises(Interrupted):
            train(values, tmp_path / "cut")
    train(values, tmp_path / "cut", resume=True)
    ends = [checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("straight", "cut")]
    assert same(ends[0]["outer"], ends[1]["outer"])
    assert same(ends[0]["algorithm"], ends[1]["algorithm"])
    assert metrics_of(tmp_path / "straight") == metrics_of(tmp_path / "cut")
    assert straight["found"]["rule"][-1].startswith("w' = w")


def test_without_a_search_its_constants_are_learned_by_their_gradient() -> None:
    run = Run(quadratics("algo=symbolic_optimizer", "algo.seeds=[adam]", "algo.rates=[0.1]", *SHORT))
    run.engine.meta_gradient(run.algorithm, run.episodes("train").batch(range(3)), 0.0)
    assert run.algorithm.logits.grad is not None
    assert (run.algorithm.logits.grad[:3].abs() > 0).all()


def test_what_cannot_be_searched_is_refused() -> None:
    run = Run(small("algo=maml", "optim=ageing"))
    with pytest.raises(UserError, match=r"optim=ageing searches programs, and this method has none"):
        AgeingEvolution(2, 1, 1).train_on(run.engine, run.algorithm, run.episodes("train"), None, 0.0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"algo\.instructions=5 is too few: the longest seed has 13"):
        Run(quadratics("algo=symbolic_optimizer", "algo.instructions=5"))
    with pytest.raises(UserError, match=r"algo\.seeds has 'adom': choose one or more of sgd, momentum"):
        Run(quadratics("algo=symbolic_optimizer", "algo.seeds=[adom]"))
    run = Run(quadratics(*SEARCH, "optim.sample=13"))
    with pytest.raises(UserError, match=r"optim\.sample=13 and optim\.children=4 go up to optim\.population=12"):
        run.valid.optim.build(run.algorithm.groups())
