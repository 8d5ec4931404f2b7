"""``metarun predict`` on tables of numbers: answers as Python gives them, and one clear line for every mistake."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import small

import metarun
from metarun import experiment
from metarun.cli import predict as command
from metarun.errors import UserError
from metarun.predict import rows

KINDS = ["ash", "fir", "oak"]
TREES = [
    "data=csv",
    "data.label=kind",
    "data.ignore=[note]",
    "net=mlp",
    "net.norm=none",
    "way=2",
    "data.val_fraction=0.25",
    "data.test_fraction=0.25",
    "trainer.iterations=1",
]
OVENS = ["data=csv_regression", "net=mlp", "way=1", "shot=5", "query=5"]
PFN = ["algo=pfn", "data=tables", "data.columns=4", "data.units=5", "net=mlp", "shot=8", "algo.width=8", "algo.heads=2", "algo.ways=4"]


def lines(path: Path, *rows: str) -> str:
    path.write_text("\n".join(rows))
    return str(path)


def trees(kinds: list[str], n: int, seed: int, apart: float = 10, noise: float = 1) -> list[str]:
    """Rows ``height,kind,note,girth`` whose height tells the kind, and whose girth is noise."""
    random = np.random.default_rng(seed)
    return [
        f"{apart * i + random.uniform(0, 3):.4f},{kind},old,{noise * random.normal():.4f}" for i, kind in enumerate(kinds) for _ in range(n)
    ]


def points(task: int, n: int, seed: int) -> list[str]:
    """Rows ``x1,y`` of y = task x + 100."""
    return [f"{x:.5f},{task * x + 100:.5f}" for x in np.random.default_rng(seed).normal(size=n)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders by name."""
    folder = tmp_path_factory.mktemp("runs")
    table = lines(folder / "trees.csv", "height,kind,note,girth", *trees([f"k{i}" for i in range(12)], 6, 0))
    for name, algo in {"nearest": "nearest", "maml": "maml"}.items():
        experiment.train(small(*TREES, f"data.root={table}", f"algo={algo}", *(["way=3"] * (algo == "maml"))), folder / name)
    ovens = lines(folder / "ovens.csv", "task,x1,y", *(f"t{task},{row}" for task in range(12) for row in points(task - 6, 20, task)))
    for name, words in {"alpaca": ["trainer.iterations=60", "optim.lr=0.01"], "points": ["trainer.iterations=1"]}.items():
        algo = "alpaca" if name == "alpaca" else "maml"
        experiment.train(small(*OVENS, f"data.root={ovens}", f"algo={algo}", *words), folder / name)
    experiment.train(small(*PFN, "trainer.iterations=1"), folder / "pfn")
    return folder


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A support and queries of trees and of one oven, in the current folder; columns in another order than the runs know."""
    lines(tmp_path / "support.csv", "height,kind,note,girth", *trees(KINDS, 4, 1, 40, 0.1))
    lines(tmp_path / "query.csv", "note,girth,kind,height", *_turned(trees(KINDS, 3, 2, 40, 0.1)))
    lines(tmp_path / "known.csv", "x1,y", *points(3, 15, 3))
    lines(tmp_path / "asked.csv", "y,x1", *(",".join(row.split(",")[::-1]) for row in points(3, 30, 4)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _turned(rows: list[str]) -> list[str]:
    """Rows ``height,kind,note,girth`` as ``note,girth,kind,height``."""
    return [",".join([note, girth, kind, height]) for height, kind, note, girth in (row.split(",") for row in rows)]


def call(run: Path, support: str, *words: str) -> dict[str, Any]:
    return command.run(command.parser().read([str(run), "--support", support, *words]))


def read(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def test_rows_are_classified_as_from_python(trained: Path, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(trained / "nearest", "support.csv", "--query", "query.csv", "--out", "out")
    assert json.loads(json.dumps(result)) == result
    rows = read("out/predictions.csv")
    assert list(rows[0]) == ["line", "class", "probability", "truth", "p_ash", "p_fir", "p_oak"]
    assert [row["line"] for row in rows] == [str(line) for line in range(2, 11)]
    assert [row["truth"] for row in rows] == [kind for kind in KINDS for _ in range(3)]
    assert (result["accuracy"], result["rows"], result["shots"]) == (1.0, 9, dict.fromkeys(KINDS, 4))
    assert np.trace(result["confusion"]["counts"]) == 9
    out = capsys.readouterr().out
    assert "accuracy     1.0000 on the 9 rows whose class is known" in out
    assert "adapted to 3 classes with 4 rows each" in out

    fitted = metarun.load(trained / "nearest", device="cpu").adapt(*_numbers("support.csv"))
    probabilities = fitted.probabilities(_numbers("query.csv")[0])
    found = torch.tensor([[float(row[f"p_{kind}"]) for kind in KINDS] for row in rows])
    torch.testing.assert_close(found, probabilities, atol=1e-5, rtol=0)
    assert (Path("out/confusion.csv").is_file(), Path("out/sheet.png").exists()) == (True, False)


@pytest.mark.parametrize("out", ["query.csv", "support.csv", "more.csv"])
def test_tables_that_are_read_are_not_written_over(trained: Path, tables: Path, out: str) -> None:
    (tables / "more.csv").hardlink_to(tables / "query.csv")
    before = Path(out).read_bytes()
    with pytest.raises(UserError, match=f"^{out} would be written over, but is one of the files to be read: name another place by --out"):
        call(trained / "nearest", "support.csv", "--query", "query.csv", "--out", out)
    assert Path(out).read_bytes() == before


def test_labels_in_either_unicode_form_and_nearly_the_same(
    trained: Path, tables: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name, label in {"support.csv": "fre\u0302ne", "query.csv": "fr\u00eane"}.items():
        Path(name).write_text(Path(name).read_text().replace("ash", label))
    assert call(trained / "nearest", "support.csv", "--query", "query.csv", "--out", "out")["of_no_class"] == {}
    assert "accuracy     1.0000 on the 9 rows whose class is known" in capsys.readouterr().out
    Path("support.csv").write_text(Path("support.csv").read_text().replace("fir", "Oak"))
    call(trained / "nearest", "support.csv", "--query", "query.csv", "--out", "out")
    assert "the classes 'Oak' and 'oak' of support.csv differ in capitals only: merge them unless they are two" in caplog.messages


def _numbers(path: str) -> tuple[np.ndarray, list[str]]:
    rows = read(path)
    return np.array([[float(row["height"]), float(row["girth"])] for row in rows]), [row["kind"] for row in rows]


def test_truths_need_not_be_known_and_may_be_of_no_class(trained: Path, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, *rows = Path("query.csv").read_text().splitlines()
    lines(tables / "bare.csv", "height,girth", *(",".join(row.split(",")[::-2]) for row in rows))
    whole = call(trained / "nearest", "support.csv", "--query", "query.csv", "--out", "whole.json")
    bare = call(trained / "nearest", "support.csv", "--query", "bare.csv", "--out", "bare.json")
    records = [json.loads(Path(name).read_text()) for name in ("whole.json", "bare.json")]
    assert [one["probabilities"] for one in records[0]] == [one["probabilities"] for one in records[1]]
    assert (whole["accuracy"], bare["accuracy"], records[1][0]["truth"]) == (1.0, None, None)
    lines(tables / "strange.csv", header, "old,0,oaks,81", "old,0,,1", "old,0,fir,1")
    capsys.readouterr()
    result = call(trained / "nearest", "support.csv", "--query", "strange.csv", "--out", "s.csv")
    assert (result["accuracy"], result["of_no_class"]) == (0.0, {"oaks": 1})
    assert "1 rows whose kind is no class of the support: oaks (1; did you mean 'oak'?)" in capsys.readouterr().out


def test_several_tables_lines_of_json_and_copies(trained: Path, tables: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [json.dumps({"height": float(height), "girth": float(girth)}) for _, girth, _, height in _cells("query.csv")]
    lines(tables / "more.jsonl", *records)
    result = call(trained / "nearest", "support.csv", "--query", "support.csv", "--query", "more.jsonl", "--out", "both.csv")
    assert (result["rows"], result["in_support"], result["accuracy"]) == (21, 12, 1.0)
    assert "12 of 21 rows to be classified are in the support as well, such as support.csv line 2 and support.csv line 2" in caplog.text
    assert [row["line"] for row in read("both.csv")][-1] == "more.jsonl:9"


def _cells(path: str) -> list[list[str]]:
    return [row.split(",") for row in Path(path).read_text().splitlines()[1:]]


def test_rows_are_scaled_once_when_a_threshold_is_sought(trained: Path, tables: Path) -> None:
    """A learner without features of its own is asked anew for each row that is left out, by rows that are scaled already."""
    model = metarun.load(trained / "maml", device="cpu")
    x, y = _numbers("support.csv")
    fitted = model.adapt(x, y)
    scores = []
    for i in range(len(y)):
        rest = [j for j in range(len(y)) if j != i]
        scores.append(float(model.adapt(x[rest], [y[j] for j in rest]).belonging(x[i : i + 1])))
    least, rate = fitted.threshold(0.5 / 13)  # below one in thirteen: the lowest of all scores
    assert (least, rate) == (pytest.approx(min(scores), rel=1e-4), pytest.approx(1 / 13))
    result = call(trained / "maml", "support.csv", "--query", "query.csv", "--reject", "0.1", "--out", "r.csv")
    answers = [row["class"] for row in read("r.csv")]
    assert fitted.predict(_numbers("query.csv")[0], reject=0.1) == answers
    assert result["rejected"] == answers.count("unknown")


def test_numbers_are_told_with_intervals(trained: Path, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(trained / "alpaca", "known.csv", "--query", "asked.csv", "--out", "out")
    assert json.loads(json.dumps(result)) == result
    rows = read("out/predictions.csv")
    assert list(rows[0]) == ["line", "y", "y_low", "y_high", "y_truth"]
    x, truth = np.array([[float(cell) for cell in row] for row in _cells("asked.csv")]).T[::-1]
    fitted = metarun.load(trained / "alpaca", device="cpu").adapt(*np.hsplit(np.loadtxt("known.csv", delimiter=",", skiprows=1), 2))
    y, deviation = fitted.predict(x[:, None])[:, 0].numpy(), fitted.deviations(x[:, None])[:, 0].numpy()
    found = np.array([[float(cell) for cell in list(row.values())[1:]] for row in rows]).T
    np.testing.assert_allclose(found, [y, y - 1.96 * deviation, y + 1.96 * deviation, truth], rtol=1e-4)
    assert result["rmse"]["y"] == pytest.approx(np.sqrt(np.mean((y - truth) ** 2)), rel=1e-4)
    mean = np.loadtxt("known.csv", delimiter=",", skiprows=1)[:, 1].mean()
    assert result["rmse_of_mean"]["y"] == pytest.approx(np.sqrt(np.mean((mean - truth) ** 2)), rel=1e-4)
    assert result["inside"] == np.mean(np.abs(y - truth) <= 1.96 * deviation)
    out = capsys.readouterr().out
    assert f"rmse y       {result['rmse']['y']:.4g} on 30 rows; of the support's mean" in out
    assert f"95 %; they hold {result['inside']:.4f} of the known numbers" in out


def test_numbers_without_intervals_and_without_truths(trained: Path, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines(tables / "bare.csv", "x1", "0.5", "1.5")
    result = call(trained / "points", "known.csv", "--query", "bare.csv", "--out", "bare.json", "--steps", "1")
    assert (result["rmse"], result["inside"], result["rows"]) == ({}, None, 2)
    (first, _) = json.loads(Path("bare.json").read_text())
    assert (first["line"], first["y"]["interval"], first["y"]["truth"]) == ("2", None, None)
    assert "none: algo=maml does not know how sure it is" in capsys.readouterr().out
    assert list(read(call(trained / "points", "known.csv", "--query", "bare.csv", "--out", "b.csv")["predictions"])[0]) == ["line", "y"]


def test_a_prior_fitted_net_reads_any_columns(trained: Path, tables: Path) -> None:
    lines(tables / "train.csv", "a,b,label,c", *(f"{i},{-i},{'uvw'[i % 3]},{i % 3}" for i in range(18)))
    lines(tables / "test.csv", "c,b,a", "0,-3,3", "1,-4,4")
    call(trained / "pfn", "train.csv", "--query", "test.csv", "--out", "p.csv")
    model = metarun.load(trained / "pfn", device="cpu")
    x = np.array([[i, -i, i % 3, 0] for i in range(18)])
    wanted = model.adapt(x, ["uvw"[i % 3] for i in range(18)]).probabilities(np.array([[3, -3, 0, 0], [4, -4, 1, 0]]))
    found = [[float(row[f"p_{name}"]) for name in "uvw"] for row in read("p.csv")]
    torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-5, rtol=0)

    lines(tables / "kinds.csv", "label,b,kind", *(f"{i},{-i},{'uvw'[i % 3]}" for i in range(18)))
    lines(tables / "asked.csv", "kind,label,b", "u,3,-3", "v,4,-4")
    result = call(trained / "pfn", "kinds.csv", "--query", "asked.csv", "--target", "kind", "--out", "k.csv")
    assert result["classes"] == ["u", "v", "w"]
    assert result["accuracy"] is not None


@pytest.mark.parametrize(
    ("run", "support", "query", "words", "message"),
    [
        (
            "nearest",
            "height,kind\n1,a\n2,b",
            None,
            [],
            r"s\.csv line 2 has no column girth: it has to, since .*nearest was trained with it",
        ),
        (
            "nearest",
            "height,kinds,girth\n1,a,2",
            None,
            [],
            r"s\.csv has no column kind; did you mean 'kinds'\?: name .* by --target COLUMN",
        ),
        ("nearest", "height,kind,girth\n1,a,two\n2,b,3", None, [], r"s\.csv line 2: 'two' in the column girth is no number, .*; mend it"),
        ("nearest", "height,kind,girth\n1,a,nan\n2,b,3", None, [], r"s\.csv line 2: nan in the column girth is not finite; fill it in"),
        ("nearest", "height,kind,girth\n1,a,2\n2,,3", None, [], r"s\.csv line 3 has nothing in the column kind: fill it in"),
        ("nearest", "height,kind,girth\n1,a,2\n2,a,3", None, [], r"all 2 examples are of the class 'a'"),
        ("nearest", "", None, [], r"s\.csv has no rows below the line that names the columns"),
        ("nearest", "height,kind,girth", None, [], r"s\.csv has no rows below the line that names the columns"),
        ("nearest", b"height,kind,girth\n1,\xff,2", None, [], r"s\.csv is no text in UTF-8"),
        ("nearest", None, "height\n1", [], r"q\.csv line 2 has no column girth: it has to, since support\.csv has it"),
        ("nearest", None, "height,girth\n1", [], r"q\.csv line 2 is too short: it has nothing in the column girth"),
        ("nearest", None, "height,girth\n1,2,3", [], r"q\.csv line 2 has more cells than the 2 columns"),
        ("nearest", None, "height,girth\n1,inf", [], r"q\.csv line 2: inf in the column girth is not finite"),
        ("nearest", None, "", [], r"q\.csv has no rows below"),
        ("nearest", None, None, ["--target", "knd"], r"support\.csv has no column knd; did you mean 'kind'\?"),
        ("nearest", None, None, ["--target", "girth"], r"--target girth is not possible: .*nearest reads that column; name another"),
        (
            "nearest",
            None,
            None,
            ["--sheet", "a.png"],
            r"--sheet draws pictures, and .*nearest \(data=csv\) reads rows of numbers: leave it",
        ),
        ("maml", "height,kind,girth\n1,a,2\n2,b,3", None, [], r"trained for 3 ways, but the support has 2 classes"),
        ("alpaca", "x1,y\n1,2\n3,x", "x1\n1", [], r"s\.csv line 3: 'x' in the column y is no number"),
        ("alpaca", "x1,y\n1,2\n3,4", "x1,y\n1,much", [], r"q\.csv line 2: 'much' in the column y is no number"),
        ("alpaca", "x1,y\n1,2\n3,4", "x1\n1", ["--reject", "0.1"], r"--reject is for classes, and .*alpaca .* tells numbers: leave it out"),
        (
            "pfn",
            "a,b,c,d,e,label\n1,2,3,4,5,u\n2,3,4,5,6,v",
            None,
            [],
            r"has 5 columns beside label, and .*pfn reads 4 at most: leave some",
        ),
        ("pfn", "a,label\n1,u\n2,v\n3,w\n4,x\n5,y", "a\n1", [], r"tells 4 classes apart at most, but the support has 5: leave some out"),
        ("pfn", "label\nu\nv", None, [], r"s\.csv has no column of numbers beside label"),
    ],
)
def test_mistakes_are_one_line(
    trained: Path, tables: Path, run: str, support: str | bytes | None, query: str | None, words: list[str], message: str
) -> None:
    names = []
    for name, content, other in (("s.csv", support, "support.csv"), ("q.csv", query, "query.csv")):
        if content is not None:
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        names.append(other if content is None else name)
    with pytest.raises(UserError, match=message) as told:
        call(trained / run, names[0], "--query", names[1], *words, "--out", "out")
    assert "\n" not in str(told.value)
    assert not Path("out").exists()


def test_files_that_are_no_tables(trained: Path, tables: Path) -> None:
    (tables / "folder").mkdir()
    (tables / "a.xlsx").write_bytes(b"PK")
    for place, wrong in {"folder": "is a folder", "a.xlsx": "is no table by its name", "absent.csv": "does not exist"}.items():
        with pytest.raises(UserError, match=rf"--query {place} {wrong}: this run reads rows of numbers; give a table"):
            call(trained / "nearest", "support.csv", "--query", place)


@pytest.mark.parametrize("name", ["ROWS.CSV", "rows.csv"])
def test_a_table_is_known_by_its_ending_in_any_letters(tmp_path, name):
    (tmp_path / name).write_text("x1,label\n0.5,a\n")
    (line,) = rows._lines("--query", [str(tmp_path / name)])
    assert line[2] == {"x1": "0.5", "label": "a"}
