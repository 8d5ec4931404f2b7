"""MetaGAN: without weight it is the member; its losses are those of N + 1 outputs; each player descends its own and holds the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import classification, in_float64, metrics_of, slopes, small
from torch import Tensor

from metarun import inner
from metarun.adaptation import adapt
from metarun.algorithm import Algorithm
from metarun.algos.generated.metagan import STREAM, Painter
from metarun.contract import checks
from metarun.errors import UserError
from metarun.experiment import train
from metarun.run import Run
from metarun.task import Task, select

MEMBERS = {"protonet": [], "relation": ["net.downs=2"], "maml": []}


def values(member: str, *words: str) -> dict:
    return classification("metagan", f"algo@algo.member={member}", *MEMBERS[member], *words)


def one(member: str, *words: str) -> tuple[Algorithm, Task]:
    algorithm, tasks = in_float64(values(member, *words), tasks=1)
    return algorithm, select(tasks, 0)


@pytest.mark.parametrize("member", ["protonet", "maml"])
@pytest.mark.slow
def test_without_weight_a_run_is_that_of_the_member_bit_for_bit(member: str, tmp_path: Path) -> None:
    train(values(member, "algo.weight=0"), tmp_path / "metagan")
    train(classification(member), tmp_path / "alone")
    assert metrics_of(tmp_path / "metagan") == metrics_of(tmp_path / "alone")
    mine, its = (np.load(tmp_path / name / "test_scores.npy") for name in ("metagan", "alone"))
    assert mine.tolist() == its.tolist()


@pytest.mark.parametrize(("member", "unlabelled"), [*((member, 0) for member in MEMBERS), ("protonet", 2)])
def test_losses_are_those_of_one_more_output_which_is_zero(member: str, unlabelled: int) -> None:
    algorithm, task = one(member, "algo.slope=1.0", "algo.weight=0.3", f"episode.unlabelled={unlabelled}")
    *_, state = adapt(algorithm, task.context, algorithm.inner_steps)
    loss, metrics = algorithm.objective([state], task, 0.0)
    z = inner.normal(task.context.key, (algorithm.fakes, algorithm.noise), STREAM).double()
    fakes = algorithm.generator(z, task.context.support.x)

    def with_another(logits: Tensor) -> Tensor:
        return torch.cat([logits, torch.zeros(len(logits), 1)], 1).log_softmax(1)

    logits = algorithm.member.predict(state, task.query.x)
    real, fake = with_another(logits), with_another(algorithm.member.predict(state, fakes))
    given = real[:, :-1] - real[:, :-1].logsumexp(1)[:, None]  # that it is not a fake
    if unlabelled:
        real = torch.cat([real, with_another(algorithm.member.predict(state, task.context.unlabelled))])
    is_real = real[:, :-1].logsumexp(1)
    learner = F.nll_loss(given, task.query.y) - 0.3 * (is_real.mean() + fake[:, -1].mean())
    generator = -fake[:, :-1].logsumexp(1).mean()
    torch.testing.assert_close(metrics["learner_loss"], learner, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(metrics["generator_loss"], generator, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(loss, learner + generator, rtol=1e-6, atol=1e-9)


def test_each_player_descends_its_own_loss_and_holds_the_other() -> None:
    algorithm, task = one("protonet")
    state = algorithm.begin(task.context)
    loss, metrics = algorithm.objective([state], task, 0.0)
    learner, generator = (group["params"] for group in algorithm.groups())
    for loss_of, mine, theirs in (("learner_loss", learner, generator), ("generator_loss", generator, learner)):
        own = torch.autograd.grad(metrics[loss_of], mine, retain_graph=True)
        for a, b in zip(own, torch.autograd.grad(loss, mine, retain_graph=True)):
            torch.testing.assert_close(a, b)
        assert any(g.abs().max() > 0 for g in own)
        assert all(g is None for g in torch.autograd.grad(metrics[loss_of], theirs, retain_graph=True, allow_unused=True))
    assert {id(p) for p in learner + generator} == {id(p) for p in algorithm.parameters()}


@pytest.mark.parametrize("member", MEMBERS)
def test_meta_gradients_are_slopes_and_are_mapped(member: str) -> None:
    checks.mapping(values(member))
    algorithm, tasks = in_float64(values(member))
    for player in algorithm.groups():
        slope, difference = slopes(algorithm, tasks, player=player)
        assert slope == pytest.approx(difference, rel=1e-4)


@torch.no_grad()
def test_answers_know_nothing_of_the_generator() -> None:
    algorithm, task = one("protonet")
    before = algorithm.predict(algorithm.begin(task.context), task.query.x)
    for weight in algorithm.generator.parameters():
        weight.zero_()
    assert torch.equal(algorithm.predict(algorithm.begin(task.context), task.query.x), before)
    assert before.shape == (len(task.query.y), 3)


@torch.no_grad()
def test_painted_images_are_images_and_depend_on_noise_and_task() -> None:
    painter, z = Painter((2, 13, 18), noise=4, hidden=8), torch.randn(5, 4)
    x, other = torch.rand(2, 3, 2, 13, 18)
    images = painter(z, x)
    assert images.shape == (5, 2, 13, 18)
    assert 0 <= images.min() < images.max() <= 1
    assert (images[1:] - images[:1]).abs().amax((1, 2, 3)).min() > 0
    assert (painter(z, other) - images).abs().max() > 0


def test_the_generator_has_its_own_pace() -> None:
    _, generator = Run(values("protonet", "algo.generator_lr=0.01", "algo.every=3")).algorithm.groups()
    assert (generator["lr"], generator["every"]) == (0.01, 3)


def test_members_with_an_outer_rule_of_their_own_and_what_is_no_image_are_refused() -> None:
    with pytest.raises(UserError, match=r"algo.member=Reptile is not possible: take one that is trained by the loss of its answers"):
        Run(classification("metagan", "algo@algo.member=reptile"))
    with pytest.raises(UserError, match="images, and these examples have shape"):
        Run(small("algo=metagan", "data=text", "net=textbag"))
