"""Imaginary data: without it the member is alone, bit for bit; a generator that imagines what it saw changes nothing; sums written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Identity, changed, classification, in_float64, meta_gradient, metrics_of, same, slopes, vectors
from torch import Tensor, nn

from metarun import inner
from metarun.algos.generated.imaginary import STREAM, Imaginary
from metarun.algos.heads.r2d2 import R2D2
from metarun.algos.metric.protonet import ProtoNet
from metarun.contract import checks
from metarun.contract.measures import engine
from metarun.errors import UserError
from metarun.experiment import train
from metarun.learners import SolvedHead
from metarun.run import Run
from metarun.storage import checkpoint
from metarun.task import Context

MEMBERS = {"protonet": ProtoNet, "r2d2": lambda net, problem: R2D2(net, problem, penalty=0.1, scale=10.0)}


def built(member: str, generated: int = 3, shot: int = 2) -> tuple[Imaginary, Any]:
    """A method on plain vectors whose generator imagines something, and a task; in float64."""
    problem, task = vectors(features=6, way=3, shot=shot)
    torch.manual_seed(0)
    net = Identity(6)
    net.map_shape = (6, 1, 1)
    method = Imaginary(net, problem, member=MEMBERS[member], generated=generated, noise=4, hidden=8, frozen=False).double()
    if method.generator:
        nn.init.normal_(method.generator.last.weight)
    return method, task


def imagined(method: Imaginary, context: Context) -> tuple[np.ndarray, np.ndarray]:
    """The support with what is imagined of it, example by example."""
    g = method.generator
    assert g
    z = inner.normal(context.key, (method.generated, method.noise), STREAM).double().numpy()

    def layer(linear: nn.Linear, v: np.ndarray) -> np.ndarray:
        w = linear.weight.detach().numpy() @ v
        return w if linear.bias is None else w + linear.bias.detach().numpy()

    x, y = (part.numpy() for part in context.support)
    rows, labels = list(x), list(y)
    for draw in z:
        for example, label in zip(x, y):
            hidden = np.maximum(layer(g.of_x, example) + layer(g.of_z, draw), 0)
            rows.append(example + layer(g.last, np.maximum(layer(g.second, hidden), 0)))
            labels.append(label)
    return np.stack(rows), np.array(labels)


@pytest.mark.parametrize("member", ["protonet", "r2d2"])
@pytest.mark.slow
def test_without_imagined_examples_a_run_is_that_of_the_member_bit_for_bit(member: str, tmp_path: Path) -> None:
    values = classification("imaginary", f"algo@algo.member={member}", "algo.generated=0", "net.norm=running")
    train(values, tmp_path / "imaginary")
    train(classification(member, "net.norm=running"), tmp_path / "alone")
    assert metrics_of(tmp_path / "imaginary") == metrics_of(tmp_path / "alone")
    mine, its = (np.load(tmp_path / name / "test_scores.npy") for name in ("imaginary", "alone"))
    assert mine.tolist() == its.tolist()
    mine, its = (checkpoint.load(tmp_path / name / "checkpoints" / "last.pt")["algorithm"] for name in ("imaginary", "alone"))
    mine = {name.removeprefix("member."): weight for name, weight in mine.items()}
    assert same(dict(sorted(mine.items())), dict(sorted(its.items())))


def test_a_generator_that_imagines_what_it_saw_leaves_prototypes_where_they_are() -> None:
    """Which is how it begins."""
    for shot in (1, 3):
        method, task = built("protonet", shot=shot)
        assert method.generator
        nn.init.zeros_(method.generator.last.weight)
        alone = ProtoNet(method.net, method.problem)
        torch.testing.assert_close(
            method.predict(method.begin(task.context), task.query.x),
            alone.predict(alone.begin(task.context), task.query.x),
            rtol=1e-12,
            atol=0,
        )
    values = classification("imaginary")
    (fresh, tasks), (alone, _) = in_float64(values), in_float64(classification("protonet"))
    assert torch.allclose(meta_gradient(fresh, tasks, engine())[: sum(p.numel() for p in fresh.net.parameters())],
                          meta_gradient(alone, tasks, engine()), rtol=1e-9)  # fmt: skip


@torch.no_grad()
def test_prototypes_are_the_means_of_what_is_seen_and_imagined() -> None:
    method, task = built("protonet")
    x, y = imagined(method, task.context)
    assert len(x) == 6 * 4
    assert np.bincount(y).tolist() == [8, 8, 8]  # classes stay balanced
    centres = np.stack([x[y == c].mean(0) for c in range(3)])
    expected = -((task.query.x.numpy()[:, None] - centres) ** 2).sum(-1)
    np.testing.assert_allclose(method.predict(method.begin(task.context), task.query.x).numpy(), expected, rtol=1e-10)
    assert np.abs(centres - np.stack([x[:6][y[:6] == c].mean(0) for c in range(3)])).max() > 0.1  # something was imagined


@torch.no_grad()
def test_a_solved_head_solves_for_all_of_it() -> None:
    method, task = built("r2d2")
    assert isinstance(method.member, SolvedHead)
    x, y = imagined(method, task.context)
    z, target = np.c_[x, np.ones(len(x))], np.eye(3)[y]
    weight = np.linalg.solve(z.T @ z + len(x) * 0.1 * np.eye(7), z.T @ target)
    expected = 10 * (np.c_[task.query.x.numpy(), np.ones(6)] @ weight)
    np.testing.assert_allclose(method.predict(method.begin(task.context), task.query.x).numpy(), expected, rtol=1e-6)  # λ, α are of fp32


@torch.no_grad()
@pytest.mark.parametrize("member", ["protonet", "r2d2"])
def test_neither_order_nor_labels_matter_to_what_is_imagined(member: str) -> None:
    method, task = built(member)
    x, y = task.context.support

    def answer(x: Tensor, y: Tensor) -> Tensor:
        return method.predict(method.begin(task.context._replace(support=task.context.support._replace(x=x, y=y))), task.query.x)

    before, shuffled = answer(x, y), torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(answer(x[shuffled], y[shuffled]), before, rtol=1e-9, atol=1e-9)
    new = torch.tensor([2, 0, 1])
    torch.testing.assert_close(answer(x, new[y])[:, new], before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("member", ["protonet", "r2d2", "relation", "anil"])
def test_the_meta_gradient_is_a_gradient_and_is_mapped(member: str) -> None:
    values = classification("imaginary", f"algo@algo.member={member}", *["net.downs=2"] * (member == "relation"))
    checks.mapping(values)
    algorithm, tasks = in_float64(values)
    torch.manual_seed(1)
    nn.init.normal_(algorithm.generator.last.weight, std=0.1)
    slope, difference = slopes(algorithm, tasks)
    assert slope == pytest.approx(difference, rel=1e-4)
    assert algorithm.generator.of_z.weight.grad.abs().max() > 0  # noise counts


def test_a_frozen_net_stays_and_the_generator_learns(tmp_path: Path) -> None:
    values = classification("imaginary", "algo.frozen=true")
    fresh = {name: weight.clone() for name, weight in Run(values).algorithm.state_dict().items()}
    train(values, tmp_path)
    trained = checkpoint.load(tmp_path / "checkpoints" / "last.pt")["algorithm"]
    moved = {name.split(".")[0] for name, weight in trained.items() if not torch.equal(weight, fresh[name])}
    assert moved == {"generator"}
    values["algo"] = changed(values["algo"], generated=0)
    assert not Run(values).algorithm.learns


def test_members_that_need_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"algo.member=MAML is not possible: take one that sees images through its net alone, as protonet"):
        Run(classification("imaginary", "algo@algo.member=maml"))
    with pytest.raises(UserError, match=r"algo.member=ZeroShotProtoNet is not possible: take a method for classification from examples"):
        Run(classification("imaginary", "algo@algo.member=protonet_zeroshot"))
    with pytest.raises(UserError, match=r"algo\.generated=-1 is not possible: it should be 0 or more"):
        Run(classification("imaginary", "algo.generated=-1"))
