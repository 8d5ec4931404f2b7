"""The house rules of an algorithm: one short file with its source, one YAML of the same name, abstract or final."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest
from helpers import ALGORITHMS, BUILDERS, PROBLEMS, Builder, accepts, class_of, composed

import metarun.algos
from metarun.algorithm import Algorithm
from metarun.config.compose import conf_dir
from metarun.errors import UserError
from metarun.run import Run

SOURCE = re.compile(r"[A-Z]\w+.*\b(19|20)\d\d\b|arXiv:\d{4}\.\d{4,5}")


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_its_yaml_bears_its_own_name(algo: str) -> None:
    assert composed(f"algo={algo}")["algo"]["name"] == algo
    assert (conf_dir() / "algo" / f"{algo}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_its_docstrings_name_a_source(algo: str) -> None:
    described = f"{sys.modules[class_of(algo).__module__].__doc__}\n{class_of(algo).__doc__}"
    assert SOURCE.search(described), "name the paper: authors and year, or its arXiv number"


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_its_file_is_short(algo: str) -> None:
    assert len(inspect.getsource(sys.modules[class_of(algo).__module__]).splitlines()) <= 150


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_it_is_abstract_or_final(algo: str) -> None:
    own, *parents = class_of(algo).__mro__[:-1]
    assert not inspect.isabstract(own)
    concrete = [
        c.__name__
        for c in parents
        if issubclass(c, Algorithm) and c.__module__.startswith(metarun.algos.__name__) and not inspect.isabstract(c)
    ]
    assert not concrete, f"{own.__name__} subclasses {concrete}: make it a flag, or share an abstract class"


def test_every_file_of_algorithms_has_a_yaml() -> None:
    files = {path.stem for path in Path(metarun.algos.__path__[0]).glob("*/[!_]*.py")}
    assert files == {class_of(algo).__module__.rpartition(".")[2] for algo in ALGORITHMS}


def test_every_algorithm_solves_some_problem() -> None:
    assert {param.values[0] for param in PROBLEMS} == set(ALGORITHMS)


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize(("kind", "build"), BUILDERS.items())
def test_a_kind_of_problem_is_refused_if_and_only_if_it_is_not_declared(algo: str, kind: str, build: Builder) -> None:
    assert accepts(build(algo)) == (kind in class_of(algo).kinds)
    if kind not in class_of(algo).kinds:
        with pytest.raises(UserError, match=f"algo={algo} is for .* but data=.* is {kind}; choose another"):
            Run(build(algo))
