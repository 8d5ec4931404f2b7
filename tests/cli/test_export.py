"""``metarun export RUN weights``, and the end of a run on a folder: which of the files are mislabelled?"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from cli_support import assert_one_line, everything
from PIL import Image

SIDE, CLASSES, EACH = 16, 8, 12
WRONG = {"c1/odd0.png": 2, "c4/odd1.png": 0, "c6/odd2.png": 5}  # files that show another class than that of their folder
WORDS = [
    *("algo=metaweight", "data=folder", "data.root=photos", "episode=dataset", "way=2", "shot=7", "query=2", "episode.clean=3"),
    *(
        "data.size=16",
        "data.channels=1",
        "net=mlp",
        "net.sizes=[24]",
        "algo.test_steps=80",
        "algo.rule=sgd",
        "algo.rate=0.1",
        "algo.meta_rate=0.01",
    ),
    *("trainer.val_episodes=0", "trainer.test_episodes=2", "device=cpu", "logger=quiet", "hydra.run.dir=run"),
]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Eight classes of blotches; three files lie in a wrong folder."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 2, (CLASSES, 4, 4)).repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)

    def paint(file: str, shown: int) -> None:
        path = tmp_path / "photos" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (40 + 150 * shapes[shown] + rng.normal(0, 30, (SIDE, SIDE))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)

    for c in range(CLASSES):
        for i in range(EACH):
            paint(f"c{c}/{i:02d}.png", c)
    for file, shown in WRONG.items():
        paint(file, shown)
    return tmp_path / "photos"


def test_a_run_on_a_folder_ends_with_its_suspects(metarun, photos):
    result = metarun(*WORDS, "--json")
    assert result.status == 0, result.err
    rows = list(csv.DictReader(Path("run/weights.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == CLASSES * EACH + len(WRONG)
    assert {row["file"] for row in rows} == {path.relative_to(photos).as_posix() for path in photos.rglob("*.png")}
    fits = [float(row["fits"]) for row in rows]
    assert fits == sorted(fits)
    weights = {row["file"]: float(row["weight"]) for row in rows}
    assert max(weights[file] for file in WRONG) < np.mean([*weights.values()])
    assert {row["file"] for row in rows[:3]} == set(WRONG)
    for row in rows:
        assert row["class"] == row["file"].partition("/")[0]
        assert 0 <= float(row["probability"]) <= 1
    assert [one["file"] for one in result.json["suspects"]] == [row["file"] for row in rows[:10]]
    text = "\n".join(result.out)
    assert "most suspicious file" in text
    assert all(file in text for file in WRONG)
    with Image.open("run/suspects.png") as sheet:
        assert sheet.size[0] > 500
    assert json.loads(Path("run/summary.json").read_text())["suspects"] == result.json["suspects"]
    before = everything(Path("run"))
    again = metarun("export", "run", "weights", "--out", "weights.csv", "--sheet", "sheet.png", "--json")
    assert again.status == 0, again.err
    assert Path("weights.csv").read_bytes() == before["weights.csv"]
    assert Path("sheet.png").read_bytes() == before["suspects.png"]
    assert everything(Path("run")) == before
    assert (again.json["files"], again.json["suspects"]) == (len(rows), result.json["suspects"])
    # Mistakes, each of them one line.
    for words, pattern in (
        (("run", "weight", "--out", "w.csv"), "nothing called 'weight' to export; did you mean 'weights'"),
        (("run", "--out", "w.csv"), "WHAT is missing, such as weights: metarun export RUN WHAT --out FILE"),
        (("run", "weights", "more", "--out", "w.csv"), "'more' is one word too many"),
        (("run", "weights", "--out", "w.txt"), r"--out w.txt is not possible: give a file that ends in .csv"),
        (("run", "weights", "--out", "w.csv", "--sheet", "s.jpg"), r"--sheet s.jpg is not possible: give a file that ends in .png"),
        (("nowhere", "weights", "--out", "w.csv"), "nowhere"),
        (("run", "weights"), "--out"),
    ):
        assert_one_line(metarun("export", *words), 2, pattern)


@pytest.mark.slow
def test_other_runs_have_no_weights(metarun, run_folder):
    assert_one_line(
        metarun("export", str(run_folder), "weights", "--out", "w.csv"), 2, "algo=maml has no weights to export, and nothing else"
    )
