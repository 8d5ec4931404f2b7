"""An ensemble: one member is the method itself, the loss is that of the mean likelihood, the members' order means nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Builder, changed, classification, engine, in_float64, meta_gradient, regression, relative_error
from torch import Tensor

from metarun.adaptation import adapt
from metarun.errors import UserError
from metarun.experiment import train
from metarun.optim import MetaOptimizer
from metarun.predict.trained import load
from metarun.problem import Gaussian, Samples
from metarun.protocols.episodes import EVERY
from metarun.run import Run
from metarun.task import select


def of(build: Builder, members: int) -> dict[str, Any]:
    values = build("emaml")
    values["algo"] = changed(values["algo"], members=members, noise=0.4)
    return values


@pytest.mark.parametrize("build", [classification, regression])
def test_one_member_is_the_method_itself(build: Builder) -> None:
    (one, tasks), (alone, _) = in_float64(of(build, 1)), in_float64(build("maml"))
    assert relative_error(meta_gradient(one, tasks, engine()), meta_gradient(alone, tasks, engine())) < 1e-12
    mine, its = (engine().evaluate(algorithm, tasks, EVERY) for algorithm in (one, alone))
    torch.testing.assert_close(mine["score"], its["score"], rtol=1e-9, atol=1e-9)
    if build is classification:
        torch.testing.assert_close(mine["loss"], its["loss"], rtol=1e-9, atol=1e-9)


def test_members_differ_and_each_has_the_gradient_it_would_have_alone() -> None:
    ensemble, tasks = in_float64(of(classification, 3))
    whole = meta_gradient(ensemble, tasks, engine()).view(3, -1)
    for member, gradient in zip(ensemble.members, whole):
        assert relative_error(gradient, meta_gradient(member, tasks, engine())) < 1e-9
    weights = [torch.cat([p.detach().flatten() for p in member.parameters()]) for member in ensemble.members]
    assert relative_error(weights[1], weights[0]) > 0.5
    assert relative_error(weights[2], weights[1]) > 0.5


def test_a_member_with_a_large_gradient_does_not_hold_back_the_others() -> None:
    ensemble = Run(of(classification, 2)).algorithm
    weights = [list(member.parameters()) for member in ensemble.members]
    before = [torch.cat([p.detach().flatten() for p in own]) for own in weights]
    plain: dict[str, Any] = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0, "final_lr": 0.0}
    optimizer = MetaOptimizer(ensemble.groups(), method="sgd", lr=1.0, clip_norm=1.0, clip_value=None, **plain)
    for own, size in zip(weights, (1e-4, 1e4)):
        for p in own:
            p.grad = torch.full_like(p, size)
    optimizer.step(0.0)
    small, large = (torch.cat([p.detach().flatten() for p in own]) - start for own, start in zip(weights, before))
    torch.testing.assert_close(small, torch.full_like(small, -1e-4), rtol=1e-2, atol=0)
    assert large.norm().item() == pytest.approx(1, rel=1e-3)


@torch.no_grad()
def test_the_loss_is_that_of_the_mean_likelihood() -> None:
    for build in (classification, regression):
        ensemble, tasks = in_float64(of(build, 3))
        task = select(tasks, 0)
        x, y = task.query
        *_, state = adapt(ensemble, task.context, 2)
        prediction = ensemble.predict(state, x)
        assert isinstance(prediction, Samples)
        alone = []
        for member in ensemble.members:
            *_, own = adapt(member, task.context, 2)
            alone.append(member.predict(own, x))
        if build is classification:
            assert isinstance(prediction.members, Tensor)
            likelihood = torch.stack([answer.softmax(-1)[range(len(y)), y] for answer in alone]).mean(0)
        else:
            assert isinstance(prediction.members, Gaussian)
            variance = 0.4**2
            densities = [torch.exp(-((answer - y) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance) for answer in alone]
            likelihood = torch.stack(densities).mean(0)
        torch.testing.assert_close(ensemble.problem.loss(prediction, y), -likelihood.log().mean(), rtol=1e-9, atol=1e-9)


def test_the_order_of_members_means_nothing() -> None:
    ensemble, tasks = in_float64(of(classification, 3))
    before = engine().evaluate(ensemble, tasks, EVERY)
    ensemble.members = torch.nn.ModuleList([ensemble.members[i] for i in (2, 0, 1)])
    after = engine().evaluate(ensemble, tasks, EVERY)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-9, atol=1e-9)


def test_members_of_a_method_that_draws_draw_for_themselves() -> None:
    values = of(classification, 2)
    values["algo"]["member"] = classification("supervised")["algo"]
    run = Run(values)
    fast = run.algorithm.begin(select(run.episodes("train").batch([0]), 0).context).fast["head.weight"]
    assert not torch.equal(fast[0], fast[1])


def test_memory_is_that_of_all_members() -> None:
    three, one = (Run(of(classification, members)) for members in (3, 1))
    task = select(three.episodes("train").batch([0]), 0)
    assert three.algorithm.footprint(task, True).examples == 3 * one.algorithm.footprint(task, True).examples


@pytest.mark.parametrize("member", ["emaml", "protonet_zeroshot"])
def test_members_that_cannot_be_are_refused(member: str) -> None:
    values = of(classification, 2)
    values["algo"]["member"] = classification(member)["algo"]
    with pytest.raises(UserError, match=r"algo.member=\w+ is not possible: take a method for classification from examples"):
        Run(values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner_lr": -1.0}, r"^algo\.member\.inner_lr=-1\.0 is not possible: it should be greater than 0$"),
        ({"inner_rate": 1.0}, r"^unknown key algo\.member\.inner_rate"),
        ({"_target_": "os.system"}, r"^algo\.member\._target_=os\.system is refused"),
    ],
)
def test_settings_of_the_member_are_checked(settings: dict[str, Any], message: str) -> None:
    values = of(classification, 2)
    values["algo"]["member"] |= settings
    with pytest.raises(UserError, match=message):
        Run(values)


@pytest.mark.slow
def test_a_trained_ensemble_predicts_with_its_probabilities_and_is_exported(tmp_path: Path) -> None:
    run = Run(of(classification, 3))
    train(run.values, tmp_path)
    context, (x, _) = (task := select(run.episodes("test").batch([0]), 0)).context, task.query
    model = load(tmp_path, device="cpu")
    fitted = model.adapt(context.support.x, context.support.y)
    probabilities = fitted.probabilities(x, raw=True)
    with torch.no_grad():
        mean = model.algorithm.predict(fitted.state, x).members.softmax(-1).mean(0)
    torch.testing.assert_close(probabilities, mean)
    assert fitted.predict(x) == mean.argmax(-1).tolist()
    with pytest.raises(UserError, match="does not know how sure it is"):
        fitted.deviations(x)
    fitted.export(tmp_path / "net.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x), fitted.probabilities(x), rtol=1e-4, atol=1e-5)


def test_the_deviation_of_a_regression_is_that_of_the_mixture(tmp_path: Path) -> None:
    run = Run(of(regression, 3))
    train(run.values, tmp_path)
    context, (x, _) = (task := select(run.episodes("test").batch([0]), 0)).context, task.query
    fitted = load(tmp_path, device="cpu").adapt(context.support.x, context.support.y)
    with torch.no_grad():
        means = fitted.model.algorithm.predict(fitted.state, x).members.mean
    torch.testing.assert_close(fitted.predict(x), means.mean(0))
    torch.testing.assert_close(fitted.deviations(x), (0.4**2 + means.var(0, unbiased=False)).sqrt())
