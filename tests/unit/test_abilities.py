"""Abilities: what a method says that nobody asks for is refused in one line, memory and mapping go through whatever is built around it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from helpers import Patterns, engine, small
from torch import Tensor, nn

from metarun.abilities import FLAGS_OF_OLD, OneByOne, refuse_forgotten
from metarun.algorithm import Algorithm, State
from metarun.algos.metric.protonet import ProtoNet
from metarun.errors import UserError
from metarun.learners import Prototypes
from metarun.run import Run
from metarun.task import Context, select

ENSEMBLE = ("algo=emaml", "algo.members=2")
sys.modules["metarun.algos.able"] = sys.modules["metarun.data.able"] = sys.modules[__name__]


class Plain(Algorithm):
    """Class means."""

    kinds = frozenset({"classification"})
    begin = ProtoNet.begin
    predict = ProtoNet.predict


class Going(Plain):
    """Knows how to go on, and does not say so."""

    def carry_on(self, before: State, fresh: State, context: Context) -> Prototypes:
        return fresh


class Weighing(Plain):
    """Weighs, and does not say so."""

    def example_weights(self, state: State) -> Tensor:
        return state.means[:, 0]


class Alone(ProtoNet, OneByOne):
    """Cannot be mapped."""


class Serial(Patterns):
    """Data with a flag of old."""

    batchable = False


def values(method: type[Algorithm], *around: str) -> dict[str, Any]:
    section = {"_target_": f"metarun.algos.able.{method.__name__}", "name": "able"}
    found = small("net=mlp", "net.sizes=[8]", *(around or ("algo=protonet",)))
    if not around:
        return {**found, "algo": section}
    return {**found, "algo": {**found["algo"], "member": section}}


OLD = {"players": ("loss",), "exports": ("weights",), "keeps": "states", "batchable": False}


def test_a_flag_of_old_is_told_what_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = Run(values(Plain)).algorithm
    for flag in FLAGS_OF_OLD:
        with monkeypatch.context() as patch:
            patch.setattr(Plain, flag, OLD.get(flag, True), raising=False)
            with pytest.raises(UserError, match=rf"^Plain\.{flag} is a flag no more: (derive it from metarun\.abilities\.[A-Z]|let ).*$"):
                refuse_forgotten(algorithm)


def test_a_member_with_a_flag_of_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plain, "continues", True, raising=False)
    for around in ((), ENSEMBLE):
        with pytest.raises(UserError, match=r"^Plain\.continues is a flag no more"):
            Run(values(Plain, *around))


@pytest.mark.parametrize(("method", "said"), [(Going, "carry_on.*Continues"), (Weighing, "example_weights.*WeighsExamples")])
def test_what_is_asked_of_an_ability_alone_is_not_silently_ignored(method: type[Algorithm], said: str) -> None:
    with pytest.raises(UserError, match=f"^{method.__name__} has {said}: derive it from that as well$"):
        Run(values(method))


def test_things_of_its_own_may_have_these_names() -> None:
    algorithm = Run(values(Plain)).algorithm
    algorithm.players = nn.ModuleList([nn.Linear(1, 1)])
    refuse_forgotten(algorithm)


def test_data_with_a_flag_of_old_are_told() -> None:
    found = {**values(Plain), "data": {"_target_": "metarun.data.able.Serial", "name": "serial"}}
    with pytest.raises(UserError, match=r"^Serial\.batchable is a flag no more: derive the simulator from metarun\.abilities\.OneByOne$"):
        Run(found)


def test_what_goes_one_by_one_does_so_in_whatever_is_built_around_it() -> None:
    assert not engine().scans(Run(values(Alone)).algorithm)
    assert not engine().scans(Run(values(Alone, *ENSEMBLE)).algorithm)
    assert not engine().scans(Run(values(Alone, "algo=imaginary")).algorithm)
    assert engine().scans(Run(values(Plain)).algorithm)


@pytest.mark.parametrize("around", [(), ENSEMBLE, ("algo=metagan",), ("algo=learned_augment",)])
def test_what_a_loop_keeps_is_said_through_whatever_is_built_around_it(around: tuple[str, ...]) -> None:
    for mode, kept in (("mixed", "states"), ("unroll", "auto")):
        found = small(*(around or ("algo=maml",)), "net.hidden=8")
        member = small("algo=maml", f"algo.mode={mode}", "algo.first_order=false")["algo"]
        found["algo"] = {**found["algo"], "member": member} if around else member
        run = Run(found)
        assert run.algorithm.footprint(select(run.episodes("train").batch([0]), 0), True).kept == kept


def test_what_every_method_is_asked_for_stays_little() -> None:
    """What only some methods can do is an ability."""
    flags = [name for name, value in vars(Algorithm).items() if not name.startswith("_") and not callable(value)]
    flags = [name for name in flags if not isinstance(vars(Algorithm)[name], (property, classmethod))]
    assert set(Algorithm.__annotations__) <= set(flags)
    assert len(flags) <= 11, "make it a class of metarun.abilities"
