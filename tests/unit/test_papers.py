"""The script behind docs/papers.md: words of every row compose, its first task is its run's own test, a page tells what is done."""

from __future__ import annotations

import json
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


@pytest.mark.slow
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


@pytest.fixture
def tiny(papers: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A script with one row, that trains for a moment, and a page and records of its own."""
    row = papers.Row("protonet", "omniglot_protonet", {"5w1s": "98.8", "5w5s": "99.7"}, {papers.FIVE: ""}, why="hardly trained")
    words = papers.words
    monkeypatch.setattr(papers, "words", lambda *given: [*words(*given), *TINY, "episode.train.way=5", "data.size=16"])
    monkeypatch.setattr(papers, "TASKS", {"5w5s": "shot=5"})
    finished = papers.finished  # drawn data lie nowhere
    monkeypatch.setattr(papers, "finished", lambda given, folder: finished([word for word in given if "data.root" not in word], folder))
    monkeypatch.setattr(papers, "ROWS", {"protonet": row})
    monkeypatch.setattr(papers, "TABLES", {"omniglot": ([row], papers.FIVE)})
    monkeypatch.setattr(papers, "PAGE", tmp_path / "papers.md")
    monkeypatch.setattr(papers, "KEPT", tmp_path / "papers.json")
    papers.PAGE.write_text("<!-- omniglot: written -->\n<!-- /omniglot -->\n", encoding="utf-8")
    return papers


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The page after this command."""
    monkeypatch.setattr(sys, "argv", ["papers.py", *map(str, arguments)])
    script.main()
    text: str = script.PAGE.read_text(encoding="utf-8")
    return text


def test_what_was_found_stays_when_its_run_is_gone(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, runs = tiny.ROWS["protonet"], tmp_path / "runs"
    write = ("--write", "--runs", runs)
    assert "| 98.8 → not run yet | 99.7 → not run yet | – | – | – | hardly trained |" in run(tiny, monkeypatch, *write)
    folder = runs / tiny.place(row, tiny.FIVE, 0)
    tiny.finished(tiny.words(row, tiny.FIVE), folder)
    assert "| 99.7 → not run yet | running | 2, 0 min | 1 |" in run(tiny, monkeypatch, *write)  # trained, and not tested there
    run(tiny, monkeypatch, "--omniglot", tmp_path, "--runs", runs)
    text = run(tiny, monkeypatch, *write)
    found = [json.loads((folder / name).read_text(encoding="utf-8"))["test"]["accuracy"] for name in ("summary.json", "eval-shot=5.json")]
    assert f"| {tiny.cell('98.8', found[:1])} | {tiny.cell('99.7', found[1:])} | running | 2, 0 min | 1 |" in text
    assert "\n    metarun eval RUN shot=5\n" in text
    shutil.move(folder, tmp_path / "elsewhere")
    assert run(tiny, monkeypatch, *write) == text
    assert str(tmp_path) not in tiny.KEPT.read_text(encoding="utf-8")
    run(tiny, monkeypatch, "--omniglot", tmp_path, "--runs", runs)
    assert not folder.exists()  # nothing is trained twice
    shutil.copytree(tmp_path / "elsewhere", runs / tiny.place(row, tiny.FIVE, 1))
    with pytest.raises(SystemExit, match="other settings"):  # the seed is another
        run(tiny, monkeypatch, *write)


def test_what_was_found_with_other_settings_is_not_run(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny, monkeypatch, "--omniglot", tmp_path, "--runs", tmp_path / "runs")
    run(tiny, monkeypatch, "--write", "--runs", tmp_path / "runs")
    words = tiny.words
    monkeypatch.setattr(tiny, "words", lambda *given: [*words(*given), "optim.lr=0.5"])
    text = run(tiny, monkeypatch, "--write", "--runs", tmp_path / "none")
    assert "| 98.8 → not run yet | 99.7 → not run yet |" in text
    assert "found with other settings" in capsys.readouterr().err


def test_the_page_has_a_place_for_every_table(papers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(papers, "PAGE", Path(shutil.copy(papers.PAGE, tmp_path)))
    monkeypatch.setattr(papers, "KEPT", tmp_path / "papers.json")
    text = run(papers, monkeypatch, "--write", "--runs", tmp_path)
    assert text.count("→ not run yet") == sum(len(training) for row in papers.ROWS.values() for training in row.trainings)
    assert text.count("| chance |") == 2


def test_the_page_is_what_its_records_say(papers: ModuleType) -> None:
    text, records = papers.PAGE.read_text(encoding="utf-8"), papers.kept(Path("nowhere"))
    assert records.keys() == papers.read(papers.KEPT).keys()
    assert all(papers.written(rows, tasks, records) in text for rows, tasks in papers.TABLES.values())
