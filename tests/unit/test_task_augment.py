"""Task augmentation: exact, alike for support and query, a pure function of the index, of training alone, refused where it is senseless."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import classification, regression, small
from torch import Tensor

from metarun.contract import checks
from metarun.contract.measures import engine, meta_gradient
from metarun.data.task_augment import APART
from metarun.errors import UserError
from metarun.run import Run
from metarun.task import Task, count, select

CLASSES = 40  # of the toy data


def pair(*words: str, n: int = 20, build: Any = small) -> tuple[Task, Task, Run]:
    """Training episodes, plain and augmented."""
    run = Run(build(*words))
    episodes = run.episodes("train")
    return episodes.plain.batch(range(n)), episodes.batch(range(n)), run


def test_every_class_is_turned_as_a_whole_and_becomes_another_class() -> None:
    plain, turned, run = pair("augment.tasks=rotations", "episode.clean=2")
    seen = []
    for before, after in ((select(plain, i), select(turned, i)) for i in range(count(plain))):
        turns = after.context.classes // CLASSES
        assert torch.equal(after.context.classes % CLASSES, before.context.classes)
        seen += turns.tolist()
        for (x, y), (old, labels) in (
            (after.context.support, before.context.support), (after.query, before.query), (after.context.clean, before.context.clean)
        ):  # fmt: skip
            assert torch.equal(y, labels)
            for image, original, label in zip(x, old, y):
                assert torch.equal(image, torch.rot90(original, int(turns[label]), (-2, -1)))
    share = torch.bincount(torch.tensor(seen), minlength=4) / len(seen)
    assert share.min() > 0.25 - 3 * math.sqrt(0.25 * 0.75 / len(seen))  # 60 classes
    assert run.problem.classes == 4 * CLASSES


def test_joint_training_tells_turned_classes_apart() -> None:
    values = small("algo=pretrain", "augment.tasks=rotations")
    run = Run(values)
    assert run.algorithm.head.weight.shape[0] == 4 * CLASSES
    assert meta_gradient(run.algorithm, run.episodes("train").batch(range(2)), engine()).isfinite().all()


def test_classes_are_mixed_with_others_in_one_proportion() -> None:
    plain, mixed, run = pair("augment.tasks=mixup", "augment.mix=0.4", "episode.clean=2")
    others = run.episodes("train").plain.batch([i + APART for i in range(20)])
    parts = []
    for before, after, other in (tuple(select(tasks, i) for tasks in (plain, mixed, others)) for i in range(20)):
        assert torch.equal(after.context.classes, before.context.classes)
        found = []
        for new, old, foreign in zip(*((t.context.support, t.query, t.context.clean) for t in (after, before, other))):
            assert torch.equal(new.y, old.y)
            away = (foreign.x - old.x).double()
            found.append(float(((new.x - old.x).double() * away).sum() / away.square().sum()))
            torch.testing.assert_close(new.x, old.x + found[-1] * (foreign.x - old.x), atol=1e-5, rtol=0)
        assert max(found) - min(found) < 1e-5
        parts.append(found[0])
    assert 0 <= min(parts) < 0.1
    assert 0.3 < max(parts) <= 0.4
    plain, mixed, _ = pair("augment.tasks=mixup", "augment.mix=0")
    assert torch.equal(mixed.query.x, plain.query.x)


def test_points_of_a_regression_are_mixed_with_their_targets() -> None:
    plain, mixed, run = pair("protonet", "augment.tasks=mixup", build=lambda _, *words: regression("maml", *words))
    others = run.episodes("train").plain.batch([i + APART for i in range(20)])
    for name in ("x", "y"):
        a, b, new = (torch.cat([getattr(t.context.support, name), getattr(t.query, name)], 1) for t in (plain, others, mixed))
        part = ((new - a) / (b - a)).flatten(1)
        torch.testing.assert_close(part, part.median(1, keepdim=True).values.expand_as(part), atol=1e-2, rtol=0)
        assert part.median(1).values.max() < 0.51


def wrong(noise: float, n: int = 200) -> tuple[Tensor, Tensor]:
    plain, noisy, _ = pair("augment.tasks=label_noise", f"augment.noise={noise}", n=n)
    assert torch.equal(noisy.query.y, plain.query.y)
    assert torch.equal(noisy.context.support.x, plain.context.support.x)
    return plain.context.support.y.flatten(), noisy.context.support.y.flatten()


def test_labels_of_the_support_are_wrong_at_a_rate() -> None:
    right, noisy = wrong(0.3)  # 1200 labels
    assert float((noisy != right).double().mean()) == pytest.approx(0.3, abs=3 * math.sqrt(0.3 * 0.7 / 1200))
    steps = ((noisy - right) % 3)[noisy != right].double()
    assert float((steps == 1).double().mean()) == pytest.approx(0.5, abs=3 * math.sqrt(0.25 / len(steps)))
    right, noisy = wrong(0.0)
    assert torch.equal(right, noisy)
    right, noisy = wrong(1.0)
    assert not (right == noisy).any()


def test_targets_of_a_regression_are_shifted_as_a_whole() -> None:
    plain, shifted, _ = pair("", "augment.tasks=label_noise", "augment.noise=2", n=300, build=lambda _, *words: regression("maml", *words))
    by = torch.cat([shifted.context.support.y - plain.context.support.y, shifted.query.y - plain.query.y], 1)
    torch.testing.assert_close(by, by[:, :1].expand_as(by), atol=1e-5, rtol=0)
    assert float(by[:, 0].std()) == pytest.approx(2, rel=3 / math.sqrt(2 * 300))


@pytest.mark.parametrize("tasks", ["rotations", "mixup", "label_noise"])
def test_another_task_is_a_pure_function_of_its_index_and_of_training_alone(tasks: str) -> None:
    run, plain = (Run(small("augment.noise=0.5", f"augment.tasks={name}", "augment.shift=0.1")) for name in (tasks, "none"))
    many, one = run.episodes("train").batch([3, 5, 8]), run.episodes("train").batch([5])
    torch.testing.assert_close(many.query.x[1:2], one.query.x, atol=1e-6, rtol=0)
    assert torch.equal(many.context.support.y[1:2], one.context.support.y)
    assert run.episodes("train").sha256(4) == plain.episodes("train").sha256(4)
    for split in ("val", "test"):
        assert torch.equal(run.episodes(split).batch([0]).query.x, plain.episodes(split).batch([0]).query.x)
    before, after = plain.episodes("train").batch(range(9)), run.episodes("train").batch(range(9))
    assert not all(torch.equal(a, b) for a, b in zip([before.query.x, *before.context.support], [after.query.x, *after.context.support]))


@pytest.mark.parametrize("algo", ["protonet", "maml", "pretrain"])
@pytest.mark.parametrize("tasks", ["rotations", "mixup", "label_noise"])
def test_methods_learn_from_other_tasks(algo: str, tasks: str) -> None:
    checks.mapping(classification(algo, f"augment.tasks={tasks}"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=sinusoid", "net=mlp", "way=1", "augment.tasks=rotations"], r"it turns square images, and those of data=sinusoid are \[1\]"),
        (["data=navigation2d", "net=mlp", "way=1", "algo=maml_rl", "augment.tasks=mixup"], "it mixes images, or points of a regression"),
        (["data=navigation2d", "net=mlp", "way=1", "algo=maml_rl", "augment.tasks=label_noise"], "neither labels of classes nor targets"),
        (["augment.tasks=label_noise", "augment.noise=1.5"], r"augment\.noise=1\.5 is not possible: it is the part of the labels"),
        (["augment.tasks=rotations", "episode.unlabelled=2"], r"rotations is not possible with episode\.train\.unlabelled"),
        (["augment.tasks=mixup", "episode.uneven=true"], r"mixup is not possible with episode\.train\.uneven"),
        (["augment.tasks=rotation"], r"augment\.tasks=rotation is not possible.*did you mean 'rotations'"),
    ],
)
def test_what_means_nothing_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Run(small(*words))
