"""Learned augmentation: nothing learned is the member; operations are those of conf/augment; hypergradients are slopes, the right way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Identity, classification, double, in_float64, meta_gradient, metrics_of, relative_error, small
from torch import Tensor

from metarun.algos.generated._policy import PLACES, STRONGEST, Operation, Policy
from metarun.algos.generated.learned_augment import LearnedAugment
from metarun.algos.metric.protonet import ProtoNet
from metarun.contract import checks
from metarun.contract.measures import engine, mean_objective
from metarun.data.augment import Augment
from metarun.errors import UserError
from metarun.experiment import train
from metarun.problem import Classification, EpisodeSpec, Problem
from metarun.run import Run
from metarun.task import Batch, Context, Task

WITHOUT = "algo.copies=0"
DATASET = ["episode=dataset", "shot=4", "query=2", "episode.clean=2", "algo@algo.member=hyperparameters", "algo.keep=false"]
CERTAIN = 60.0  # a logit whose sigmoid is 1, and that of its opposite next to nothing


def images(n: int = 6, side: int = 8) -> Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def policy(*operations: Operation, straight: bool = True) -> Policy:
    return Policy(list(operations or STRONGEST), 0.5, 0.2, straight, 0.5).double()  # type: ignore[arg-type]


@pytest.mark.slow
def test_without_copies_a_run_is_that_of_the_member_bit_for_bit(tmp_path: Path) -> None:
    train(classification("learned_augment", WITHOUT), tmp_path / "learned")
    train(classification("maml"), tmp_path / "alone")
    assert metrics_of(tmp_path / "learned") == metrics_of(tmp_path / "alone")
    mine, its = (np.load(tmp_path / name / "test_scores.npy") for name in ("learned", "alone"))
    assert mine.tolist() == its.tolist()


@pytest.mark.parametrize(
    ("words", "alone"),
    [
        (["algo=learned_augment", "algo.keep=false"], ["algo=maml"]),
        (["algo=learned_augment", *DATASET, "algo.batch=5"], ["algo=hyperparameters", *DATASET[:4], "algo.batch=5"]),
    ],
)
def test_a_policy_that_is_never_applied_is_the_member(words: list[str], alone: list[str]) -> None:
    run = Run(small("net.hidden=8", *words))
    learned, member, tasks = run.algorithm, Run(small("net.hidden=8", *alone)).algorithm, run.episodes("train").batch(range(3))
    if not isinstance(tasks.context.shared, Tensor):  # a whole training set lies in memory as bytes, which are fp32 once they are numbers
        learned, member, tasks = learned.double(), member.double(), double(tasks)
    torch.nn.init.constant_(learned.policy.probability, -CERTAIN)
    meta_gradient(learned, tasks, engine())
    mine = torch.cat([p.grad.flatten() for p in learned.member.parameters() if p.requires_grad])
    meta_gradient(member, tasks, engine())
    its = torch.cat([p.grad.flatten() for p in member.parameters() if p.requires_grad])
    assert relative_error(mine, its) < (1e-3 if isinstance(tasks.context.shared, Tensor) else 1e-9)
    assert learned.policy.probability.grad.abs().max() < 1e-9


@torch.no_grad()
def test_operations_that_are_always_applied_are_those_of_conf_augment() -> None:
    learned, x = policy(), images()
    torch.nn.init.constant_(learned.probability, CERTAIN)
    rows = learned.table()
    settings = {name: row["strength"] for name, row in rows.items() if name != "flip"}
    noise = learned.noise(torch.tensor(7), len(x))
    u = dict(zip(STRONGEST, noise[:, PLACES:].T))
    places = [
        u["rotate"],
        u["scale"],
        u["shear"],
        u["shift"],
        noise[:, -1],
        torch.zeros(len(x)),
        *(u[name] for name in list(STRONGEST)[5:]),
    ]
    unmirrored = Policy([name for name in STRONGEST if name != "flip"], 0.5, 0.2, True, 0.5).double()  # type: ignore[misc]
    torch.nn.init.constant_(unmirrored.probability, CERTAIN)
    torch.testing.assert_close(unmirrored(x, noise), Augment(**settings)(x, torch.stack(places, 1).double()), atol=1e-6, rtol=0)
    torch.testing.assert_close(learned(x, noise), unmirrored(x.flip(-1), noise), atol=1e-9, rtol=0)  # mirrored before all else
    assert (unmirrored(x, noise) - x).abs().max() > 0.1


@torch.no_grad()
def test_straight_gates_are_open_as_often_as_they_should_be() -> None:
    learned, x = policy("flip"), images(4000)
    torch.nn.init.constant_(learned.probability, math.log(0.2 / 0.8))
    y = learned(x, learned.noise(torch.tensor(3), len(x)))
    same, mirrored = ((y - other).abs().amax((1, 2, 3)) < 1e-9 for other in (x, x.flip(-1)))
    assert bool((same ^ mirrored).all())
    assert float(mirrored.double().mean()) == pytest.approx(0.2, abs=3 * math.sqrt(0.16 / 4000))


def test_straight_gates_have_the_derivatives_of_relaxed_ones() -> None:
    u = torch.rand(50, dtype=torch.float64)
    slopes = []
    for straight in (True, False):
        logit = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        gate = policy("flip", straight=straight).gate(u, logit)
        slopes.append(torch.autograd.grad((gate * torch.arange(50)).sum(), logit)[0])
        assert bool((gate - gate.round()).abs().max() < 1e-12) == straight
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("member", ["maml", "protonet"])
def test_the_hypergradient_of_a_linear_model_equals_finite_differences(member: str) -> None:
    words = ["net=mlp", "net.sizes=[]", f"algo@algo.member={member}", "algo.copies=2"]
    algorithm, tasks = in_float64(small("algo=learned_augment", *words))
    gradient = {name: p for name, p in algorithm.named_parameters() if name.startswith("policy.")}
    meta_gradient(algorithm, tasks, engine())
    for parameter in gradient.values():
        for i in range(len(STRONGEST)):
            ends, step = [], 1e-6
            for stride in (step, -2 * step):
                parameter.data[i] += stride
                ends.append(mean_objective(algorithm, tasks))
            parameter.data[i] += step
            assert float(parameter.grad[i]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-9)
    probability, strength = (parameter.grad for parameter in gradient.values())
    assert probability.abs().min() > 0
    assert [name for name, slope in zip(STRONGEST, strength) if slope == 0] == ["flip"]  # which has no strength


@pytest.mark.parametrize("words", [["algo.gate=straight"], ["algo@algo.member=protonet", "algo.copies=2"]])
def test_it_is_mapped_whatever_its_member(words: list[str]) -> None:
    checks.mapping(small("algo=learned_augment", "net.hidden=8", *words))


def test_it_is_recorded_on_whole_training_sets() -> None:
    checks.recording(small("algo=learned_augment", "net.hidden=8", *DATASET, "algo.batch=5"))


def mirrors(seed: int, varied: bool) -> tuple[Problem, Task]:
    """Two classes of 4x4 images that are the same pattern and its mirror image, or, ``varied``, two patterns mirrored at random."""
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.rand(2, 1, 4, 4, generator=draw, dtype=torch.float64)
    if not varied:
        patterns[1] = patterns[0].flip(-1)
    y = torch.arange(2).repeat_interleave(8)

    def batch(y: Tensor) -> Batch:
        x = patterns[y] + 0.1 * torch.randn(len(y), 1, 4, 4, generator=draw, dtype=torch.float64)
        aside = torch.rand(len(y), generator=draw) < 0.5 if varied else torch.zeros(len(y), dtype=torch.bool)
        return Batch(torch.where(aside[:, None, None, None], x.flip(-1), x), y)

    spec = EpisodeSpec(way=2, shot=1, query=8)
    context = Context(batch(torch.arange(2)), torch.arange(2), torch.tensor(seed), {})
    return Problem(Classification(), (1, 4, 4), 2, 2, spec, spec), Task(context, batch(y))


class Pixels(Identity):
    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        return x.flatten(1)


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("gate", ["relaxed", "straight"])
def test_it_learns_to_mirror_where_that_helps_and_not_where_it_makes_another_class(varied: bool, gate: Any) -> None:
    slope = 0.0
    for seed in range(40):
        problem, task = mirrors(seed, varied)
        method = LearnedAugment(
            Pixels(16), problem, member=ProtoNet, operations=["flip"], probability=0.5, strength=0.2, gate=gate, temperature=0.5,
            copies=4, keep=True, batch=0, policy_lr=0.1,
        ).double()  # fmt: skip
        assert method.policy
        loss, _ = method.objective([method.begin(task.context)], double(task), 0.0)
        slope += float(torch.autograd.grad(loss, method.policy.probability)[0])
    assert (slope < 0) == varied


@pytest.mark.slow
def test_what_was_learned_is_in_the_summary_by_operation(tmp_path: Path) -> None:
    summary = train(classification("learned_augment", "algo.policy_lr=0.5"), tmp_path)
    rows = summary["found"]["augmentation"]
    assert list(rows) == list(STRONGEST)
    assert all(row["strongest"] == STRONGEST[name] and 0 < row["strength"] <= row["strongest"] for name, row in rows.items())
    assert any(abs(row["probability"] - 0.5) > 0.05 for row in rows.values()), (summary["best_step"], rows)
    assert train(classification("maml"), tmp_path / "maml")["found"] == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([WITHOUT, "algo.keep=false"], "algo.copies=0 leaves nothing to learn from"),
        (["algo.operations=[rotat]"], r"algo\.operations\[0\]=rotat is not possible.*did you mean 'rotate'"),
        (["algo.operations=[]"], "algo.operations=.* is not possible: it should be a list of at least 1 value"),
        (["algo.probability=1.0"], r"algo\.probability=1\.0 is not possible: it should be less than 1"),
        (["algo@algo.member=protonet_zeroshot"], "algo.member=ZeroShotProtoNet is not possible"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Run(classification("learned_augment", *words))


def test_only_images_are_changed() -> None:
    with pytest.raises(UserError, match="images, and these examples have shape"):
        Run(small("algo=learned_augment", "data=text", "net=textbag"))
