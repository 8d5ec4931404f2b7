"""Few classes, honestly: ``check`` proposes what runs, training warns of development tasks over hardly any classes, folds are one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WORDS = [
    *("algo=protonet", "data=folder", "data.root=photos", "data.size=16", "net.hidden=4", "device=cpu", "way=2", "query=3", "logger=quiet"),
    *("trainer.iterations=2", "trainer.meta_batch=1", "trainer.val_episodes=3", "trainer.test_episodes=3"),
]


@pytest.fixture
def photos(tmp_path):
    """Ten classes of six pictures in the current folder of the program."""
    random = np.random.default_rng(0)
    for i in range(10):
        (tmp_path / "photos" / f"c{i}").mkdir(parents=True)
        for j in range(6):
            Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"c{i}" / f"{j}.png")


def test_check_proposes_what_runs(metarun, photos):
    asked = [word for word in WORDS if not word.startswith(("way=", "query="))]
    result = metarun("check", *asked, "way=5", "query=15")
    assert (result.status, result.out) == (2, [])
    assert result.err[-1].startswith("metarun: shot=1 + query=15 = 16 images per class, but class ")
    assert result.err[-1].endswith("; this would run: way=2 shot=1 query=5")
    result = metarun("check", *asked, "way=2", "shot=1", "query=5")
    assert (result.status, result.out[-1]) == (0, "all is well")
    told = "val has 2 classes for way=2, so all episodes hold the same 2, and scores say little of other classes: compare several divisions"
    assert any(told in line for line in result.err)


def test_folds_are_one_line(metarun, photos):
    result = metarun("-m", "sweep=folds", *WORDS, "--json")
    assert result.status == 0, result.err
    found = result.json
    assert len(found["runs"]) == 5
    (group,) = found["groups"]
    means = [run["test"]["accuracy"]["mean"] for run in found["runs"]]
    assert group["runs"] == 5
    assert group["test_mean"] == pytest.approx(np.mean(means))
    assert group["test_std_over_divisions"] == pytest.approx(np.std(means, ddof=1))
    low, high = (re.escape(f"{value:.4f}") for value in (min(means), max(means)))
    mean, std = f"{np.mean(means):.4f}", f"{np.std(means, ddof=1):.4f}"
    line = rf"protonet: test accuracy {mean} over 5 divisions of the classes, std {std}, from {low} to {high}"
    assert any(re.fullmatch(line, printed) for printed in result.out), result.out
    # Every class is tested once.
    folders = [path.parent for path in Path(found["folder"]).glob("*/summary.json")]
    assert len({json.loads((folder / "checkpoints" / "inputs.json").read_text())["data"]["test"] for folder in folders}) == 5


@pytest.mark.slow
def test_divisions_by_another_seed_are_one_line_too_and_methods_stay_apart(metarun, photos):
    result = metarun(
        "-m", *[word for word in WORDS if not word.startswith("algo=")], "algo=protonet,nearest", "data.split_seed=0,1", "--json"
    )
    assert result.status == 0, result.err
    assert sorted(group["algo"] for group in result.json["groups"]) == ["nearest", "protonet"]
    assert all(group["runs"] == 2 for group in result.json["groups"])
    both = metarun("-m", *WORDS, "data.split_seed=0,1", "seed=0,1", "--json")
    (group,) = both.json["groups"]
    assert (group["runs"], group["seeds"]) == (4, "0 1")
    assert "test_std_over_runs" in group
