"""Nearest neighbours in pixels: duplicates are found for certain, noise is at chance, distances by hand; nothing is trained."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import classification, engine, small, vectors

from metarun.algos.metric.nearest import Nearest
from metarun.data.episodes import ClassEpisodes, Split
from metarun.data.glyphs import Glyphs
from metarun.problem import Classification, EpisodeSpec, Problem
from metarun.protocols.episodes import LAST
from metarun.run import Run

GLYPHS = ["data=glyphs", "data.train_classes=2", "data.val_classes=2", "data.test_classes=20", "shot=1"]


def test_the_answer_is_the_nearest_example_of_each_class() -> None:
    problem, task = vectors(features=5, way=3, shot=4)
    squared = torch.cdist(task.query.x, task.context.support.x).square().view(-1, 3, 4)
    cosine = F.cosine_similarity(task.query.x[:, None], task.context.support.x, dim=-1).view(-1, 3, 4)
    for distance, expected in (("euclidean", -squared.amin(-1)), ("cosine", cosine.amax(-1))):
        model = Nearest(torch.nn.Identity(), problem, distance=distance)
        torch.testing.assert_close(model.predict(model.begin(task.context), task.query.x), expected)


@pytest.mark.parametrize("algo", ["nearest", "hausdorff"])
def test_duplicates_are_always_recognised(algo: str) -> None:
    run = Run(small(f"algo={algo}", "data.variation=0", "way=5", *GLYPHS))
    assert run.engine.evaluate(run.algorithm, run.episodes("test").batch(range(10)), LAST)["score"].min() == 1


@pytest.mark.parametrize("algo", ["nearest", "hausdorff"])
def test_noise_is_at_chance(algo: str) -> None:
    run = Run(small(f"algo={algo}", "way=5", "query=10", *GLYPHS))
    images = torch.randint(0, 256, (200, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise = Split(images, torch.arange(10).numpy() * 20, torch.full((10,), 20).numpy(), [str(i) for i in range(10)])
    spec = EpisodeSpec(way=5, shot=1, query=10)
    problem = Problem(Classification(), (1, 8, 8), 5, 10, spec, spec)
    model = type(run.algorithm)(run.algorithm.net, problem, **run.valid.algo.values)
    scores = engine().evaluate(model, ClassEpisodes(noise, "test", spec, 0).batch(range(60)), LAST)["score"]
    assert abs(float(scores.mean()) - 0.2) < 5 * 0.4 / (60 * 50) ** 0.5


def test_it_leaves_the_net_aside() -> None:
    answers = [
        engine().evaluate(run.algorithm, run.episodes("val").batch([0, 1]), LAST)["loss"]
        for run in (Run(classification("nearest", words)) for words in ("net.norm=batch", "net.down=stride"))
    ]
    assert torch.equal(*answers)


def test_on_invented_characters_both_are_above_chance_and_hausdorff_is_the_better() -> None:
    glyphs = Glyphs(0, train_classes=2, val_classes=2, test_classes=60, drawers=6, size=28, variation=1.0)
    tasks = glyphs.episodes("test", EpisodeSpec(way=5, shot=1, query=3), 0).batch(range(40))
    accuracy = {}
    for algo in ("nearest", "hausdorff"):
        run = Run(small(f"algo={algo}", *GLYPHS))
        accuracy[algo] = float(run.engine.evaluate(run.algorithm, tasks, LAST)["score"].mean())
    assert 0.25 < accuracy["nearest"] < accuracy["hausdorff"]
