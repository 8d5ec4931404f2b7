"""Whole training sets as tasks: places instead of images, corruption by the book, clean examples beside, supervised training on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import double, engine, meta_gradient, patterns, same, small

from metarun.adaptation import adapt
from metarun.data.episodes import ClassEpisodes
from metarun.errors import UserError
from metarun.experiment import train
from metarun.problem import EpisodeSpec
from metarun.protocols.episodes import LAST
from metarun.run import Run
from metarun.task import select

DATA = patterns(8, 30, 0)
SMALL = ("shot=4", "query=2", "episode.clean=2")  # of the 8 images that a class of the tests' runs has


def episodes(seed: int = 0, **spec: Any) -> ClassEpisodes:
    return ClassEpisodes(DATA, "train", EpisodeSpec(**{"way": 4, "shot": 10, "query": 5, **spec}), seed)


def test_a_whole_training_set_is_places_of_what_all_tasks_share() -> None:
    whole, plain = (episodes(whole=flag, clean=2).batch([0, 3]) for flag in (True, False))
    assert whole.context.support.x.dtype == torch.int64
    assert whole.context.shared is not whole.context.support.x
    for i in range(2):
        mine, other = (select(tasks, i).context for tasks in (whole, plain))
        assert same(mine.examples(), other.examples())
        chosen = torch.tensor([3, 0, 39])
        assert same(mine.examples(chosen), other.examples(chosen))
        assert torch.equal(other.examples(chosen).x, other.support.x[chosen])
        assert same(mine.extras, other.extras)
    assert same(whole.query, plain.query)


def test_clean_examples_are_beside_support_and_query_which_stay_as_they_are() -> None:
    tasks = episodes(clean=3).batch(range(20))
    assert tasks.context.extras["clean_x"].shape == (20, 12, 2, 16, 16)
    assert tasks.context.extras["clean_y"][0].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for i in range(20):
        task = select(tasks, i)
        seen = torch.cat([task.context.support.x, task.query.x, task.context.extras["clean_x"]]).flatten(1)
        assert len(seen.unique(dim=0)) == len(seen)


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_wrong_labels_are_as_many_as_asked_for_and_of_any_other_class(rate: float) -> None:
    right, wrong = (episodes(**words).batch(range(300)).context.support for words in ({}, {"corrupt": "labels", "rate": rate}))
    assert torch.equal(right.x, wrong.x)
    moved = (wrong.y - right.y) % 4
    assert ((moved != 0).sum(1) == round(rate * 40)).all()
    shares = torch.bincount(moved[moved != 0], minlength=4)[1:] / (moved != 0).sum()
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    places = (moved != 0).double().mean(0)  # any place is as likely as another
    assert float((places - rate).abs().max()) < 4 * np.sqrt(rate * (1 - rate) / 300) + 1e-9


def test_imbalance_is_geometric_and_no_class_vanishes() -> None:
    y = episodes(corrupt="imbalance", rate=0.125, shot=16).batch([0]).context.support.y[0]
    assert torch.bincount(y).tolist() == [16, 8, 4, 2]
    rare = episodes(corrupt="imbalance", rate=0.005, way=2, shot=20).batch([0]).context.support.y[0]
    assert torch.bincount(rare).tolist() == [20, 1]
    full, part = (episodes(**words, shot=16).batch([5]).context.support.x[0] for words in ({}, {"corrupt": "imbalance", "rate": 0.125}))
    assert torch.equal(full[:24][[*range(16), *range(16, 24)]], part[:24])


def test_noise_takes_the_place_of_so_many_images() -> None:
    plain, noisy = (select(episodes(**words).batch([1]), 0).context for words in ({}, {"corrupt": "noise", "rate": 0.25}))
    other = (plain.support.x != noisy.support.x).flatten(1).any(1)
    assert int(other.sum()) == 10
    pixels, images = noisy.support.x[other], plain.support.x
    for channel in range(2):
        assert float(pixels[:, channel].mean()) == pytest.approx(float(images[:, channel].mean()), abs=0.03)
        assert float(pixels[:, channel].std()) == pytest.approx(float(images[:, channel].std()), abs=0.03)
    assert torch.equal(plain.support.y, noisy.support.y)
    whole = select(episodes(corrupt="noise", rate=0.25, whole=True).batch([1]), 0).context
    assert same(whole.examples(), noisy.support)


def test_what_is_corrupt_is_a_part_of_an_episodes_identity() -> None:
    hashes = [episodes().sha256(3)]
    hashes += [episodes(corrupt="labels", rate=rate).sha256(3) for rate in (0.1, 0.5)]
    hashes += [episodes(corrupt=how, rate=0.5).sha256(3) for how in ("noise", "imbalance")]
    assert len(set(hashes)) == 5
    assert episodes(corrupt="labels", rate=0.5).sha256(3) == hashes[2]


def words(*more: str) -> dict[str, Any]:
    return small("algo=supervised", "net.hidden=8", "episode=dataset", *SMALL, "algo.batch=7", *more)


def test_training_on_places_is_training_on_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, mapped and one by one, recorded and not."""
    run = Run(words("episode.corrupt=labels", "episode.rate=0.3"))
    algorithm = run.algorithm.double()
    assert run.spec["eval"].whole
    tasks = run.episodes("test").batch(range(3))
    tasks = tasks._replace(query=double(tasks.query), context=tasks.context._replace(shared=tasks.context.shared.double() / 255))
    context = select(tasks, 0).context
    plain = context._replace(support=context.examples(), shared=())
    (*_, a), (*_, b) = (adapt(algorithm, which, 6) for which in (context, plain))
    assert same(a.fast, b.fast)
    found = [how.evaluate(algorithm, tasks, LAST)["loss"] for how in (engine(), engine("loop"), engine(chunk=2), engine(record=False))]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=0)


