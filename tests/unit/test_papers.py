"""The script behind docs/papers.md: words of every row compose, its first task is its run's own test, a page tells what is done."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import composed

from metarun.config.schema import validate

CHECKOUT = Path(__file__).resolve().parents[2]
TINY = ["data=glyphs", "data.train_classes=30", "data.val_classes=20", "data.test_classes=20", "net.hidden=4", "device=cpu", "logger=quiet"]
TINY += ["trainer.iterations=2", "trainer.val_every=2", "trainer.val_episodes=2", "trainer.test_episodes=3", "engine.chunk=20"]


@pytest.fixture(scope="module")
def papers() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CHECKOUT / "scripts")
        import papers

        yield papers
        for name in ("papers", "pages"):
            sys.modules.pop(name)


def test_every_row_has_a_preset_whose_test_is_its_first_task(papers: ModuleType) -> None:
    for row in papers.ROWS.values():
        assert {task for training in row.trainings for task in training} <= {*papers.TASKS, *papers.MEASURES}
        for training in row.trainings:
            spec = validate(composed(*papers.words(row, training, 1))).eval
            if training[0] in papers.TASKS:
                assert f"way={spec.way} shot={spec.shot}" == papers.TASKS[training[0]], row.name


def test_rows_that_share_a_folder_share_their_training(papers: ModuleType) -> None:
    typed: dict[str, set[str]] = {}
    for row in papers.ROWS.values():
        for training in row.trainings:
            typed.setdefault(papers.place(row, training, 0), set()).add(" ".join(papers.words(row, training)))
    assert all(len(words) == 1 for words in typed.values())


@pytest.mark.parametrize("full", [path.stem for path in (CHECKOUT / "conf" / "experiment" / "paper" / "full").glob("*.yaml")])
def test_a_full_budget_has_the_method_and_data_of_its_preset_and_takes_longer(full: str) -> None:
    short, long = (validate(composed(f"experiment=paper/{folder}{full}")) for folder in ("", "full/"))
    assert (short.algo.target, short.data, short.net, short.eval) == (long.algo.target, long.data, long.net, long.eval)
    images = [valid.trainer.values["iterations"] * valid.trainer.values["meta_batch"] for valid in (short, long)]
    assert images[0] < images[1]


def test_a_figure_stands_beside_the_papers(papers: ModuleType) -> None:
    one, other = {"mean": 0.985, "ci95": 0.002}, {"mean": 0.975, "ci95": 0.002}
    assert papers.cell("98.8", [one]) == "98.8 → 98.50 ± 0.20 (−0.30)"
    assert papers.cell("~97.5", [one, other]) == "~97.5 → 98.00 ± 0.71 (+0.50)"
    assert papers.cell("", [one]) == "– → 98.50 ± 0.20"
    assert papers.cell("98.8", []) == "98.8 → not run yet"


def test_the_table_has_what_is_finished_and_no_other_settings(papers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = papers.Row("protonet", "omniglot_protonet", {"5w1s": "98.8", "5w5s": "99.7"}, {papers.FIVE: ""}, why="hardly trained")
    words = papers.words
    monkeypatch.setattr(papers, "words", lambda *given: [*words(*given), *TINY, "episode.train.way=5", "data.size=16"])
    monkeypatch.setattr(papers, "TASKS", {"5w5s": "shot=5"})
    assert "| 98.8 → not run yet | 99.7 → not run yet | – | – | – | hardly trained |" in papers.table([row], papers.FIVE, tmp_path)
    folder = tmp_path / papers.place(row, papers.FIVE, 0)
    summary = papers.finished(papers.words(row, papers.FIVE), folder)
    assert "| 99.7 → not run yet | running | 2, 0 min | 1 |" in papers.table([row], papers.FIVE, tmp_path)  # trained, and not tested there
    found = papers.evaluation(folder, papers.asked(row, papers.FIVE, "5w5s"), summary)["test"]["accuracy"]
    assert papers.cell("99.7", [found]) in papers.table([row], papers.FIVE, tmp_path)
    assert "\n    metarun eval RUN shot=5\n" in papers.table([row], papers.FIVE, tmp_path)
    shutil.copytree(folder, tmp_path / papers.place(row, papers.FIVE, 1))
    with pytest.raises(SystemExit, match="other settings"):  # the seed is another
        papers.table([row], papers.FIVE, tmp_path)


def test_the_page_has_a_place_for_every_table(papers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(papers, "PAGE", Path(shutil.copy(papers.PAGE, tmp_path)))
    monkeypatch.setattr(sys, "argv", ["papers.py", "--write", "--runs", str(tmp_path)])
    papers.main()
    text = papers.PAGE.read_text(encoding="utf-8")
    assert text.count("→ not run yet") == sum(len(training) for row in papers.ROWS.values() for training in row.trainings)
    assert text.count("| chance |") == 2
