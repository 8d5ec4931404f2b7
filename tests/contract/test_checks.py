"""The checks of metarun.contract see what they are for: a method that breaks one promise is found by that check, and by name."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from helpers import LEARNERS, Builder, classification, regression, small
from torch import Tensor, nn

from metarun.algorithm import Algorithm
from metarun.contract import checks
from metarun.contract.checks import CONTRACT, BrokenError
from metarun.learners import Prototypes
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context

sys.modules["metarun.algos.broken"] = sys.modules[__name__]


class Whole(Algorithm):
    """Keeps every promise: a scaled distance to the class means."""

    kinds = frozenset({"classification"})

    def __init__(self, net: Net, problem: Problem) -> None:
        super().__init__(net, problem)
        self.scale = nn.Parameter(torch.ones(problem.most_classes))

    def begin(self, context: Context) -> Prototypes:
        x, y = context.support
        features = self.net(x, x)
        one_hot = (y[:, None] == torch.arange(context.classes.shape[0])).to(features)
        return Prototypes((one_hot.T @ features) / one_hot.sum(0)[:, None], x)

    def predict(self, state: Prototypes, x: Tensor) -> Tensor:
        distance = (self.net(x, state.support_x)[:, None] - state.means).square().sum(-1)
        return -self.scale.mean() * distance


class Mapped(Whole):
    """Other numbers under torch.vmap."""

    def begin(self, context: Context) -> Prototypes:
        state = super().begin(context)
        return state._replace(means=state.means * (2 if torch._C._functorch.is_batchedtensor(context.support.x) else 1))


class Drawn(Whole):
    """A weight that no seed decides."""

    def __init__(self, net: Net, problem: Problem) -> None:
        super().__init__(net, problem)
        self.scale.data.mul_(np.random.default_rng().uniform(1, 2))


class Labelled(Whole):
    """A scale for every label."""

    def predict(self, state: Prototypes, x: Tensor) -> Tensor:
        return super().predict(state, x) * torch.arange(1, 1 + state.means.shape[0])


class Declared(Whole):
    """Says that labels matter, and they do not."""

    label_dependent = True


class Ordered(Whole):
    """The last of the support counts twice."""

    def begin(self, context: Context) -> Prototypes:
        state = super().begin(context)
        return state._replace(means=state.means + 0.1 * self.net(context.support.x, context.support.x)[-1])


class Counting(Whole):
    """Counts its calls in a place that a recording cannot see."""

    calls = 0

    def __init__(self, net: Net, problem: Problem) -> None:
        super().__init__(net, problem)
        Counting.calls = 0

    def predict(self, state: Prototypes, x: Tensor) -> Tensor:
        Counting.calls += 1
        return super().predict(state, x) * (1 + 0.1 * (Counting.calls % 7))


class Halved(Whole):
    """Half of its gradient is cut off."""

    def predict(self, state: Prototypes, x: Tensor) -> Tensor:
        return super().predict(state._replace(means=(state.means + state.means.detach()) / 2), x)


class Still(Whole):
    """Has parameters, but nothing to learn them by."""

    def begin(self, context: Context) -> Prototypes:
        state = super().begin(context)
        return state._replace(means=state.means.detach() * 0)

    def predict(self, state: Prototypes, x: Tensor) -> Tensor:
        return 0 * super().predict(state, x)


def values(method: type[Algorithm]) -> dict[str, Any]:
    found = small("algo=protonet", "net=mlp", "net.sizes=[8]", "net.activation=tanh")
    return checks.plain({**found, "algo": {"_target_": f"metarun.algos.broken.{method.__name__}", "name": method.__name__.lower()}})


def test_a_method_that_keeps_its_promises_passes() -> None:
    found = {name: check(values(Whole)) for name, check in {**CONTRACT, "gradient": checks.gradient}.items()}
    assert all(found.values())
    assert "as declared" not in " ".join(found.values())


@pytest.mark.parametrize(
    ("check", "method", "line"),
    [
        ("mapping", Mapped, r"vmap differs from a loop over tasks by .* of the meta-gradient's length"),
        ("mapping", Still, "the meta-gradient is zero: nothing can be learned"),
        ("repetition", Drawn, r"the same seed gives other numbers: a difference of \d"),
        ("labels", Labelled, r"answers change by .*; set label_dependent = True in the class if that is meant"),
        ("labels", Declared, r"the class says label_dependent = True, but answers change by .* only: leave it out"),
        ("order", Ordered, r"answers change by .*; set ordered = True"),
        ("recording", Counting, "a recorded step differs from the step itself, from step [2-4] on: hidden state in the method"),
        ("gradient", Halved, "the meta-gradient says .* along a direction, finite differences of the objective "),
    ],
)
def test_a_broken_promise_is_found_by_its_check(check: str, method: type[Algorithm], line: str) -> None:
    with pytest.raises(BrokenError, match=line):
        (CONTRACT | {"gradient": checks.gradient})[check](values(method))


def test_what_does_not_apply_is_not_asked() -> None:
    assert checks.labels(regression("maml")).startswith("not asked")
    assert checks.gradient(classification("nearest")).startswith("not asked")


@pytest.mark.parametrize(("algo", "problem"), LEARNERS)
def test_the_same_seed_gives_the_same_meta_gradient(algo: str, problem: Builder) -> None:
    checks.repetition(problem(algo))


def test_the_command_says_all_and_fails_with_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    from metarun.cli import main

    few = [
        "way=3",
        "query=2",
        "device=cpu",
        "net=mlp",
        "data.train_classes=6",
        "data.val_classes=4",
        "data.test_classes=4",
        "data.drawers=5",
    ]
    assert main.main(["check", "--contract", "--gradient", "algo=protonet", *few, "--json"]) == 0
    assert "meta-gradient and finite differences agree" in capsys.readouterr().out
    assert (
        main.main(
            ["check", "--contract", *few, "algo=protonet", "~algo.views", "~algo.matching", "algo._target_=metarun.algos.broken.Labelled"]
        )
        == 1
    )
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.out.splitlines()[-5:]] == list(CONTRACT)
    *warned, last = told.err.splitlines()
    assert last.startswith("metarun: algo=protonet: labels: permuted labels permute the answers: answers change by ")
    assert all("val has 4 classes" in line for line in warned)
