"""MAML's meta-gradient against implementations that are not ours, in float64: native layers in plain autograd loops, and learn2learn.
learn2learn is compared where it is installed."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from helpers import engine, meta_gradient, relative_error
from native import LR, Native, clone_and_adapt, flat, ours
from torch import Tensor

from metarun.errors import MissingLibrary
from metarun.protocols.episodes import EVERY
from metarun.runtime.learn2learn import library

CASES = [(net, steps, first_order) for net in ("conv4", "mlp") for steps in range(1, 6) for first_order in (False, True)]


def gradient(native: Native, loss: Tensor) -> Tensor:
    return flat(native.in_our_order(torch.autograd.grad(loss, list(native.model.parameters()))))


@pytest.mark.parametrize(("net", "steps", "first_order"), CASES)
def test_the_meta_gradient_equals_plain_loops_over_native_layers(net: str, steps: int, first_order: bool) -> None:
    learner, tasks = ours("maml", net, steps, first_order)
    native = Native(net, learner)
    expected = gradient(native, native.plain_loops(tasks, steps, first_order))
    assert relative_error(meta_gradient(learner, tasks, engine()), expected) < 1e-9


@pytest.mark.parametrize(("net", "steps", "first_order"), CASES)
def test_the_meta_gradient_equals_learn2learn(learn2learn: ModuleType, net: str, steps: int, first_order: bool) -> None:
    learner, tasks = ours("maml", net, steps, first_order)
    native = Native(net, learner)
    theirs = learn2learn.algorithms.MAML(native.model, lr=LR, first_order=first_order)
    expected = gradient(native, clone_and_adapt(theirs, tasks, steps))
    assert relative_error(meta_gradient(learner, tasks, engine()), expected) < 1e-9


@pytest.mark.parametrize(("net", "steps", "first_order"), CASES)
def test_maml_through_the_library_is_maml(learn2learn: ModuleType, net: str, steps: int, first_order: bool) -> None:
    learner, tasks = ours("maml", net, steps, first_order)
    theirs, _ = ours("maml_learn2learn", net, steps, first_order)
    theirs.load_state_dict(learner.state_dict())
    assert relative_error(meta_gradient(learner, tasks, engine()), meta_gradient(theirs, tasks, engine())) < 1e-9
    expected, actual = (engine().evaluate(algorithm, tasks, EVERY)["loss"] for algorithm in (learner, theirs))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_without_the_library_one_line_tells_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    library.cache_clear()
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    with pytest.raises(MissingLibrary, match=r"this needs learn2learn 0\.2\.0.*`make peers`"):
        ours("maml_learn2learn", "mlp", 1, False)
