"""However the engine maps over tasks, and however second derivatives are made, the meta-gradient is the same, to 1e-9 in float64.
Every algorithm of conf/algo, every net of conf/net, every norm."""

from __future__ import annotations

from typing import get_args

import pytest
from helpers import (
    LEARNING_CLASSIFIERS,
    NETS_WITH_NORMS,
    PROBLEMS,
    Builder,
    engine,
    in_float64,
    meta_gradient,
    nets_for,
    relative_error,
    small,
    with_nets,
)

from metarun.contract import checks
from metarun.inner import Mode
from metarun.nets.norm import NormKind


def test_every_norm_is_tried_with_some_net() -> None:
    assert {norm for _, norm in NETS_WITH_NORMS} == set(get_args(NormKind))


@pytest.mark.parametrize(("algo", "net", "norm"), with_nets(LEARNING_CLASSIFIERS))
def test_vmap_and_loop_and_every_gradient_mode_agree(algo: str, net: str, norm: str) -> None:
    values = small("way=2", "query=1", f"algo={algo}", f"net={net}", f"net.norm={norm}")
    algorithm, tasks = in_float64(values, tasks=2)
    loop = meta_gradient(algorithm, tasks, engine("loop"))
    assert loop.norm() > 0
    assert relative_error(meta_gradient(algorithm, tasks, engine("vmap")), loop) < 1e-9
    for mode in set(get_args(Mode)) - {"none"} if "mode" in values["algo"] else ():
        algorithm, tasks = in_float64({**values, "algo": {**values["algo"], "mode": mode}}, tasks=2)
        assert relative_error(meta_gradient(algorithm, tasks, engine("vmap")), loop) < 1e-9


@pytest.mark.slow  # with every net; with one of each kind the next test asks for it
@pytest.mark.parametrize(("algo", "net"), [(algo, net) for algo in LEARNING_CLASSIFIERS for net in nets_for(algo)])
def test_chunks_change_nothing(algo: str, net: str) -> None:
    algorithm, tasks = in_float64(small("way=2", "query=1", f"algo={algo}", f"net={net}"), tasks=3)
    whole = meta_gradient(algorithm, tasks, engine("vmap"))
    assert relative_error(meta_gradient(algorithm, tasks, engine("vmap", chunk=2)), whole) < 1e-9


@pytest.mark.parametrize(("algo", "problem"), PROBLEMS)
def test_every_kind_of_problem_agrees(algo: str, problem: Builder) -> None:
    checks.mapping(problem(algo))
