"""`metarun compare` as people call it: options, forms of the table, errors in one line, files."""

import csv
import io
import json
import os
import re
import runpy
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest

from metarun.cli import compare
from metarun.comparison import plots
from metarun.comparison.runs import collect
from metarun.comparison.view import view
from metarun.errors import UserError

BENCH = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "bench_compare.py"))
make_run, DAMAGES = BENCH["make_run"], BENCH["DAMAGES"]


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Two algorithms, two shots, two seeds; the working folder is the one above."""
    monkeypatch.chdir(tmp_path)
    for shot in (1, 5):
        for algo, score in (("maml", 0.6), ("protonet", 0.7)):
            for seed in (0, 1):
                name = f"{algo}-{shot}-{seed}"
                make_run(
                    Path("sweep") / name, algo, shot=shot, seed=seed, score=score + shot / 50, inner_lr=0.1 if algo == "maml" else None
                )
    return Path("sweep")


def run(words):
    return compare.run(compare.parser().read([str(word) for word in words]))


def call(capsys, *words):
    result = run(words)
    json.dumps(result, allow_nan=False)
    out, err = capsys.readouterr()
    return result, out, err


def test_the_table_names_its_spreads_and_its_norm(sweep, capsys):
    result, out, err = call(capsys, sweep)
    assert err == ""
    assert out.count("mean ± std over seeds") == 2
    assert out.count("over episodes") >= 3
    assert "accuracy: glyphs 5-way" in out
    rows = [line for line in out.splitlines() if re.match(r" (maml|protonet) ", line)]
    assert [line.split()[:2] for line in rows] == [["protonet", "1"], ["maml", "1"], ["protonet", "5"], ["maml", "5"]]
    assert all("batch" in line for line in rows)
    assert [line.rstrip().endswith("60.5 s") for line in rows] == [True] * 4
    best = [group for group in result["groups"] if group["test_best"]]
    assert [(group["algo"], group["shot"]) for group in best] == [("protonet", 1), ("protonet", 5)]


def test_the_best_is_bold_on_a_terminal(sweep, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "250")
    _, out, _ = call(capsys, sweep)
    bold = re.findall(r"\x1b\[1;32m([^\x1b]*)\x1b", out)
    assert len(bold) == 4  # val and test of two blocks
    assert all(re.fullmatch(r"0\.\d{4} ± 0\.\d{4}", text.strip()) for text in bold)


def test_wide_tables_are_not_cut_off_a_terminal(sweep, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = call(capsys, sweep)
    assert "…" not in out
    assert "mean ± std over seeds" in out


@pytest.mark.parametrize("width", [72, 90, 110, 200])
def test_a_narrow_terminal_loses_columns_and_is_told_which(sweep, capsys, monkeypatch, width):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = call(capsys, sweep)
    plain = re.sub(r"\x1b\[[\d;]*m", "", out)
    table = plain[: plain.index("± std over seeds (n-1)")]
    assert max(map(len, table.splitlines())) <= width
    assert "…" not in table
    if width > 72:  # below that, cells fold
        assert len(re.findall(r"(?m)^ (?:maml|protonet) .* 0\.\d{4} ± 0\.\d{4} .*batch", table)) == 4
    assert ("too narrow a terminal for" in plain) == (width < 120)


def test_paths_globs_and_json_of_one_group(sweep, capsys):
    result, _, _ = call(capsys, sweep / "maml-1-*", sweep / "maml-5-0")
    assert result["runs"] == 3
    assert [group["seeds"] for group in result["groups"]] == ["0 1", "0"]
    assert result["groups"][1]["test_std_over_seeds"] is None


def test_damaged_and_unfinished_runs_are_named_once_each(sweep, capsys):
    DAMAGES["summary.json is not complete JSON"](sweep / "maml-1-0")
    DAMAGES["config.yaml is not valid YAML"](sweep / "maml-1-1")
    (sweep / "maml-5-0" / "summary.json").unlink()
    (sweep / "notes.txt").write_text("")
    result, _, err = call(capsys, *sorted(sweep.iterdir()))
    lines = err.splitlines()
    assert len(lines) == 4
    assert lines[0] == "metarun: sweep/notes.txt is not a folder, left out"
    assert lines[1].startswith("metarun: damaged run left out: sweep/maml-1-0: summary.json is not complete JSON")
    assert lines[2].startswith("metarun: damaged run left out: sweep/maml-1-1: config.yaml is not valid YAML")
    assert lines[3] == "metarun: 1 unfinished run left out (no summary.json): sweep/maml-5-0"
    assert result["unfinished"] == ["sweep/maml-5-0"]
    assert [entry["run"] for entry in result["damaged"]] == ["sweep/maml-1-0", "sweep/maml-1-1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the runs"),
        (["swep"], "did you mean 'sweep'"),
        (["sweep/x*"], "nothing matches"),
        (["sweep", "--metrik", "loss"], "did you mean '--metric'"),
        (["sweep", "--metric", "acuracy"], "did you mean 'accuracy'"),
        (["sweep", "--metric"], "--metric takes a value"),
        (["sweep", "--metric", "--csv"], "--metric takes a value"),
        (["sweep", "--metric="], "--metric takes a value"),
        (["sweep", "--csv=x"], "--csv takes no value"),
        (["sweep", "--split", "tset"], "did you mean 'test'"),
        (["sweep", "--sort", "inr_lr"], "did you mean 'inner_lr'"),
        (["sweep", "--group-by", "algo,shto"], "did you mean 'shot'"),
        (["sweep", "--paired", "sweep/maml-1-0"], "--paired takes two values"),
        (["sweep", "--csv", "--latex"], "choose one"),
        (["sweep", "--where", "shto=1"], "did you mean 'shot'"),
        (["sweep", "--where", "shot"], "--where takes KEY=VALUE or KEY!=VALUE, not 'shot'"),
        (["sweep", "--where", "shot=1", "--where", "shot=5"], "--where shot=5 leaves no run (shot is 1)"),
        (["sweep", "--where"], "--where takes a value"),
        (["-x", "sweep"], "no option '-x'"),
        (["sweep", "--out", "sweep/maml-1-0/config.yaml"], "choose another folder with --out"),
        (["--paired", "sweep/maml-1-0", "sweep/maml-1-1"], "different episodes (seed 0 against 1)"),
    ],
)
def test_mistakes_are_one_line_that_helps(sweep, words, message):
    with pytest.raises(UserError) as caught:
        run(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_runs_are_paired_by_themselves(sweep, capsys):
    result, out, _ = call(capsys, sweep / "protonet-1-0", sweep / "maml-1-0")
    verdict = out.splitlines()[-1]
    assert verdict.startswith("protonet-1-0 − maml-1-0: accuracy +0.")
    assert "ci95 over 100 identical test episodes" in verdict
    assert "protonet-1-0 is better" in verdict
    assert result["paired"]["sign"] == "+"
    assert result["paired"]["significant"] is True
    turned, _, _ = call(capsys, sweep / "maml-1-0", sweep / "protonet-1-0")
    assert turned["paired"]["difference"] == -result["paired"]["difference"]


def test_two_runs_that_cannot_be_paired_are_still_tabled(sweep, capsys):
    result, out, err = call(capsys, sweep / "protonet-1-0", sweep / "maml-1-1")
    assert result["paired"] is None
    assert err.startswith("metarun: no paired comparison: they were tested on different episodes (seed 0 against 1)")
    assert "protonet" in out
    _, _, err = call(capsys, sweep / "maml-1-0", sweep / "maml-1-1")
    assert err == ""  # two seeds of one group are no rivals


def test_groups_are_paired_seed_by_seed(sweep, capsys):
    result, out, _ = call(capsys, "--paired", sweep / "maml-5-*", sweep / "protonet-5-*")
    assert result["paired"]["n"] == 200
    assert result["paired"]["sign"] == "-"
    assert "sweep/maml-5-* (2 runs) is worse" in out


def test_markdown(sweep, capsys):
    _, out, _ = call(capsys, sweep, "--markdown")
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
    assert len({line.count("|") for line in lines}) == 1
    assert sum(line.count("**") for line in lines) == 4 * 2
    assert "test mean ± std over seeds" in lines[0]
    assert "test ci95 over episodes" in lines[0]


def test_markdown_survives_hostile_names(sweep, capsys):
    make_run(sweep / "odd", "a|b*c", seed=0)
    _, out, _ = call(capsys, sweep, "--markdown")
    assert r"| a\|b\*c |" in out


def test_csv_holds_full_precision(sweep, capsys):
    _, out, _ = call(capsys, sweep, "--csv", "--metric=loss", "--split=val")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 4
    summaries = [json.loads((sweep / f"maml-5-{seed}" / "summary.json").read_text()) for seed in (0, 1)]
    row = next(row for row in rows if (row["algo"], row["shot"]) == ("maml", "5"))
    assert float(row["val_mean"]) == pytest.approx(sum(s["val"]["loss"]["mean"] for s in summaries) / 2, rel=1e-12)
    assert "test_mean" not in row
    assert row["metric"] == "loss"


def test_latex(sweep, capsys):
    make_run(sweep / "odd", "a_b&c", seed=0)
    _, out, _ = call(capsys, sweep, "--latex")
    body = out[out.index("\\midrule") : out.index("\\bottomrule")]
    columns = len(re.search(r"tabular}{([lr]+)}", out)[1])
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 5
    assert all(len(re.split(r"(?<!\\)&", line)) == columns for line in rows)
    assert r"a\_b\&c" in body
    assert body.count(r"\textbf{") == 4
    assert "±" not in body


def test_group_by_and_sort(sweep, capsys):
    result, out, _ = call(capsys, sweep, "--group-by", "seed", "--sort", "seed")
    assert [(group["seed"], group["shot"]) for group in result["groups"]] == [(0, 1), (0, 5), (1, 1), (1, 5)]
    assert result["spread"] == "runs"
    assert "std over runs" in out
    assert "over seeds" not in out
    result, _, _ = call(capsys, sweep, "--sort", "-algo")
    assert [group["algo"] for group in result["groups"]] == ["protonet", "protonet", "maml", "maml"]


def test_grouping_never_averages_over_other_tasks(sweep, capsys):
    """A mean over 3-way photographs and 5-way characters would mean nothing."""
    make_run(sweep / "photos", "maml", data="folder", way=3, score=0.9)
    result, out, _ = call(capsys, sweep, "--group-by", "algo,shot")
    groups = {(group["algo"], group["data"], group["way"], group["shot"]): group["runs"] for group in result["groups"]}
    assert groups == {("maml", "folder", 3, 1): 1, **{(algo, "glyphs", 5, shot): 2 for algo in ("maml", "protonet") for shot in (1, 5)}}
    assert [len(re.findall(rf"(?m)^ (?:maml|protonet) .* {data} ", out)) for data in ("folder", "glyphs")] == [1, 4]


def test_what_is_left_out_has_its_reason(sweep, capsys):
    path = sweep / "maml-1-0" / "summary.json"
    summary = json.loads(path.read_text())
    summary["test"]["auc"] = {"mean": 0.9, "ci95": 0.01, "n": 100}
    path.write_text(json.dumps(summary))
    result, _, err = call(capsys, sweep, "--metric", "auc")
    assert (result["runs"], err) == (1, "metarun: 7 runs left out: no auc on val or test\n")
    make_run(sweep / "again", "maml", seed=0, score=0.62, inner_lr=0.1)
    _, _, err = call(capsys, sweep)
    assert err == "metarun: 1 run left out: repetitions of a config and seed, of which the latest counts\n"


def test_episodes_of_the_same_classes_are_told(sweep, capsys):
    _, out, _ = call(capsys, sweep)
    assert "same classes" not in out
    for name in ("maml-1-0", "maml-1-1"):
        path = sweep / name / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"same_classes": ["val"]}))
    _, out, _ = call(capsys, sweep)
    assert "val of 2 runs: the same classes in every episode, ci95 does not say how others fare" in out
    _, out, _ = call(capsys, sweep, "--split", "test")
    assert "same classes" not in out


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["shot=5"], 4),
        (["shot!=5", "algo=*o*"], 2),
        (["inner_lr=null"], 4),
        (["inner_lr!=null"], 4),
        (["inner_lr=1e-1", "seed=1"], 2),
        (["optim.lr=0.0010"], 8),
        (["run=sweep/maml-?-0"], 2),
        (["tensorboard=true"], 8),
    ],
)
def test_where_keeps_what_is_asked_for(sweep, capsys, words, left):
    result, _, err = call(capsys, sweep, *(part for word in words for part in ("--where", word)))
    assert result["runs"] == left
    assert "left out" not in err


def test_where_holds_for_pairs_too(sweep, capsys):
    result, _, _ = call(capsys, "--paired", sweep / "maml-*", sweep / "protonet-*", "--where", "shot=5")
    assert (result["runs"], result["paired"]["n"]) == (4, 200)
    with pytest.raises(UserError, match=r"--where leaves no run of sweep/protonet-\*"):
        run(["--paired", sweep / "maml-*", sweep / "protonet-*", "--where", "algo=maml"])


def test_the_verdict_is_kept_before_intervals_on_80_columns(sweep, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call(capsys, sweep, "--where", "shot=1")
    plain = re.sub(r"\x1b\[[\d;]*m", "", out)
    table = plain[: plain.index("± std over seeds (n-1)")]
    assert max(map(len, table.splitlines())) <= 80
    assert re.search(r"(?m)^ protonet .* best ", table)
    assert re.search(r"(?m)^ maml .* −0\.\d{4} ± 0\.\d{4} \* ", table)
    assert "too narrow a terminal for wall time, parameters, val ci95" in plain
    assert "Δ" not in plain[plain.index("too narrow") :]


def test_a_mixed_comparison_stays_readable(tmp_path, monkeypatch, capsys):
    """Learning rates tuned for each data set, many settings: few columns, short legends, pictures of a page's width."""
    monkeypatch.chdir(tmp_path)
    for data, lr in (("glyphs", 0.001), ("folder", 0.01), ("omniglot", 0.1)):
        for algo, inner_lr in (("maml", 0.1), ("maml", 0.2), ("protonet", None)):
            make_run(Path("runs") / f"{data}-{algo}-{inner_lr}", algo, data=data, lr=lr, inner_lr=inner_lr, score=0.6 + (inner_lr or 0))
    result, out, _ = call(capsys, "runs", "--out", "here")
    assert re.search(r"(?m)^ algo +data +inner_lr +seeds ", out)
    assert "no column for what differs between data, way and shot alone (--csv has all): lr" in out
    assert {group["optim.lr"] for group in result["groups"]} == {0.001, 0.01, 0.1}
    (legend,) = plots.learning_curves(view(collect(["runs"]).runs, None, None, [], None)).figure.legends
    assert {entry.get_text() for entry in legend.get_texts()} == {"protonet", "maml, inner_lr 0.1", "maml, inner_lr 0.2"}
    for path in map(Path, result["files"]):
        assert path.suffix == ".html" or struct.unpack(">I", path.read_bytes()[16:20])[0] < 2500


