"""``metarun predict``: tables, sheet, export and one clear line for every mistake.
Calls the command's function; a run's own files stay as they are."""

import csv
import io
import json
import logging
import os
import re
import shutil

import numpy as np
import pytest
import torch
from cli_support import program
from helpers import small
from PIL import Image
from rich.console import Console

import metarun
from metarun import experiment
from metarun.cli import predict as command
from metarun.data import picture
from metarun.errors import UserError
from metarun.predict import contact_sheet, files, queries
from metarun.predict import trained as trained_module
from metarun.predict.confusion import Confusion
from metarun.predict.contact_sheet import Answer

GLYPHS = ["data=glyphs", "data.train_classes=8", "data.val_classes=8", "data.test_classes=8", "data.size=16", "trainer.iterations=1"]
CLASSES = ["bar", "cross", "dot"]


def paint(path, kind, shift=0):
    """Black ink on white paper, 32 x 32 pixels."""
    pixels = np.full((32, 32), 255, np.uint8)
    middle = slice(14 + shift, 17 + shift)
    if kind in ("bar", "cross"):
        pixels[4:28, middle] = 0
    if kind == "cross":
        pixels[middle, 4:28] = 0
    if kind == "dot":
        pixels[12 + shift : 20 + shift, 12:20] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run folders of a prototypical network and of MAML, by name."""
    folder = tmp_path_factory.mktemp("runs")
    for name, words in {"protonet": ["net.norm=layer"], "transductive": ["net.norm=batch"], "maml": ["net.norm=layer"]}.items():
        experiment.train(small(f"algo={'maml' if name == 'maml' else 'protonet'}", *GLYPHS, *words), folder / name)
    experiment.train(small("algo=maml", "data=sinusoid", "net=mlp", "way=1", "trainer.iterations=1"), folder / "waves")
    return folder


@pytest.fixture
def pictures(tmp_path):
    """``support`` with 1 to 3 pictures of a class, ``query`` with 2 pictures of a class in folders of its name."""
    for i, kind in enumerate(CLASSES):
        for shot in range(i + 1):
            paint(tmp_path / "support" / kind / f"{shot}.png", kind, shot)
        for shot in range(2):
            paint(tmp_path / "query" / kind / f"{shot}.png", kind, -1 - shot)
    return tmp_path


def call(words):
    return command.run(command.parser().read(words))


def predict(trained, pictures, *words, name="protonet"):
    return call([str(trained / name), "--support", str(pictures / "support"), "--query", str(pictures / "query"), *map(str, words)])


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_table_sheet_and_report(trained, pictures, capsys):
    before = files_of(trained / "protonet")
    result = predict(trained, pictures, "--out", pictures / "out")
    assert json.loads(json.dumps(result)) == result
    with open(pictures / "out" / "predictions.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["file", "class", "probability", "truth", "p_bar", "p_cross", "p_dot"]
    assert [row["file"] for row in rows] == [f"{kind}/{i}.png" for kind in CLASSES for i in range(2)]
    assert [row["truth"] for row in rows] == [kind for kind in CLASSES for _ in range(2)]
    for row in rows:
        probabilities = {name: float(row[f"p_{name}"]) for name in CLASSES}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(probabilities, key=probabilities.get)
        assert float(row["probability"]) == max(probabilities.values())
    accuracy = sum(row["class"] == row["truth"] for row in rows) / 6
    assert result["accuracy"] == accuracy
    assert result["classes"] == CLASSES
    assert result["shots"] == {"bar": 1, "cross": 2, "dot": 3}
    assert (result["pictures"], result["skipped"], result["transductive"], result["export"]) == (6, [], False, None)
    with Image.open(result["sheet"]) as image:
        assert image.size[0] == contact_sheet.WIDTH
        assert len(image.getcolors(1 << 20)) > 10
    out = capsys.readouterr().out
    assert "adapted to 3 classes with 1 to 3 pictures each" in out
    assert f"{accuracy:.4f} on the 6 pictures" in out
    assert "transductive" not in out
    assert files_of(trained / "protonet") == before

    model = metarun.load(trained / "protonet", device="cpu")
    support, query = (sorted((pictures / part).glob("*/*.png")) for part in ("support", "query"))
    fitted = model.adapt(support, [path.parent.name for path in support])
    assert fitted.predict(query) == [row["class"] for row in rows]


def test_without_out_it_is_kept_in_the_run(trained, pictures):
    before = files_of(trained / "maml")
    results = [predict(trained, pictures, "--format", format, name="maml") for format in ("csv", "json")]
    assert [result["predictions"] for result in results] == [
        str(trained / "maml" / "predict" / name) for name in ("0/predictions.csv", "1/predictions.json")
    ]
    after = files_of(trained / "maml")
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 8  # table, sheet, confusion as table and picture


def test_a_call_that_fails_leaves_no_folder(trained, pictures):
    with pytest.raises(UserError, match="does not exist"):
        call([str(trained / "protonet"), "--support", str(pictures / "support"), "--query", str(pictures / "nowhere")])
    assert not (trained / "protonet" / "predict").exists()


def test_copies_within_a_class_count_once(trained, pictures, caplog):
    wanted = predict(trained, pictures, "--out", pictures / "one.json")
    shutil.copy(pictures / "support" / "dot" / "0.png", pictures / "support" / "dot" / "3.png")
    assert predict(trained, pictures, "--out", pictures / "two.json")["shots"] == wanted["shots"]
    assert (pictures / "one.json").read_bytes() == (pictures / "two.json").read_bytes()
    assert caplog.messages == [
        f"1 picture is twice in a class, such as {pictures}/support/dot/0.png and {pictures}/support/dot/3.png: each counts once"
    ]


def test_answers_do_not_lie_among_the_queries(trained, pictures):
    before = files_of(pictures)
    for words in (["--out", pictures / "query"], ["--out", pictures / "a.csv", "--sheet", pictures / "query" / "bar" / "0.png"]):
        with pytest.raises(UserError, match=r"\.png would lie in .*query and be one of its pictures in the next call: name another place"):
            predict(trained, pictures, *words)
    assert files_of(pictures) == before


def test_json_with_unknown_truths(trained, pictures):
    paint(pictures / "query" / "loose.png", "bar")
    paint(pictures / "query" / "other" / "ring.png", "dot")
    result = predict(trained, pictures, "--out", pictures / "deep" / "answers.json")
    records = json.loads((pictures / "deep" / "answers.json").read_text())
    assert records[0]["file"] == "loose.png"
    assert {record["file"]: record["truth"] for record in records}["other/ring.png"] is None
    assert records[1]["truth"] == "bar"
    assert all(record["probabilities"][record["class"]] == record["probability"] for record in records)
    known = [record["class"] == record["truth"] for record in records if record["truth"]]
    assert len(known) == 6
    assert result["accuracy"] == sum(known) / 6
    assert (result["pictures"], result["sheet"]) == (8, None)
    assert sorted(path.name for path in (pictures / "deep").iterdir()) == ["answers.json"]


def test_a_flat_query_has_no_accuracy(trained, pictures, capsys):
    paint(pictures / "flat" / "a.png", "bar")
    arguments = [f"--support={pictures}/support", f"--query={pictures}/flat", f"--out={pictures}/flat.csv", f"--sheet={pictures}/flat.png"]
    result = call([*arguments, str(trained / "protonet")])
    assert result["accuracy"] is None
    assert "accuracy" not in capsys.readouterr().out
    assert (pictures / "flat.csv").read_text().splitlines()[0] == "file,class,probability,p_bar,p_cross,p_dot"
    assert (pictures / "flat.png").is_file()


@pytest.mark.parametrize("name", ["protonet", "maml"])
def test_what_fits_no_class_is_unknown(trained, pictures, capsys, name):
    for shot in range(4):  # enough to leave some out
        for kind in CLASSES:
            paint(pictures / "support" / kind / f"{shot}.png", kind, shot)
    random = np.random.default_rng(0)
    (pictures / "query" / "noise").mkdir()
    for i in range(4):
        Image.fromarray(random.integers(0, 256, (32, 32), dtype=np.uint8)).save(pictures / "query" / "noise" / f"{i}.png")
    result = predict(trained, pictures, "--reject", "0.1", "--out", pictures / "out", name=name)
    with open(pictures / "out" / "predictions.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0])[:5] == ["file", "class", "probability", "truth", "belonging"]
    for row in rows:
        assert (row["class"] == "unknown") == (float(row["belonging"]) < result["threshold"])
        assert float(row["probability"]) == max(float(row[f"p_{kind}"]) for kind in CLASSES)
    assert result["rejected"] == sum(row["class"] == "unknown" for row in rows)
    assert result["of_no_class"] == {"noise": 4}
    assert result["expected_rate"] == pytest.approx(0.1)
    known = [float(row["belonging"]) for row in rows if row["truth"]]
    others = [float(row["belonging"]) for row in rows if not row["truth"]]
    pairs = [(a > b) + (a == b) / 2 for a in known for b in others]
    assert result["auroc_unknown"] == pytest.approx(np.mean(pairs))
    out = capsys.readouterr().out
    assert "of no class  4 pictures in folders that name no class of the support: noise (4)" in out
    assert re.search(r"rejected +\d+ answered 'unknown', with 0\.100 to be expected of pictures that do belong; AUROC", out)
    assert result["confusion"]["truths"] == [*CLASSES, "(no class)"]
    assert result["confusion"]["answers"] == [*CLASSES, "unknown"]
    assert np.sum(result["confusion"]["counts"]) == 10
    # The same from Python.
    model = metarun.load(trained / name, device="cpu")
    support, query = (sorted((pictures / part).glob("*/*.png")) for part in ("support", "query"))
    fitted = model.adapt(support, [path.parent.name for path in support])
    assert fitted.predict(query, reject=0.1) == [row["class"] for row in sorted(rows, key=lambda row: row["file"])]


def test_a_threshold_needs_two_pictures_of_a_class(trained, pictures, caplog):
    for shot in (1, 2):
        for kind in CLASSES:
            (pictures / "support" / kind / f"{shot}.png").unlink(missing_ok=True)
    with pytest.raises(UserError, match="a threshold needs two examples of a class at least"):
        predict(trained, pictures, "--reject", "0.1")
    paint(pictures / "support" / "bar" / "9.png", "bar", 3)
    result = predict(trained, pictures, "--reject", "0.1", "--out", pictures / "out")
    assert result["expected_rate"] == pytest.approx(1 / 3)
    assert caplog.messages == ["--reject 0.1 needs more pictures in the support: with these no rate below 0.333 can be told"]


def test_a_class_called_unknown(trained, pictures):
    (pictures / "support" / "dot").rename(pictures / "support" / "unknown")
    with pytest.raises(UserError, match=r"--reject answers 'unknown', and a class of .*support has that name: give it another"):
        predict(trained, pictures, "--reject", "0.1")


def test_confusion_is_told_written_and_drawn(trained, pictures, capsys):
    result = predict(trained, pictures, "--out", pictures / "out")
    with open(pictures / "out" / "predictions.csv", newline="") as handle:
        answers = [(row["truth"], row["class"]) for row in csv.DictReader(handle)]
    with open(pictures / "out" / "confusion.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["truth"] for row in rows] == CLASSES
    for row in rows:
        right = answers.count((row["truth"], row["truth"]))
        assert {kind: int(row[kind]) for kind in CLASSES} == {kind: answers.count((row["truth"], kind)) for kind in CLASSES}
        assert (int(row["n"]), float(row["accuracy"])) == (2, right / 2)
        assert result["confusion"]["accuracy"][row["truth"]] == right / 2
    with Image.open(pictures / "out" / "confusion.png") as image:
        assert min(image.size) > 200
    out = capsys.readouterr().out
    for kind in CLASSES:
        assert re.search(rf"^ ?{kind} +{answers.count((kind, kind))} of 2 +\d\.\d{{4}}", out, re.MULTILINE)


def test_many_classes_are_told_by_their_mistakes():
    names = [f"c{i:02}" for i in range(30)]
    image = np.zeros((1, 8, 8), np.uint8)
    answers = [
        Answer("x.png", image, {name: float(name == names[i * (i > 2)]) for name in names}, names[i]) for i in range(30) for _ in range(4)
    ]
    confusion = Confusion.of(answers, names)
    assert confusion.right("c00") == (4, 4)
    assert confusion.mistakes() == [("c01", "c00", 4), ("c02", "c00", 4)]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(confusion.table())
    text = console.export_text()
    assert re.search(r"c01 +0 of 4 +0\.0000 +c00 \(4\)", text)
    assert len(text.splitlines()) < 16
    assert Confusion.of([Answer("x.png", image, {"a": 1.0, "b": 0.0}, None)], ["a", "b"]) is None


def test_folders_that_nearly_name_a_class(trained, pictures, capsys):
    paint(pictures / "query" / "crosss" / "9.png", "cross")
    result = predict(trained, pictures, "--out", pictures / "out")
    assert "folders that name no class of the support: crosss (1; did you mean 'cross'?)" in capsys.readouterr().out
    assert result["of_no_class"] == {"crosss": 1}
    assert result["confusion"]["truths"] == CLASSES  # without --reject no answer could be right


def test_one_file_and_several(trained, pictures):
    wanted = predict(trained, pictures, "--out", pictures / "all.json") and json.loads((pictures / "all.json").read_text())
    places = [pictures / "query" / "bar" / "0.png", pictures / "query" / "dot"]
    words = [str(trained / "protonet"), "--support", str(pictures / "support"), "--out", str(pictures / "one.json")]
    assert call([*words, "--query", str(places[0])])["pictures"] == 1
    (record,) = json.loads((pictures / "one.json").read_text())
    assert (record["file"], record["class"], record["truth"]) == ("0.png", wanted[0]["class"], None)
    assert record["probabilities"] == pytest.approx(wanted[0]["probabilities"], abs=1e-5)
    assert call([*words, *(word for place in places for word in ("--query", str(place)))])["pictures"] == 3
    records = json.loads((pictures / "one.json").read_text())
    assert [record["file"] for record in records] == [str(places[0]), *(str(places[1] / f"{i}.png") for i in range(2))]


def test_tables_of_labels(trained, pictures):
    """The same answers as from class folders, and the same truths."""
    wanted = predict(trained, pictures, "--out", pictures / "folders.json")
    for part in ("support", "query"):
        flat = pictures / "flat" / part
        flat.mkdir(parents=True)
        lines = ["filename,label"]
        for path in sorted((pictures / part).glob("*/*.png")):
            shutil.copy(path, flat / f"{path.parent.name}{path.name}")
            lines.append(f"{path.parent.name}{path.name},{path.parent.name}")
        (flat / "labels.csv").write_text("\n".join(lines))
    words = [str(trained / "protonet"), "--out", str(pictures / "table.json")]
    for support, query in (("support", "query"), ("support/labels.csv", "query/labels.csv")):
        found = call([*words, "--support", str(pictures / "flat" / support), "--query", str(pictures / "flat" / query)])
        assert (found["accuracy"], found["shots"], found["confusion"]) == (wanted["accuracy"], wanted["shots"], wanted["confusion"])
    (pictures / "flat" / "query" / "labels.csv").write_text("filename,label\nabsent.png,bar")
    with pytest.raises(UserError, match=r"labels\.csv line 2 names absent\.png, which is not there"):
        call([*words, "--support", str(pictures / "flat" / "support"), "--query", str(pictures / "flat" / "query")])


def test_steps_change_the_answer(trained, pictures):
    tables = []
    for steps in (0, 3, 3):
        predict(trained, pictures, "--steps", steps, "--out", pictures / "answers.csv", name="maml")
        tables.append((pictures / "answers.csv").read_bytes())
    assert tables[0] != tables[1] == tables[2]


def test_a_checkpoint_can_be_chosen(trained, pictures):
    (trained / "protonet" / "checkpoints" / "last.pt").rename(trained / "protonet" / "kept")
    try:
        with pytest.raises(UserError, match=r"no checkpoint at .*last\.pt"):
            predict(trained, pictures, "--checkpoint", "last")
        assert predict(trained, pictures, "--out", pictures / "a.csv", "--checkpoint", "best")["pictures"] == 6
    finally:
        (trained / "protonet" / "kept").rename(trained / "protonet" / "checkpoints" / "last.pt")


def test_transduction_is_said(trained, pictures, capsys):
    result = predict(trained, pictures, "--out", pictures / "out", "--export", pictures / "net.pt2", name="transductive")
    assert result["transductive"] is True
    out = capsys.readouterr().out
    assert "norm         batch (transductive): pictures are normalised together" in out
    assert "net.pt2 (normalises every batch by itself, too)" in out


def test_the_export_gives_the_probabilities_of_the_table(trained, pictures):
    result = predict(trained, pictures, "--out", pictures / "out.json", "--export", pictures / "net.pt2", name="maml")
    records = json.loads((pictures / "out.json").read_text())
    x = metarun.load(trained / "maml", device="cpu").inputs([pictures / "query" / record["file"] for record in records])
    answers = torch.export.load(result["export"]).module()(x)
    wanted = torch.tensor([list(record["probabilities"].values()) for record in records])
    assert torch.allclose(answers, wanted, atol=1e-5)


def test_unreadable_pictures_are_named_and_skipped(trained, pictures, caplog, capsys):
    (pictures / "support" / "dot" / "broken.png").write_bytes(b"nothing")
    (pictures / "query" / "broken.jpg").write_bytes(b"nothing")
    with caplog.at_level(logging.WARNING):
        result = predict(trained, pictures, "--out", pictures / "out")
    broken = [f"{pictures}/support/dot/broken.png", f"{pictures}/query/broken.jpg"]
    assert caplog.messages == [f"passed over: {broken[1]} and 1 more: not a picture, or damaged"]
    assert result["skipped"] == broken
    assert (result["pictures"], result["shots"]["dot"]) == (6, 3)
    assert "6 classified, 1 passed over" in capsys.readouterr().out


def test_queries_of_every_format_are_answered_and_others_named(trained, pictures, caplog, monkeypatch):
    """Of four queries three were once ignored without a word."""
    without_heif = {suffix: name for suffix, name in picture.suffixes().items() if name != "HEIF"}
    monkeypatch.setattr(picture, "suffixes", lambda: without_heif)
    with Image.open(pictures / "query" / "bar" / "0.png") as image:
        for suffix in ("tif", "jfif", "gif"):
            image.convert("L").save(pictures / "query" / f"x.{suffix}")
    (pictures / "query" / "x.heic").write_bytes(b"")
    (pictures / "query" / "notes.txt").write_text("no picture")
    with caplog.at_level(logging.INFO):
        result = predict(trained, pictures, "--out", pictures / "out")
    assert result["pictures"] == 9
    assert f"passed over: {pictures}/query/x.heic: needs pip install -e '.[heif]' in metarun's checkout" in caplog.messages
    assert f"passed over: {pictures}/query/notes.txt: no picture that Pillow reads" in caplog.messages


def test_queries_that_are_in_the_support_are_counted_and_named(trained, pictures, caplog):
    assert predict(trained, pictures, "--out", pictures / "out")["in_support"] == 0
    shutil.copy(pictures / "support" / "bar" / "0.png", pictures / "query" / "same.png")
    caplog.clear()
    result = predict(trained, pictures, "--out", pictures / "out")
    assert result["in_support"] == 1
    assert caplog.messages == [
        f"1 of 7 pictures to be classified are in the support as well, such as {pictures}/support/bar/0.png and "
        f"{pictures}/query/same.png: that they are recognised says nothing"
    ]


@pytest.mark.parametrize(("name", "together"), [("protonet", False), ("transductive", True)])
def test_queries_are_read_and_answered_in_blocks(trained, pictures, monkeypatch, name, together):
    """However many there are, few are in memory; where answers depend on each other, all are one block."""
    whole = predict(trained, pictures, "--reject", "0.5", "--out", pictures / "whole.csv", name=name)
    sizes, alive, most = [], set(), 0
    probabilities, one = trained_module.Fitted.probabilities, trained_module.load(trained / name).reader

    class Counted(np.ndarray):
        def __array_finalize__(self, _):
            pass

        def __del__(self):
            alive.discard(id(self))

    def counted(path):
        nonlocal most
        image = np.array(one.read(path)).view(Counted)
        alive.add(id(image))
        most = max(most, len(alive))
        return image

    def asked(self, images, raw=False):
        sizes.append(len(images))
        return probabilities(self, images, raw)

    monkeypatch.setattr(trained_module.Fitted, "probabilities", asked)
    monkeypatch.setattr(files, "file_reader", lambda *_: one._replace(read=counted))
    monkeypatch.setattr(queries, "BLOCK", 4)
    monkeypatch.setattr(queries, "ANSWERS", 3)
    many = [word for _ in range(9) for word in ("--query", str(pictures / "query"))]
    result = predict(trained, pictures, *many, "--reject", "0.5", "--out", pictures / "many.csv", name=name)
    assert result["pictures"] == 60
    assert sizes == ([60] if together else [4] * 15)
    assert together or most <= 6 + 3 * 4 + 3  # of the support; of two blocks, in passing of three; of the sheet
    if not together:
        assert (whole["accuracy"], whole["threshold"]) == (result["accuracy"], result["threshold"])


def test_mistakes_in_the_folders(trained, pictures):
    def refused(message):
        with pytest.raises(UserError, match=message) as caught:
            predict(trained, pictures, "--out", pictures / "out")
        assert "\n" not in str(caught.value)
        assert not (pictures / "out").exists()

    paint(pictures / "support" / "loose.png", "bar")
    refused(r"pictures outside its class folders, such as loose\.png: move")
    (pictures / "support" / "loose.png").unlink()
    (pictures / "support" / "void").mkdir()
    refused("class 'void' of .*support has no readable picture")
    (pictures / "support" / "void" / "broken.png").write_bytes(b"nothing")
    refused(r"class 'void' of .*support has no readable picture \(passed over: .*broken\.png: not a picture, or damaged\)")
    (pictures / "support" / "void").rename(pictures / "void")
    (pictures / "query").rename(pictures / "kept")
    refused("--query .*query does not exist: give a folder of pictures")
    (pictures / "query").mkdir()
    refused("query has no readable picture")
    (pictures / "query").rmdir()
    (pictures / "query").touch()
    refused(r"query has no readable picture \(.*not a picture, or damaged\)")
    for name in ("bar", "dot"):
        (pictures / "support" / name).rename(pictures / name)
    (pictures / "query").unlink()
    (pictures / "kept").rename(pictures / "query")
    refused("all 2 examples are of the class 'cross'")
    (pictures / "support" / "cross").rename(pictures / "cross")
    refused("--support .*support has no class folders: it should hold one folder of pictures per class, or labels.csv")
    (pictures / "support").rmdir()
    refused("--support .*support does not exist")


def test_classes_that_the_method_cannot_take(trained, pictures):
    paint(pictures / "support" / "more" / "0.png", "bar")
    assert predict(trained, pictures, "--out", pictures / "out")["classes"] == ["bar", "cross", "dot", "more"]
    with pytest.raises(UserError, match=r"trained for 3 ways, but the support has 4 classes; algo=maml has one output per class"):
        predict(trained, pictures, name="maml")


def test_runs_without_pictures(trained, pictures):
    with pytest.raises(UserError, match=r"trained on data=sinusoid, .* use it from Python: metarun\.load"):
        predict(trained, pictures, name="waves")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stesp", "3"], "no option '--stesp'; did you mean '--steps'"),
        (["way=7"], "predict takes no 'way=7'"),
        (["--steps", "many"], "--steps many is not possible: it is a number"),
        (["--steps", "-1"], "--steps -1 is not possible: it is a number"),
        (["--steps", "2"], "algo=protonet takes no inner steps"),
        (["--format", "xml"], "--format takes one of csv, json"),
        (["--checkpoint", "first"], "--checkpoint takes one of best, last"),
        (["--out", "table.csv", "--format", "json"], r"--out table\.csv and --format json contradict each other"),
        (["--out", "table.txt"], r"--out table\.txt is not possible: give a folder, or a file that ends in \.csv or \.json"),
        (["--sheet", "sheet.pdf"], r"--sheet sheet\.pdf is not possible: give a file that ends in \.png"),
        (["--reject", "few"], "--reject few is not possible: it is a share between 0 and 1"),
        (["--reject", "0"], "reject=0 is out of range: it is the share of pictures"),
        (["--reject", "1"], "reject=1 is out of range"),
        (["--export", "net.onnx"], r"cannot export to net\.onnx: give a file that ends in \.pt2"),
    ],
)
def test_mistakes_in_the_options(trained, pictures, monkeypatch, words, message):
    monkeypatch.chdir(pictures)
    before = files_of(pictures)
    with pytest.raises(UserError, match=message) as caught:
        predict(trained, pictures, *words)
    assert "\n" not in str(caught.value)
    assert files_of(pictures) == before


def test_what_has_to_be_given(trained):
    for words in ([], [str(trained / "protonet")], [str(trained / "protonet"), "--support", "a"]):
        with pytest.raises(UserError, match=r"the following arguments are required: .* \(`metarun predict --help` says more\)"):
            call(words)
    with pytest.raises(UserError, match="name the run's folder: metarun predict RUN"):
        call(["--support", "a", "--query", "b"])


def test_a_sheet_of_many_pictures_in_colour_with_long_names(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"Ἀλφάβητος/{'very_' * 5}long_{i}" for i in range(7)]
    support = [(name, rng.integers(0, 256, (3, 100, 100), np.uint8)) for i, name in enumerate(names) for _ in range(i + 1)]
    shares = dict.fromkeys(names, 0.1) | {names[2]: 0.4}
    answers = [Answer(f"{i}.png", support[0][1], shares, [None, names[2], names[0]][i % 3]) for i in range(300)]
    contact_sheet.draw(tmp_path / "many.png", ["title", "more"], support, answers)
    contact_sheet.draw(tmp_path / "few.png", ["title", "more"], support, answers[:120])
    contact_sheet.draw(tmp_path / "fewer.png", ["title", "more"], support, answers[:108])
    with Image.open(tmp_path / "many.png") as many, Image.open(tmp_path / "few.png") as few, Image.open(tmp_path / "fewer.png") as fewer:
        assert many.size == few.size  # the first 120 only
        assert few.size[1] == fewer.size[1] + contact_sheet.TILE + contact_sheet.CAPTION + contact_sheet.GAP


@pytest.mark.slow
def test_folders_named_in_any_letters_and_in_bytes_that_are_no_utf8(tmp_path):
    """As a terminal is: a strict encoding, which a name that is no UTF-8 would break."""
    strange = {"花": "bar", os.fsdecode(b"caf\xe9"): "cross", "tab\there": "dot"}
    for i, folder in enumerate(("support", "query", "train/train", "train/val", "train/test")):
        for name, kind in strange.items():
            for shot in range(4):  # no two pictures are the same
                paint(tmp_path / folder / (folder.partition("/")[2] + name) / f"{shot}.png", kind, 4 * i - 10 + shot)
    words = ["data=folder", "data.root=train", "data.size=16", "way=3", "query=2", "net.hidden=8", "algo=protonet", "device=cpu"]
    budget = ["trainer.iterations=2", "trainer.meta_batch=2", "trainer.val_episodes=4", "trainer.test_episodes=4", "hydra.run.dir=run"]
    predicting = ["predict", "run", "--support", "support", "--query", "query", "--out", "out"]
    for line in ([*words, *budget], ["show", "run"], predicting):
        process = program(*line, cwd=tmp_path, PYTHONIOENCODING="utf-8:strict")
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert "花" in out
    assert "caf\\xe9" in out
    rows = [row.split(b",") for row in (tmp_path / "out" / "predictions.csv").read_bytes().splitlines()]
    assert b"p_caf\xe9" in rows[0]  # as the folder is named: whoever reads the table finds it
    assert len(rows) == 1 + 3 * 4
