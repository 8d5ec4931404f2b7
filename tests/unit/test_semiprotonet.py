"""Semi-supervised prototypes: ProtoNet without unlabelled images, equation 4 with them, and what cluster and mask keep away."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import Identity, classification, engine, in_float64, meta_gradient, relative_error, same, slopes, small, vectors
from torch import Tensor

from metarun.algos.metric.protonet import ProtoNet
from metarun.algos.metric.semiprotonet import SemiProtoNet
from metarun.protocols.episodes import LAST
from metarun.run import Run
from metarun.task import Batch, Context, select

WAY, SHOT, FEATURES = 3, 2, 4
PROBLEM, TASK = vectors(FEATURES, WAY, SHOT)
REFINES = ["soft", "cluster", "masked"]
EPISODE = ["episode.unlabelled=2", "episode.distractors=1"]


def model(refine: Any, refine_steps: int = 1, radius: float = 100.0) -> SemiProtoNet:
    torch.manual_seed(0)
    return SemiProtoNet(Identity(FEATURES), PROBLEM, refine=refine, refine_steps=refine_steps, radius=radius, hidden=5).double()


def points(n: int, seed: int) -> Tensor:
    return torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context(unlabelled: Tensor | None) -> Context:
    return TASK.context if unlabelled is None else TASK.context._replace(extras={"unlabelled": unlabelled})


def prototypes(algorithm: SemiProtoNet, unlabelled: Tensor | None) -> Tensor:
    return algorithm.begin(context(unlabelled)).means.detach()


PLAIN = ProtoNet(Identity(FEATURES), PROBLEM).begin(TASK.context).means


@pytest.mark.parametrize("unlabelled", [None, points(0, 0)])
@pytest.mark.parametrize("refine", REFINES)
def test_without_unlabelled_images_it_is_protonet(refine: str, unlabelled: Tensor | None) -> None:
    assert torch.equal(prototypes(model(refine), unlabelled), PLAIN)


@pytest.mark.parametrize("refine", REFINES)
def test_prototypes_are_those_of_equation_4(refine: str) -> None:
    algorithm, others = model(refine, radius=2.0), points(7, 1)
    share = algorithm.share(others, PLAIN).detach()
    assert share.shape == (7, WAY)
    for c in range(WAY):
        own = TASK.context.support.x[c * SHOT : (c + 1) * SHOT]
        weighted = sum(share[j, c] * others[j] for j in range(7))
        expected = (own.sum(0) + weighted) / (SHOT + share[:, c].sum())
        torch.testing.assert_close(prototypes(algorithm, others)[c], expected)


def test_soft_shares_are_the_softmax_of_minus_distances() -> None:
    others = points(7, 1)
    torch.testing.assert_close(model("soft").share(others, PLAIN), (-(torch.cdist(others, PLAIN) ** 2)).softmax(1))


def test_a_second_step_starts_from_the_first_ones_prototypes() -> None:
    others, algorithm = points(7, 1), model("soft", refine_steps=2)
    once = prototypes(model("soft"), others)
    share = algorithm.share(others, once)
    sums = TASK.context.support.x.unflatten(0, (WAY, SHOT)).sum(1) + share.T @ others
    torch.testing.assert_close(prototypes(algorithm, others), sums / (SHOT + share.sum(0))[:, None])


@pytest.mark.parametrize("refine", REFINES)
def test_copies_of_the_support_leave_well_separated_prototypes_alone(refine: str) -> None:
    far = torch.eye(FEATURES, dtype=torch.float64)[:WAY].repeat_interleave(SHOT, 0) * 20 + points(WAY * SHOT, 2) / 10
    task = TASK.context._replace(support=Batch(far, TASK.context.support.y), extras={"unlabelled": far.flip(0)})
    torch.testing.assert_close(model(refine).begin(task).means, far.unflatten(0, (WAY, SHOT)).mean(1), atol=0.05, rtol=0)


def test_a_mask_of_ones_is_soft() -> None:
    algorithm, others = model("masked"), points(7, 1)
    algorithm.mask[2].weight.data.zero_()
    algorithm.mask[2].bias.data.copy_(torch.tensor([1e3, 0.0]))  # the threshold is far beyond every image
    torch.testing.assert_close(prototypes(algorithm, others), prototypes(model("soft"), others))


def test_the_mask_is_built_on_five_statistics_of_relative_distances() -> None:
    algorithm, distances = model("masked"), points(9, 3)[:, :WAY].square()
    relative = distances / distances.mean(0)
    five = []
    for column in relative.T:
        deviation = float(column.std(correction=0))
        skewness = float(((column - 1) ** 3).mean()) / deviation**3
        kurtosis = float(((column - 1) ** 4).mean()) / deviation**4 - 3  # 0 for a normal distribution
        five.append([float(column.min()), float(column.max()), deviation**2, skewness, kurtosis])
    threshold, slope = algorithm.mask(torch.tensor(five, dtype=torch.float64)).T
    expected = torch.sigmoid(slope.exp() * (threshold - relative))
    torch.testing.assert_close(algorithm.masks(distances), expected, rtol=1e-5, atol=1e-6)
    assert (expected.diff(dim=0).sign() == -relative.diff(dim=0).sign()).all()  # the farther, the less


def test_one_or_equal_unlabelled_images_give_numbers() -> None:
    algorithm = model("masked")
    for others in (points(1, 1), points(1, 1).repeat(4, 1), TASK.context.support.x[:1]):
        others.requires_grad_()
        state = algorithm.begin(context(others))
        (slope,) = torch.autograd.grad(state.means.sum(), others)
        assert state.means.isfinite().all()
        assert slope.isfinite().all()


def test_the_further_cluster_is_a_gaussian_of_learned_width_at_the_origin() -> None:
    others, radius = points(7, 1), 3.0
    share = model("cluster", radius=radius).share(others, PLAIN)
    logits = torch.cat([-(torch.cdist(others, PLAIN) ** 2), -others.square().sum(1, keepdim=True) / radius**2 - math.log(radius)], 1)
    torch.testing.assert_close(share, logits.softmax(1)[:, :WAY], rtol=1e-6, atol=1e-6)


def test_the_further_cluster_lets_go_as_its_radius_grows() -> None:
    others = points(7, 1)
    left = [float(1 - model("cluster", radius=radius).share(others, PLAIN).detach().sum(1).min()) for radius in (1e2, 1e4, 1e30)]
    assert left[0] > left[1] > left[2]
    far = model("cluster", radius=1e30).share(PLAIN, PLAIN).sum(1)  # what lies on a prototype is of its class
    torch.testing.assert_close(far, torch.ones_like(far))


@pytest.mark.parametrize(("refine", "moves"), [("soft", True), ("cluster", False)])
def test_images_far_from_all_classes_move_soft_prototypes_alone(refine: str, moves: bool) -> None:
    strangers = 30 + points(5, 4)
    near = torch.zeros(1, FEATURES, dtype=torch.float64)  # the cluster's radius is wide enough for all of them
    shift = (prototypes(model(refine, radius=50.0), torch.cat([strangers, near])) - PLAIN).norm(dim=1).max()
    assert (float(shift) > 5) == moves


@pytest.mark.parametrize("refine", REFINES)
def test_the_order_of_unlabelled_images_does_not_matter(refine: str) -> None:
    others = points(7, 1)
    torch.testing.assert_close(prototypes(model(refine), others.flip(0)), prototypes(model(refine), others))


@pytest.mark.parametrize("refine", REFINES)
def test_vmap_equals_the_loop_and_finite_differences_with_unlabelled_images(refine: str) -> None:
    algorithm, tasks = in_float64(small(f"algo=protonet_{refine}", "net=mlp", "net.activation=tanh", "algo.radius=2", *EPISODE))
    assert tasks.context.unlabelled.shape[:2] == (3, (3 + 1) * 2)
    loop = meta_gradient(algorithm, tasks, engine("loop"))
    assert relative_error(meta_gradient(algorithm, tasks, engine("vmap", chunk=2)), loop) < 1e-9
    assert all(parameter.grad.abs().sum() > 0 for parameter in algorithm.parameters())  # radius and mask are learned, too
    by_gradient, by_differences = slopes(algorithm, tasks)
    assert by_gradient == pytest.approx(by_differences, rel=1e-5)


@pytest.mark.parametrize("refine", REFINES)
def test_unlabelled_images_help(refine: str) -> None:
    """Two heaps in one dimension of many, one example each: where the heaps lie shows in the unlabelled images."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(WAY)
    heaps = 3 * torch.eye(FEATURES, dtype=torch.float64)[:WAY]

    def drawn(n: int) -> Tensor:
        return heaps.repeat_interleave(n, 0) + torch.randn(WAY * n, FEATURES, generator=generator, dtype=torch.float64)

    right = {"plain": 0.0, refine: 0.0}
    algorithm = model(refine)
    if refine == "masked":  # keep what is nearer than the average
        algorithm.mask[2].weight.data.zero_()
        algorithm.mask[2].bias.data.copy_(torch.tensor([1.0, 1.0]))
    for _ in range(50):
        plain = Context(Batch(drawn(1), y), y, torch.tensor(0), {})
        known = plain._replace(extras={"unlabelled": drawn(10)})
        query, labels = drawn(20), y.repeat_interleave(20)
        for name, task in (("plain", plain), (refine, known)):
            right[name] += float(PROBLEM.score(algorithm.predict(algorithm.begin(task), query), labels)) / 50
    assert right[refine] > right["plain"] + 0.02


@pytest.mark.parametrize("refine", REFINES)
def test_with_unlabelled_images_a_prototype_hangs_on_the_other_classes_and_says_so(refine: str) -> None:
    algorithm, tasks = in_float64(small(f"algo=protonet_{refine}", "net=mlp", *EPISODE), tasks=1)
    context = select(tasks, 0).context
    (x, y), before = context.support, algorithm.begin(context).means
    other = context._replace(support=Batch(torch.where((y == 0)[:, None, None, None], 1 - x, x), y))
    assert not torch.allclose(algorithm.begin(other).means[1:], before[1:])
    assert not algorithm.pairwise
    assert Run(
        small(f"algo=protonet_{refine}", "net=mlp", *EPISODE, "episode.eval.unlabelled=0", "episode.eval.distractors=0")
    ).algorithm.pairwise


def test_other_methods_ignore_unlabelled_images() -> None:
    plain, more = (Run(classification("protonet", *words)) for words in ([], EPISODE))
    scores = [engine().evaluate(run.algorithm, run.episodes("val").batch(range(4)), LAST) for run in (plain, more)]
    assert same(*scores)
