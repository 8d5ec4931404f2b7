"""Scores of belonging: against a loop that leaves out one example after the other, Gaussians of known answer, and a threshold's promise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import classification, engine, random, small

from metarun.config.compose import compose, resolve
from metarun.data.episodes import DISTRACTORS
from metarun.errors import UserError
from metarun.experiment import evaluate, train
from metarun.protocols.belonging import belonging, left_out, threshold
from metarun.protocols.unknown import MEASURES, Unknown
from metarun.run import Run
from metarun.task import select

COUNTS = (1, 2, 5, 3)


def support(counts=COUNTS, d: int = 6, apart: float = 3.0, seed: int = 0):
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return apart * random(len(counts), d, seed=seed)[y] + random(len(y), d, seed=seed + 1), y


def by_loops(x, features, y, way):
    """``belonging`` of one query, written out."""
    means = [features[y == c].mean(0) for c in range(way)]
    scatter = sum(float((f - means[c]).square().sum()) for f, c in zip(features, y.tolist()))
    variance = scatter / (len(y) - way)
    return max(-float((x - means[c]).square().sum()) / (variance * (1 + 1 / int((y == c).sum()))) for c in range(way))


def test_belonging_is_what_its_equation_says():
    features, y = support()
    x = random(9, 6, seed=5)
    wanted = [by_loops(row, features, y, 4) for row in x]
    assert belonging(x, features, y, 4).tolist() == pytest.approx(wanted, rel=1e-12)


def test_leaving_out_in_closed_form_is_leaving_out():
    features, y = support()
    found = left_out(features, y, 4)
    assert found[0].isnan()  # the only one of its class
    for i in range(1, len(y)):
        rest = torch.arange(len(y)) != i
        assert found[i].item() == pytest.approx(by_loops(features[i], features[rest], y[rest], 4), rel=1e-10)


def test_leaving_out_one_of_the_only_two_of_a_class_leaves_classes_of_one():
    features, y = support((2, 1, 1))
    found = left_out(features, y, 3)
    assert found[2:].isnan().all()
    for i in (0, 1):
        rest = torch.arange(4) != i
        assert found[i].item() == belonging(features[i : i + 1], features[rest], y[rest], 3).item()
    assert found[0] != found[1]


def test_scores_do_not_hang_on_scale_place_or_order():
    features, y = support()
    x = random(9, 6, seed=5)
    moved = belonging(3 * x + 7, 3 * features + 7, y, 4)
    torch.testing.assert_close(moved, belonging(x, features, y, 4))
    turned = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(belonging(x, features[turned], y[turned], 4), belonging(x, features, y, 4))


@pytest.mark.parametrize("shot", [2, 5, 20])
def test_members_have_the_score_of_their_dimension_whatever_the_shot(shot):
    """A member lies d σ² (1 + 1/n) from its mean in expectation, σ² being estimated over all d coordinates together."""
    scores = []
    for seed in range(40):
        features, y = support([shot] * 4, d=8, apart=50.0, seed=3 * seed)
        x = 50.0 * random(4, 8, seed=3 * seed)[y[:: max(1, shot)]] + random(4, 8, seed=3 * seed + 2)
        scores.append(belonging(x, features, y, 4).mean())
    assert float(torch.stack(scores).mean()) == pytest.approx(-1, abs=0.2)


def test_one_example_a_class_still_ranks_by_distance():
    features, y = support([1] * 4)
    x = features[[0]] + torch.arange(5.0, dtype=torch.float64)[:, None] * random(1, 6, seed=9)
    scores = belonging(x, features, y, 4)
    assert scores.isfinite().all()
    assert scores[0] == 0
    assert left_out(features, y, 4).isnan().all()


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_the_threshold_loses_about_as_many_members_as_it_says(rate):
    """Over many tasks, of members that were not in the support; and rather fewer, as these fit one example more."""
    lost, expected = [], []
    for seed in range(150):
        features, y = support([8] * 4, seed=5 * seed)
        members = 3.0 * random(4, 6, seed=5 * seed)[torch.arange(4).repeat_interleave(10)] + random(40, 6, seed=5 * seed + 2)
        least, rated = threshold(left_out(features, y, 4), rate)
        lost.append((belonging(members, features, y, 4) < least).double().mean())
        expected.append(rated)
    assert -0.035 < np.mean(lost) - np.mean(expected) < 0.01
    assert np.mean(expected) == pytest.approx(rate, abs=0.002)


def test_a_threshold_by_hand():
    scores = torch.tensor([math.nan, 4.0, 1.0, 2.0, 3.0])
    assert threshold(scores, 0.2) == (1.0, pytest.approx(0.2))
    assert threshold(scores, 0.3) == (pytest.approx(1.5), pytest.approx(0.3))
    assert threshold(scores, 0.01) == (1.0, pytest.approx(0.2))  # five places for a further score: none is rarer than 1 in 5
    with pytest.raises(ValueError, match="no class has two examples"):
        threshold(torch.tensor([math.nan]), 0.1)


def open_run(algo: str, *words: str):
    return small(f"algo={algo}", "episode.unknown=2", "shot=3", *words)


def test_unknown_queries_are_of_other_classes_and_leave_the_episode_as_it_is():
    run, plain = Run(open_run("protonet", "net.hidden=8")), Run(small("algo=protonet", "shot=3", "net.hidden=8"))
    asked = next(protocol for protocol in run.protocols if isinstance(protocol, Unknown))
    episodes = run.episodes("test", asked)
    batch, usual, before = episodes.batch(range(30)), run.episodes("test").batch(range(30)), plain.episodes("test").batch(range(30))
    for part in (usual, before):
        assert torch.equal(part.context.support.x, batch.context.support.x)
        assert torch.equal(part.query.x, batch.query.x[:, :6])
    assert batch.query.y.tolist() == [[0, 0, 1, 1, 2, 2, -1, -1, -1, -1]] * 30
    data = run.data.splits["test"]
    images = (data.images.float() / 255).flatten(1)
    for i in range(30):
        task = select(batch, i)
        rows = [int((images == x.flatten()).all(1).nonzero()[0, 0]) for x in task.query.x]
        classes = [row // 8 for row in rows]
        assert set(classes[:6]) == set(task.context.classes.tolist())
        assert len(set(classes[6:])) == 2
        assert not set(classes[6:]) & set(classes[:6])
        assert len(set(rows)) == 10
    assert episodes.sha256(5) != plain.episodes("test").sha256(5)  # other queries, other episodes


def test_unknown_classes_are_no_distractors():
    run = Run(open_run("protonet_soft", "net.hidden=8", "episode.unlabelled=2", "episode.distractors=2"))
    episodes = run.episodes("test", next(p for p in run.protocols if isinstance(p, Unknown)))
    keys, classes, _ = episodes.indices(range(50))
    unknown = {(i, int(row) // 8) for i, rows in enumerate(episodes.unknown(keys, classes)) for row in rows}
    seen = {(i, c) for i, found in enumerate(classes) for c in found.tolist()}
    distractors = {(i, c) for i, found in enumerate(episodes._others(keys, classes, DISTRACTORS, 2)) for c in found.tolist()}
    assert not unknown & (seen | distractors)


def test_a_run_measures_it_and_an_evaluation_can(tmp_path: Path):
    values = open_run("protonet", "net.hidden=8", "logger.pictures=true")
    summary = train(values, tmp_path)
    assert set(MEASURES) <= set(summary["test"])
    assert summary["protocol"] == ["episodes", "verification", "calibration", "unknown"]
    assert not set(MEASURES) & set(summary["val"])
    assert (tmp_path / "unknown.png").stat().st_size > 5_000
    assert all(0 <= summary["test"][name]["mean"] <= 1 and summary["test"][name]["n"] == 6 for name in MEASURES)
    # By hand, from the features of the six episodes.
    run = Run(values, torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True))
    run.algorithm.eval()
    asked = next(protocol for protocol in run.protocols if isinstance(protocol, Unknown))
    areas = []
    for i in range(6):
        task = select(run.episodes("test", asked).batch([i]), 0)
        with torch.no_grad():
            net, (x, y) = run.algorithm.net, task.context.support
            scores = belonging(net(task.query.x, x), net(x, x), y, 3)
        known, others = scores[:6], scores[6:]
        areas.append(float((known[:, None] > others).double().mean() + (known[:, None] == others).double().mean() / 2))
    assert summary["test"]["auroc_unknown"]["mean"] == pytest.approx(np.mean(areas), abs=1e-6)
    (tmp_path / "again").mkdir()
    other = {**values, "protocol": resolve(compose(["protocol=unknown"]))["protocol"]}
    alone = evaluate(other, tmp_path, "best", tmp_path / "again")
    assert (alone["metric"], alone["higher_is_better"]) == ("auroc_unknown", True)
    assert alone["test"]["auroc_unknown"] == summary["test"]["auroc_unknown"]


def test_a_method_whose_weights_adapt_is_asked_by_its_largest_probability():
    run = Run(open_run("maml", "net.hidden=8"))
    asked = next(protocol for protocol in run.protocols if isinstance(protocol, Unknown))
    found = engine().evaluate(run.algorithm, run.episodes("test", asked).batch(range(3)), asked)
    assert torch.equal(found["belonging"], found["softmax"])
    scores, _ = asked.summarise(run.problem, {name: value.double().numpy() for name, value in found.items()})
    assert scores["auroc_unknown"] == scores["auroc_unknown_softmax"]


def test_mapped_and_looped_alike():
    run = Run(open_run("protonet", "net.hidden=8"))
    asked = next(protocol for protocol in run.protocols if isinstance(protocol, Unknown))
    tasks = run.episodes("test", asked).batch(range(4))
    mapped, looped = (engine(map=how).evaluate(run.algorithm, tasks, asked) for how in ("vmap", "loop"))
    for name in mapped:
        torch.testing.assert_close(mapped[name], looped[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["episode.train.unknown=1"], r"unknown key"),
        (["+episode.train.unknown=1"], r"episode\.train\.unknown=1 is not possible: queries of no class are for episode\.eval\.unknown"),
        (["episode.unknown=-1"], r"episode\.unknown=-1 is not possible: it should be 0 or more"),
        (
            ["data=sinusoid", "net=mlp", "algo=maml", "way=1", "episode.unknown=1"],
            r"episode\.eval\.unknown=1 is not possible: data=sinusoid",
        ),
        (["protocol=unknown"], r"protocol=unknown is not possible with algo=protonet: it needs queries of no class, episode\.unknown=1"),
    ],
)
def test_what_cannot_be(words, line):
    with pytest.raises(UserError, match=line):
        Run(classification("protonet", *words) if "data=sinusoid" not in words else small(*words))


def test_more_classes_than_there_are():
    run = Run(small("algo=protonet", "net.hidden=8", "episode.unknown=8"))
    with pytest.raises(
        UserError, match=r"way=3 \+ unknown=8 = 11 is larger than the 10 classes of the val split; choose way \+ unknown <= 10"
    ):
        run.episodes("val")
