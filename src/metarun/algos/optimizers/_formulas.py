"""What a program computes, as formulas: temporaries put in, what does not matter left out, the rest simplified by SymPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import sympy
from sympy import Expr, Symbol

from metarun.algos.optimizers._programs import CODES, CONSTANTS, FIRST_MEMORY, GIVEN, MEMORIES, NAMES, TINY, UPDATE, Rule


def nonzero(b: Expr) -> Expr:
    """What the interpreter takes an exact zero for, where it would divide by it or take its logarithm."""
    return sympy.Float(TINY) if b.is_zero else b


# As the operations of ``_programs``, without what guards them against numbers that are nearly zero or too large.
SYMBOLIC: Mapping[str, Callable[[Expr, Expr, Expr], Expr]] = {
    "keep": lambda a, b, old: old,
    "add": lambda a, b, old: a + b,
    "subtract": lambda a, b, old: a - b,
    "multiply": lambda a, b, old: a * b,
    "divide": lambda a, b, old: a / nonzero(b),
    "average": lambda a, b, old: b * old + (1 - b) * a,
    "maximum": lambda a, b, old: sympy.Max(a, b),
    "minimum": lambda a, b, old: sympy.Min(a, b),
    "root": lambda a, b, old: sympy.sqrt(sympy.Abs(a)),
    "sign": lambda a, b, old: sympy.sign(a),
    "size": lambda a, b, old: sympy.Abs(a),
    "complement": lambda a, b, old: 1 - a,
    "power": lambda a, b, old: sympy.Abs(nonzero(a)) ** b,
    "exponential": lambda a, b, old: sympy.exp(a),
    "logarithm": lambda a, b, old: sympy.log(sympy.Abs(nonzero(a))),
    "tanh": lambda a, b, old: sympy.tanh(a),
}
LONG = 400  # operations of a formula, beyond which it is printed as it is


def formulas(rule: Rule) -> list[str]:
    """The rule as lines: the memories that matter, of which a prime marks the new value, and what becomes of a weight.

    Memories begin at 0; g is the gradient, w the weight, t the number of the step, from 1 on. A rule that is not finite without the guards
    of its operations is given instruction by instruction.
    """
    try:
        return _simplified(rule)
    except ValueError:
        return _listed(rule)


def _listed(rule: Rule) -> list[str]:
    """The instructions that do something."""
    names = {code: name for name, code in CODES.items()}
    constants = {f"c{i}": _text(_rounded(value)) for i, value in enumerate(rule.logits.double().sigmoid().tolist())}
    rows = [(NAMES[target], names[code], NAMES[a], NAMES[b]) for code, a, b, target in rule.program.tolist()]
    lines = [f"{to} = {name}({constants.get(a, a)}, {constants.get(b, b)})" for to, name, a, b in rows if name != "keep"]
    return [*lines, "w' = w - u"]


def _simplified(rule: Rule) -> list[str]:
    """The rule as formulas.

    Raises:
        ValueError: one is not finite.
    """
    names = {code: name for name, code in CODES.items()}
    constants = [Symbol(f"c{i}", positive=True) for i in range(CONSTANTS)]
    values = dict(zip(constants, map(_rounded, rule.logits.double().sigmoid().tolist())))
    symbols: list[Expr] = [Symbol("g", real=True), Symbol("w", real=True), Symbol("t", positive=True)]
    assert len(symbols) == len(GIVEN)
    before = [Symbol(f"m{i}", real=True) for i in range(MEMORIES)]
    registers = [*symbols, *constants, *before]
    registers += [sympy.Integer(0)] * (len(NAMES) - len(registers))
    program = rule.program.tolist()
    memories = range(FIRST_MEMORY, FIRST_MEMORY + MEMORIES)
    last = {target: i for i, (code, _, _, target) in enumerate(program) if target in memories and names[code] != "keep"}
    written: dict[Symbol, Expr] = {}
    for i, (code, a, b, target) in enumerate(program):
        result = SYMBOLIC[names[code]](registers[a], registers[b], registers[target])
        if last.get(target) == i:  # what is read of it from here on is the new value
            new = Symbol(f"m{target - FIRST_MEMORY}'", real=True)
            written[new] = result
            result = new
        registers[target] = result
    update = registers[UPDATE]
    needed, lines = _memories(update, written), []
    for new in needed:  # grows on the way
        lines.append(f"{new} = {_text(_simplest(written[new], values))}")
        needed += [one for one in _memories(written[new], written) if one not in needed]
    update = _simplest(update, values)
    taken_off = f"({_text(update)})" if update.is_Add or str(update).startswith("-") else _text(update)
    return [*sorted(lines), "w' = w" if update == 0 else f"w' = w - {taken_off}"]


def _memories(formula: Expr, written: dict[Symbol, Expr]) -> list[Symbol]:
    """The new values of memories that a formula needs, be it that it reads the old one."""
    names = {str(symbol).rstrip("'") for symbol in formula.free_symbols}
    return [new for new in written if str(new).rstrip("'") in names]


def _simplest(formula: Expr, values: Mapping[Symbol, float]) -> Expr:
    formula = formula.subs(values)
    if formula.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo):
        raise ValueError(f"{formula} is not finite")
    if sympy.count_ops(formula) >= LONG:
        return formula
    return min((formula, sympy.simplify(formula), sympy.expand(formula)), key=sympy.count_ops)


def _text(formula: Expr) -> str:
    text: str = sympy.sstr(formula.xreplace({number: _rounded(float(number)) for number in formula.atoms(sympy.Float)}), full_prec=False)
    return text


def _rounded(value: float) -> sympy.Float:
    """To three digits; of a decay, which is just below 1, three of what it lacks."""
    lacking = 1 - abs(value)
    digits = 3 if not 0 < lacking < 0.1 else 2 - math.floor(math.log10(lacking))
    return sympy.Float(value, digits)
