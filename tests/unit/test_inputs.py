"""What a run's numbers come from is noted when it begins, and a run that goes on with something else says what."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from helpers import Patterns, interrupt_after, small
from omegaconf import OmegaConf
from PIL import Image

from metarun import experiment
from metarun.config import inputs
from metarun.config.stored import read_config
from metarun.data.base import ImageDataset
from metarun.errors import UserError
from metarun.trainer import Interrupted


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """The folder of a run that was cut after two iterations."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(Interrupted):
            experiment.train(small("algo=protonet"), tmp_path / "run")
    return tmp_path / "run"


def resume(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Go on with a run; returns its warnings."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        experiment.train(read_config(folder), folder, resume=True)
    return caplog.messages


def edit(folder: Path, key: str, value: object) -> None:
    config = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(config, key, value)
    OmegaConf.save(config, folder / "config.yaml")


def test_a_run_that_goes_on_unchanged_says_nothing(cut: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(cut, "logger.every", 7)  # no number hangs on it
    assert resume(cut, caplog) == []


def test_a_changed_configuration_is_said(cut: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(cut, "optim.lr", 0.5)
    edit(cut, "seed", 3)
    said = resume(cut, caplog)
    assert len(said) == 1
    assert "its numbers will be of both: optim.lr from 0.001 to 0.5; seed from 0 to 3" in said[0]


def test_changed_data_are_said(cut: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Patterns.__init__

    def other_pixels(self: ImageDataset, seed: int) -> None:
        original(self, seed)
        splits = {name: part if name == "test" else part._replace(images=255 - part.images) for name, part in self.splits.items()}
        ImageDataset.__init__(self, splits)

    monkeypatch.setattr(Patterns, "__init__", other_pixels)
    said = resume(cut, caplog)
    assert len(said) == 1
    assert said[0].endswith("its numbers will be of both: the data of train and val")


def test_a_note_that_is_missing_or_damaged_stops_nothing(cut: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = inputs.path(cut)
    for content in (b"[" * 100_000, b"{}", b"7", b"\xff", b'{"config": {"optim": 1}, "data": []}'):
        kept.write_bytes(content)
        caplog.clear()
        inputs.warn_of_changes(cut, inputs.note({}, Patterns(0), {}))
        assert "inputs.json cannot be read" in caplog.text
    kept.unlink()
    assert resume(cut, caplog) == []


def test_runs_on_other_pictures_have_other_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal counts of other pictures were once told as identical test episodes."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    hashes = []
    for number, name in enumerate(("one", "two", "one again")):
        pixels = np.random.default_rng(number % 2)
        for i in range(8):
            for j in range(4):
                path = tmp_path / name / f"class{i}" / f"{j}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.integers(0, 256, (16, 16), dtype=np.uint8)).save(path)
        words = ["algo=nearest", "data=folder", f"data.root={tmp_path}/{name}", "data.size=16", "way=2", "shot=1", "query=1"]
        hashes.append(experiment.train(small(*words), tmp_path / f"run {name}")["episodes_sha256"])
    assert hashes[0] != hashes[1]
    assert hashes[0] == hashes[2]


def test_the_note_is_json_with_a_digest_of_every_split(cut: Path) -> None:
    note = json.loads(inputs.path(cut).read_text())
    assert set(note["data"]) == {"train", "val", "test"}
    assert note["config"]["optim"]["lr"] == 0.001


def test_check_refuses_what_training_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Patterns.__init__

    def no_val(self: ImageDataset, seed: int) -> None:
        original(self, seed)
        ImageDataset.__init__(self, {name: part for name, part in self.splits.items() if name != "val"})

    monkeypatch.setattr(Patterns, "__init__", no_val)
    with pytest.raises(UserError, match="these data have no val split, only train, test"):
        experiment.check(small("algo=protonet"))


def test_a_run_is_not_tested_on_classes_of_its_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    pixels = np.random.default_rng(0)
    for i in range(12):
        for j in range(4):
            path = tmp_path / "pictures" / f"class{i:02}" / f"{j}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.integers(0, 256, (16, 16), dtype=np.uint8)).save(path)
    words = ["algo=nearest", "data=folder", f"data.root={tmp_path}/pictures", "data.size=16", "way=2", "shot=1", "query=1"]
    words += ["data.val_fraction=0.25", "data.test_fraction=0.25"]
    experiment.train(small(*words), tmp_path / "run")
    for more in (["data.fold=1"], ["data.fold=2"]):
        with pytest.raises(UserError, match=r"of the 3 classes of test are classes that this run was trained on, such as class\d\d"):
            experiment.evaluate(small(*words, *more), tmp_path / "run", "best", tmp_path)
    (tmp_path / "pictures").rename(tmp_path / "moved")  # and under other names
    for i, folder in enumerate(sorted((tmp_path / "moved").iterdir())):
        folder.rename(folder.with_name(f"other{i:02}"))
    moved = [word.replace("/pictures", "/moved") for word in words]
    with pytest.raises(UserError, match=r"classes of test are classes that this run was trained on, such as other\d"):
        experiment.evaluate(small(*moved, "data.fold=1"), tmp_path / "run", "best", tmp_path)
    assert experiment.evaluate(small(*moved), tmp_path / "run", "best", tmp_path)["test"], "its own test has none of them"
