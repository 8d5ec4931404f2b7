"""What people see: a live bar on a terminal, plain lines elsewhere, and a closing table that fits."""

from __future__ import annotations

import io
import json
import logging

import pytest
from rich.console import Console
from rich.text import Text

from metarun.cli import summary_table
from metarun.tracking import console


@pytest.fixture(params=[80, 120])
def terminal(request, monkeypatch):
    """The console, on a terminal of this many columns."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=request.param, highlight=False)
    monkeypatch.setattr(console, "console", screen)
    return screen


def test_the_bar_fits_the_terminal(terminal):
    display = console.Display(enabled=True)
    display.show("train", 1234, 60000, {"loss": 1.23456, "accuracy": 0.98765, "tasks/s": 1234.5})
    display.bar.refresh()
    display.close()
    line = last_bar(terminal)
    assert len(line) <= terminal.width
    for shown in ("train", " 1234/60000 ", "loss 1.235", "accuracy 0.988", "tasks/s 1,234", "0:00 < -:--"):
        assert shown in line


def last_bar(terminal) -> str:
    """The bar's last state, without control codes."""
    text = Text.from_ansi(terminal.file.getvalue().replace("\r", "\n")).plain
    return [line for line in text.splitlines() if "train" in line][-1].rstrip()


def test_off_a_terminal_a_line_now_and_then(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console, "console", Console(file=io.StringIO(), force_terminal=False))
    display = console.Display(enabled=True)
    with caplog.at_level(logging.INFO):
        for second in range(65):
            now[0] = float(second)
            display.show("train", second, 100, {"loss": 2.0})
    assert [record.getMessage() for record in caplog.records] == ["train 30/100  loss 2.000", "train 60/100  loss 2.000"]
    assert console.console.file.getvalue() == ""


def test_disabled_it_says_nothing(terminal):
    display = console.Display(enabled=False)
    display.show("train", 1, 2, {"loss": 1.0})
    display.close()
    assert terminal.file.getvalue() == ""


def test_what_a_line_quotes_steers_no_terminal_and_is_in_the_log(tmp_path, capsys):
    """A class is called as its folder, which may be anybody's."""
    console.start_logging(tmp_path)
    logging.getLogger("metarun.data").warning("left out: %s\n2", "c\x1b[2J caf\udce9 猫")
    console.start_logging()
    assert capsys.readouterr().err.endswith(" left out: c�[2J caf� 猫\n2\n")
    assert "left out: c�[2J caf� 猫\n2" in (tmp_path / "metarun.log").read_text(encoding="utf-8")


@pytest.fixture
def summary(finished):
    return json.loads((finished / "summary.json").read_text())


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits(finished, summary, monkeypatch, capsys, width):
    monkeypatch.setattr(summary_table, "_console", lambda: Console(width=width, highlight=False))
    summary["test"]["curve"] = [{"step": k, "mean": 0.5, "ci95": 0.1} for k in range(51)]
    summary_table.show(summary, finished)
    out = capsys.readouterr().out.splitlines()
    assert all(len(line.rstrip()) <= width for line in out if "run folder" not in line)
    assert not any("…" in line for line in out)
    steps = next(line for line in out if "inner step" in line).split()[2:]
    assert steps[0] == "0"
    assert steps[-1] == "50"


@pytest.mark.parametrize(("mode", "said"), [("batch", "transductive"), ("support", "norm support (inductive)"), ("none", "no norm")])
def test_the_table_says_whose_statistics(finished, summary, capsys, mode, said):
    summary_table.show(summary | {"bn_mode": mode}, finished)
    assert said in capsys.readouterr().out


def test_the_table_of_a_run_that_diverged(finished, summary, capsys):
    summary["test"]["loss"] = {"mean": None, "ci95": None, "n": 4}
    summary_table.show(summary, finished)
    assert "nan ± nan" in capsys.readouterr().out


def test_the_table_of_regression_without_test(finished, summary, capsys):
    summary_table.show(
        summary | {"task": "1 support and 2 query points", "test": None, "val": {"mse": {"mean": 1.5, "ci95": 0.25, "n": 9}}}, finished
    )
    out = capsys.readouterr().out
    assert "1.5000 ± 0.2500" in out
    assert "1 support and 2 query points" in out
    assert "test" not in out.split("run folder")[0]


@pytest.mark.parametrize(
    ("folder", "root"),
    [
        ("outputs/2026-01-31/12-00-00_maml-omniglot-5w1s", "outputs"),
        ("outputs/multirun/2026-01-31/12-00-00/0_maml-omniglot-5w1s", "outputs"),
        ("elsewhere/run", "elsewhere/run"),
    ],
)
def test_the_tensorboard_command_names_the_folder_of_all_runs(summary, tmp_path, monkeypatch, capsys, folder, root):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder / "tb").mkdir(parents=True)
    summary_table.show(summary, tmp_path / folder)
    assert f"tensorboard --logdir {root}\n" in capsys.readouterr().out
