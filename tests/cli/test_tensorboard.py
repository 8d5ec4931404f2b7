"""A real TensorBoard on this machine is asked what it sees of two runs: one straight through, one cut behind its checkpoint and resumed."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
import pytest
from cli_support import TINY
from helpers import metrics_of
from PIL import Image

from metarun.cli import main
from metarun.trainer import Trainer

WORDS = [*TINY, "way=3", "query=4", "trainer.iterations=6", "trainer.val_every=3", "logger.tensorboard=true", "logger.pictures=true"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """``straight`` is a run, ``resumed`` the same one, cut in its sixth iteration."""
    folder = tmp_path_factory.mktemp("outputs")
    assert main.main([*WORDS, f"hydra.run.dir={folder / 'straight'}"]) == 0
    step = Trainer._train_step

    def cut(self: Trainer) -> None:
        if self.progress.iteration == 5:
            raise RuntimeError("cut")
        step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_step", cut)
        assert main.main([*WORDS, f"hydra.run.dir={folder / 'resumed'}"]) == 1
    assert main.main(["resume", str(folder / "resumed")]) == 0
    assert len(list((folder / "resumed" / "tb").glob("events*"))) == 2
    return folder


Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(outputs) -> Iterator[Ask]:
    """Asks the server for a path with parameters: JSON decoded, anything else as bytes."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(outputs), "--host", "127.0.0.1", "--port", "0"]
    command += ["--load_fast", "false"]  # the loader that drops a cut run's surplus only where the writer says so
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr
            url = next(found[0] for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))

            def get(path: str, **parameters: str) -> Any:
                with urllib.request.urlopen(f"{url}data/{path}?{urlencode(parameters)}", timeout=60) as answer:
                    content = answer.read()
                return json.loads(content) if answer.headers["Content-Type"].startswith("application/json") else content

            deadline = time.monotonic() + 120
            while len(get("plugin/images/tags")) < 2:  # a picture is the last event of each run
                assert time.monotonic() < deadline, get("runs")
                time.sleep(0.5)
            yield get
        finally:
            server.kill()


@pytest.mark.slow
def test_runs_have_no_subruns(ask):
    assert sorted(ask("runs")) == ["resumed/tb", "straight/tb"]


@pytest.mark.parametrize("run", ["straight", "resumed"])
def test_scalars_are_those_of_the_metrics(ask, outputs, run):
    """Also after a resumption: what came behind the checkpoint is there once."""
    for split, name in (("train", "loss"), ("val", "accuracy")):
        wanted = [(line["step"], line[name]) for line in metrics_of(outputs / run) if line["split"] == split]
        points = [(step, value) for _, step, value in ask("plugin/scalars/scalars", run=f"{run}/tb", tag=f"{split}/{name}")]
        assert [step for step, _ in points] == [step for step, _ in wanted] == list(range(1, 7) if split == "train" else (3, 6))
        assert [value for _, value in points] == pytest.approx([value for _, value in wanted], rel=1e-6)


def test_adaptation_curve(ask, outputs):
    curve = json.loads((outputs / "straight" / "summary.json").read_text())["test"]["curve"]
    points = ask("plugin/scalars/scalars", run="straight/tb", tag="test/adaptation_curve")
    assert [(step, pytest.approx(value)) for _, step, value in points] == [(point["step"], point["mean"]) for point in curve]


def test_custom_charts_have_bands_that_exist(ask, outputs):
    layout = ask("plugin/custom_scalars/layout")
    charts = {chart["title"]: chart for category in layout["category"] for chart in category["chart"]}
    assert {"development accuracy", "loss", "test accuracy as learning goes on"} == charts.keys()
    tags = ask("plugin/scalars/tags")["straight/tb"].keys()
    for title in ("development accuracy", "test accuracy as learning goes on"):
        (series,) = charts[title]["margin"]["series"]
        assert set(series.values()) <= tags
    for pattern in charts["loss"]["multiline"]["tag"]:
        assert any(re.search(pattern, tag) for tag in tags)
    low, high = (
        [value for _, _, value in ask("plugin/scalars/scalars", run="straight/tb", tag=f"band/val/accuracy/{edge}")]
        for edge in ("low", "high")
    )
    lines = [line for line in metrics_of(outputs / "straight") if line["split"] == "val"]
    assert low == pytest.approx([line["accuracy"] - line["ci95"] for line in lines])
    assert high == pytest.approx([line["accuracy"] + line["ci95"] for line in lines])


def test_hparams_with_results(ask, outputs):
    request = json.dumps({"startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING"]})
    groups = ask("plugin/hparams/session_groups", request=request)["sessionGroups"]
    assert len(groups) == 2
    summary = json.loads((outputs / "straight" / "summary.json").read_text())
    for group in groups:
        assert group["hparams"]["algo.inner_lr"] == pytest.approx(0.4)
        assert group["hparams"]["trainer.meta_batch"] == 2
        assert group["hparams"]["algo.name"] == "maml"
        assert not any(name.endswith("_target_") or name.startswith("logger.") for name in group["hparams"])
        results = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        assert results["hparam/accuracy"] == pytest.approx(summary["test"]["accuracy"]["mean"])


def test_picture_of_an_answered_episode(ask):
    (entry,) = ask("plugin/images/images", run="straight/tb", tag="val/episode_0", sample="0")
    with Image.open(io.BytesIO(ask("plugin/images/individualImage", **dict(parse_qsl(entry["query"]))))) as picture:
        assert picture.width > 300
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20)}
    judged = {(0x7F, 0xB6, 0x9A), (0xD1, 0x49, 0x5B)}  # right, wrong
    assert judged & colours


def test_projector_shows_a_test_episode(ask):
    """3 classes, 1 support and 4 query images of each, with thumbnails."""
    assert sorted(ask("plugin/projector/runs")) == ["resumed/tb", "straight/tb"]
    (embedding,) = ask("plugin/projector/info", run="straight/tb")["embeddings"]
    assert re.fullmatch(r"test_episode_0:0000[36]", embedding["tensorName"])
    where = {"run": "straight/tb", "name": embedding["tensorName"]}
    features = np.frombuffer(ask("plugin/projector/tensor", **where), np.float32)
    assert len(features) % 15 == 0
    assert features.std() > 0
    rows = [line.split("\t") for line in ask("plugin/projector/metadata", **where).decode().splitlines()]
    assert rows[0] == ["class", "part"]
    assert len({name for name, _ in rows[1:]}) == 3
    assert [part for _, part in rows[1:]] == ["support"] * 3 + ["query"] * 12
    with Image.open(io.BytesIO(ask("plugin/projector/sprite_image", **where))) as sprite:
        assert sprite.size == (4 * 28, 4 * 28)


def test_pictures_can_be_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main([*WORDS, "logger.pictures=false", "hydra.run.dir=plain"]) == 0
    assert [path.name.split(".")[0] for path in Path("plain/tb").iterdir()] == ["events"]