def test_without_a_test_split_development_scores_rank(sweep, capsys):
    for folder in sweep.iterdir():
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {"test": None, "episodes_sha256": None}))
    result, out, _ = call(capsys, sweep)
    assert [group["algo"] for group in result["groups"]] == ["protonet", "maml"] * 2
    assert [group["val_best"] for group in result["groups"]] == [True, False] * 2
    assert "–" in out
    with pytest.raises(UserError, match="no run has a test result"):
        run([sweep, "--split", "test"])


def test_no_files_unless_asked_for(sweep, capsys):
    before = sorted(Path.cwd().rglob("*"))
    result, _, _ = call(capsys, sweep)
    assert result["files"] == []
    assert sorted(Path.cwd().rglob("*")) == before


class Page(HTMLParser):
    """Collects what a page would load, and its headings."""

    def __init__(self):
        super().__init__()
        self.loads, self.ids, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_data(self, data):
        self.text += data


def test_the_report_is_whole_in_itself(sweep, capsys):
    DAMAGES["config.yaml is missing"](sweep / "maml-1-0")
    result, _, err = call(capsys, sweep, "--out", "here")
    assert "report: here/report.html" in err
    assert [Path(name).name for name in result["files"]] == [
        "report.html",
        "learning_curves.png",
        "adaptation_curves.png",
        "score_over_shot.png",
    ]
    html = Path("here/report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    assert page.loads
    assert all(value.startswith("#") for value in page.loads)  # parts of the page's own drawings
    assert {value[1:] for value in page.loads} <= set(page.ids)
    assert "@import" not in html
    assert all(match.startswith("#") for match in re.findall(r"url\(([^)]*)\)", html))
    assert html.count("<svg") == 3
    for heading in ("Results", "Learning curves", "Adaptation curves", "Score over shots", "What differs between the configs", "Left out"):
        assert heading in page.text
    assert "config.yaml is missing" in page.text
    assert "var(--c0)" in html
    assert not re.search(r"(?<!--c0): #0072b2", html)  # every drawing follows the page's theme


def test_the_report_escapes_what_runs_say(sweep, capsys):
    make_run(sweep / "bad", "<script>alert(1)</script>", seed=0)
    call(capsys, sweep, "--out", "here")
    html = Path("here/report.html").read_text(encoding="utf-8")
    assert html.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in html


def test_pictures_have_the_resolution_of_print(sweep, capsys):
    result, _, _ = call(capsys, sweep, "--report")
    folder = sweep.resolve() / "compare"
    pictures = [Path(name) for name in result["files"] if name.endswith(".png")]
    assert {path.parent for path in pictures} == {folder}
    for path in pictures:
        data = path.read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        density = struct.unpack(">I", data[data.index(b"pHYs") + 4 :][:4])[0] * 0.0254
        assert density >= 120
        assert width >= 900
        assert height >= 400
    again, _, err = call(capsys, sweep, "--report")  # the report's own folder is no run
    assert (again["runs"], err.count("\n")) == (8, 1)


def test_a_folder_that_cannot_be_opened_is_named(sweep, capsys, monkeypatch):
    listing = os.scandir

    def refuse(path):
        if Path(path).name == "maml-1-0":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)  # by chmod it would be no obstacle to root
    result, _, err = call(capsys, sweep)
    assert err == "metarun: damaged run left out: sweep/maml-1-0: cannot be opened (Permission denied)\n"
    assert result["runs"] == 7
