"""Control from the command line: training, test, bounds, comparison by return, pictures, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import control
from PIL import Image

import metarun as library
from metarun.config.compose import compose, resolve
from metarun.drawing import figures
from metarun.errors import UserError
from metarun.protocols.episodes import EVERY
from metarun.run import Run

TINY = [
    *("experiment=navigation2d_maml", "net.sizes=[8]", "data.horizon=5", "shot=4", "query=4", "device=cpu", "logger=quiet"),
    *("trainer.iterations=2", "trainer.meta_batch=2", "trainer.val_every=1", "trainer.val_episodes=3", "trainer.test_episodes=5"),
]


@pytest.fixture
def acting(metarun):
    """A finished run in the folder ``acting`` below the current one, as the program answered."""
    result = metarun(*TINY, "hydra.run.dir=acting", "--json")
    assert result.status == 0
    return result


def test_a_run_reports_returns_between_its_bounds(acting):
    summary = acting.json
    assert summary == json.loads(Path("acting/summary.json").read_text())
    assert (summary["metric"], summary["higher_is_better"]) == ("return", True)
    assert summary["task"] == "4 trajectories to adapt by, 4 to be judged by"
    scores, test = np.load("acting/test_scores.npy"), summary["test"]
    assert test["return"]["mean"] == pytest.approx(scores.mean())
    assert test["loss"]["mean"] == pytest.approx(-scores.mean())
    assert [point["step"] for point in test["curve"]] == [0, 1, 2, 3]
    bounds = Run(resolve(compose(TINY))).episodes("test").bounds(5)
    assert {name: bound["mean"] for name, bound in summary["bounds"].items()} == pytest.approx(
        {name: returns.mean() for name, returns in bounds.items()}
    )
    assert (scores < bounds["oracle"]).all()
    rows = {line.split()[0]: line.split() for line in acting.out if line[-2:].strip() == "5"}  # episodes
    assert rows["trivial"][1:5] == [f"{bounds['trivial'].mean():.4f}", "±", f"{summary['bounds']['trivial']['ci95']:.4f}", "–"]
    assert rows["oracle"][-1] == rows["test"][-1] == "5"


def test_the_best_checkpoint_is_that_of_the_highest_return(acting):
    lines = [json.loads(line) for line in Path("acting/metrics.jsonl").read_text().splitlines()]
    returns = {line["step"]: line["return"] for line in lines if line["split"] == "val"}
    assert acting.json["best_step"] == max(returns, key=returns.get)
    assert acting.json["val"]["return"]["mean"] == max(returns.values())


def test_eval_has_the_bounds_of_its_own_episodes(metarun, acting):
    again, fewer = metarun("eval acting --json"), metarun("eval acting trainer.test_episodes=3 --json")
    assert again.json["test"] == acting.json["test"]
    assert again.json["bounds"] == acting.json["bounds"]
    assert {bound["n"] for bound in fewer.json["bounds"].values()} == {3}


def test_what_has_no_bounds_says_none(finished):
    assert json.loads((finished / "summary.json").read_text())["bounds"] == {}


def test_a_higher_return_is_better(metarun, acting):
    other = metarun(*TINY, "algo.std=0.6", "hydra.run.dir=other", "--json").json
    compared = metarun("compare acting other --json")
    assert compared.status == 0
    by_return = sorted((acting.json, other), key=lambda summary: summary["test"]["return"]["mean"], reverse=True)
    found = compared.json["groups"]
    assert [group["test_mean"] for group in found] == [summary["test"]["return"]["mean"] for summary in by_return]
    assert [group["test_best"] for group in found] == [True, False]
    better = acting.json["test"]["return"]["mean"] > other["test"]["return"]["mean"]
    assert (compared.json["paired"]["difference"] > 0) == better


def test_check_and_show(metarun):
    assert "all is well" in metarun("check", *TINY).out
    result = metarun("show", *TINY, "--split", "val", "--json")
    assert result.status == 0
    with Image.open(result.json["picture"]) as picture:
        assert picture.width > 300


def test_a_picture_has_the_trajectories_before_and_after_and_the_goal():
    run = Run(control("maml_rl"))
    axes = figures.episode(run, "val", 1).axes[0]
    *ways, goal = axes.lines
    assert len(ways) == 2 * 4
    assert all(len(way.get_xdata()) == 5 for way in ways)
    assert [way.get_xydata()[0].tolist() for way in ways] == [[0, 0]] * 8
    assert goal.get_xydata()[0].tolist() == pytest.approx(run.episodes("val").drawn([1])["goal"][0].tolist())
    curve = run.engine.evaluate(run.algorithm, run.episodes("val").batch([1]), EVERY)["score"][0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"before: return {float(curve[0]):.1f}", f"after 3 inner steps: return {float(curve[-1]):.1f}", "goal"]


def test_a_policy_predicts_nothing(metarun, acting):
    Path("pictures").mkdir()
    result = metarun("predict acting --support pictures --query pictures")
    line = "acting learned to act, and data=navigation2d has no examples to predict: test it with metarun eval"
    assert (result.status, result.err) == (2, [f"metarun: {line}"])
    with pytest.raises(UserError, match=line):
        library.load("acting")


def test_classes_of_goals_are_refused(metarun):
    result = metarun("show", *TINY, "--what", "classes")
    assert (result.status, result.err[-1]) == (
        2, "metarun: data=navigation2d has no classes of images to show; leave --what out for an episode"
    )  # fmt: skip
