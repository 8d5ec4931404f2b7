"""Same class or not, from the command line: measures in the summary and the tables, the ROC picture in the folder and in TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_support import TINY
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarun.protocols.verification import MEASURES


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Ten folders of eight photographs each, of a colour per folder."""
    random = np.random.default_rng(0)
    for i in range(10):
        folder = tmp_path / "people" / f"person_{i}"
        folder.mkdir(parents=True)
        for j in range(8):
            pixels = random.integers(0, 80, 3) + random.integers(0, 100, (20, 20, 3))
            Image.fromarray((pixels + 70 * (i % 2)).astype(np.uint8)).save(folder / f"{j}.png")
    return tmp_path / "people"


def test_a_run_verifies_people_in_folders(metarun, people):
    words = [word for word in TINY if not word.startswith(("data.", "way=", "logger="))]
    data = ["data=folder", f"data.root={people}", "data.size=16", "data.val_fraction=0.3", "data.test_fraction=0.3"]
    result = metarun("algo=siamese", *data, *words, "way=3", "net.norm=running", "hydra.run.dir=run", "--json")
    assert result.status == 0, result.err
    summary = json.loads(Path("run/summary.json").read_text())
    assert result.json == summary
    for split in ("val", "test"):
        assert {"accuracy", "loss", *MEASURES} <= set(summary[split])
        assert all(0 <= summary[split][name]["mean"] <= 1 and summary[split][name]["n"] == 4 for name in MEASURES)
    table = "\n".join(result.out)
    assert "same class or not" in table
    for name in MEASURES:
        assert f"{summary['test'][name]['mean']:.4f} ± {summary['test'][name]['ci95']:.4f}" in table
    with Image.open("run/roc.png") as picture:
        assert picture.width > 600
    events = EventAccumulator("run/tb").Reload()
    assert "test/roc" in events.Tags()["images"]
    assert {"val/auc", "hparam/eer"} <= set(events.Tags()["scalars"])

    again = metarun("eval run logger.tensorboard=false --json")
    assert again.json["test"] == summary["test"]
    assert Path("run/eval/0/roc.png").read_bytes() == Path("run/roc.png").read_bytes()

    (group,) = metarun("compare run --metric eer --json").json["groups"]
    assert group["test_mean"] == summary["test"]["eer"]["mean"]


def test_a_quiet_run_draws_nothing_and_other_methods_verify_nothing(metarun):
    assert metarun("algo=protonet", *TINY, "hydra.run.dir=quiet").status == 0
    assert "auc" in json.loads(Path("quiet/summary.json").read_text())["test"]
    result = metarun("algo=matching", *TINY, "logger=default", "logger.tensorboard=false", "hydra.run.dir=matching")
    assert "same class or not" not in "\n".join(result.out)
    assert not list(Path().glob("*/roc.png"))