def test_a_learned_optimizer_trains_on_places_too() -> None:
    run = Run(small("algo=lstm_optimizer", "net.hidden=4", "episode=dataset", *SMALL, "algo.batch=5"))
    tasks = run.episodes("train").batch(range(2))
    assert tasks.context.support.x.dtype == torch.int64
    torch.testing.assert_close(*(meta_gradient(run.algorithm, tasks, how) for how in (engine(), engine("loop"))), rtol=1e-3, atol=1e-6)


def test_other_methods_get_the_same_episodes_as_images() -> None:
    run = Run(small("algo=protonet", "net.hidden=8", "episode=dataset", *SMALL, "episode.corrupt=labels", "episode.rate=0.9"))
    task = run.episodes("test").batch(range(4))
    assert task.context.support.x.is_floating_point()
    assert run.engine.evaluate(run.algorithm, task, LAST)["loss"].isfinite().all()  # though some class has lost all its examples


@pytest.mark.slow
def test_a_run_trains_on_a_training_set(tmp_path: Path) -> None:
    found = []
    for name, more in (("clean", ()), ("wrong", ("episode.corrupt=labels", "episode.rate=0.8"))):
        values = words("algo.rate=0.02", "trainer.curve=log", *more)
        found.append(train(values | {"algo": values["algo"] | {"test_steps": 40}}, tmp_path / name))
    clean, wrong = found
    assert [point["step"] for point in clean["test"]["curve"]] == [0, 1, 2, 4, 8, 16, 32, 40]
    assert clean["test"]["accuracy"]["mean"] > wrong["test"]["accuracy"]["mean"] + 0.2


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (["episode.corrupt=labels"], r"episode.corrupt=labels needs episode.\w+.rate above 0, up to 1|corrupt=labels needs"),
        (["episode.rate=0.5"], r"rate=0.5 does nothing with .*corrupt=none: choose corrupt=labels, imbalance or noise"),
        (["episode.rate=1.5"], r"rate=1.5 is not possible: it should be 1.0 or less"),
        (["episode.corrupt=lables"], r"corrupt=lables is not possible: it should be 'none', 'labels'.*did you mean 'labels'"),
        (["episode.uneven=true", "episode.clean=0", "episode.corrupt=labels", "episode.rate=0.1"], r"goes with neither clean nor corrupt"),
        (["augment=photos"], r"leave augment=none"),
        (["shot=1000"], r"choose shot \+ query \+ clean <= \d+"),
    ],
)
def test_bad_input_gets_a_line(wrong: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        Run(words(*wrong)).episodes("test")


def test_points_and_actors_have_no_classes_to_corrupt() -> None:
    with pytest.raises(UserError, match=r"clean=2 is not possible: data=sinusoid has no classes of images; leave it at 0"):
        Run(small("algo=maml", "data=sinusoid", "net=mlp", "episode.clean=2"))
