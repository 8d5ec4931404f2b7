"""Labels as people have them: a table of files and labels, as CSV or lines of JSON, whole or by split; one clear line for every mistake."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from metarun.data.folder import Folder
from metarun.data.layout import labelled
from metarun.errors import UserError

SETTINGS = {"channels": 1, "size": 8, "invert": False, "val_fraction": 0.25, "test_fraction": 0.25, "split_seed": 0, "min_images": 2}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path) -> Path:
    """Eight labels c0..c7 for three pictures each, all in one folder; the grey of picture j of label i is 20 i + j."""
    (tmp_path / "data").mkdir()
    for i in range(8):
        for j in range(3):
            Image.new("L", (8, 8), 20 * i + j).save(tmp_path / "data" / f"{i}_{j}.png")
    return tmp_path / "data"


LINES = [(f"{i}_{j}.png", f"c{i}") for j in range(3) for i in range(8)]


def write(path: Path, lines=LINES, heading="filename,label") -> None:
    if path.suffix == ".jsonl":
        names = heading.split(",")
        path.write_text("".join(json.dumps(dict(zip(names, line))) + "\n" for line in lines))
    else:
        path.write_text("\n".join([heading, *map(",".join, lines)]) + "\n")


def make(root: Path, **changes) -> Folder:
    return Folder(0, root=str(root), **{**SETTINGS, **changes})


def greys(data: Folder) -> dict[str, list[int]]:
    """The first pixel of every picture by class."""
    return {
        name: part.images[start : start + count, 0, 0, 0].tolist()
        for part in data.splits.values()
        for name, start, count in zip(part.names, part.starts, part.counts, strict=True)
    }


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl", "Labels.CSV"])
@pytest.mark.parametrize("heading", ["filename,label", "file_name,class", "path,label", "image,label"])
def test_a_table_is_as_good_as_class_folders(root, name, heading):
    write(root / name, heading=heading)
    data = make(root)
    assert greys(data) == {f"c{i}": [20 * i + j for j in range(3)] for i in range(8)}
    for i in range(8):  # the same in folders: the same division, the same pictures
        (root / "folders" / f"c{i}").mkdir(parents=True)
        for j in range(3):
            (root / "folders" / f"c{i}" / f"{j}.png").write_bytes((root / f"{i}_{j}.png").read_bytes())
    folders = make(root / "folders")
    assert {split: part.sha256() for split, part in data.splits.items()} == {split: part.sha256() for split, part in folders.splits.items()}
    assert greys(make(root / name)) == greys(data)  # by its own name


def test_files_are_found_in_images_and_further_columns_count_for_nothing(root):
    (root / "images").mkdir()
    for path in root.glob("*.png"):
        path.rename(root / "images" / path.name)
    write(root / "labels.csv", [("2020", *line) for line in LINES], "year,filename,label")
    assert len(greys(make(root))) == 8


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_commas(root, delimiter):
    (root / "labels.csv").write_text("\ufeff" + "\r\n".join(delimiter.join(line) for line in [("filename", "label"), *LINES]))
    assert len(greys(make(root))) == 8


@pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "valid", "testing")])
def test_a_table_for_each_split(root, names):
    for name, which in zip(names, ("0123", "45", "67")):
        write(root / f"{name}.csv", [line for line in LINES if line[1][1] in which])
    data = make(root)
    assert {split: part.names for split, part in data.splits.items()} == {
        "train": ["c0", "c1", "c2", "c3"],
        "val": ["c4", "c5"],
        "test": ["c6", "c7"],
    }


def test_a_class_in_two_tables_is_refused(root):
    write(root / "train.csv")
    write(root / "test.csv", [("0_0.png", "c0"), ("0_1.png", "c0")])
    with pytest.raises(UserError, match="class 'c0' is in train and in test, but splits must not share classes"):
        make(root)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("labels.csv", "filename,lable\n0_0.png,a", r"labels.csv has no column label; did you mean 'lable'\?; its first line"),
        ("labels.csv", "name,label\n0_0.png,a", r"labels.csv has no column filename"),
        ("labels.csv", "filename,label\n0_0.png,a\n0_9.png,a", r"line 3 names 0_9.png, which is not there; did you mean '0_\d.png'"),
        ("labels.csv", f"filename,label\n{'x' * 300}.png,a", r"line 2 names x+.png, which is not there"),
        ("labels.csv", "filename,label\n0_0.png,", r"labels.csv line 2 has no label: every line has a file and its label"),
        ("labels.csv", "filename,label\n0_0.png", r"labels.csv line 2 has no label"),
        ("labels.csv", "filename,label\n,cat", r"labels.csv line 2 has no filename: every line has a file and its label"),
        ("labels.csv", "filename,label\n0_0.png,a,b", r"labels.csv line 2 has more cells than the 2 columns"),
        ("labels.csv", "filename,label\n", r"labels.csv has no lines; write one per picture"),
        ("labels.csv", b"filename,label\n\xff,a", r"labels.csv is no text in UTF-8"),
        ("labels.csv", "filename,label,label\n0_0.png,a,b", r"labels.csv has two columns 'label'"),
        ("labels.jsonl", '{"filename": "0_0.png"}', r"labels.jsonl line 1 has no label; write it as"),
        ("labels.jsonl", '{"filename": "0_0.png", "label": ["a"]}', r"labels.jsonl line 1 has no label"),
        ("labels.jsonl", '{"filename": "0_0.png"', r"labels.jsonl line 1 is not JSON"),
        ("labels.jsonl", "[1]", r"labels.jsonl line 1 has no filename and label; write it as"),
    ],
)  # fmt: skip
def test_every_mistake_names_file_and_line(root, name, content, line):
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=line) as told:
        make(root)
    assert "\n" not in str(told.value)


def test_two_tables_for_the_same(root):
    write(root / "labels.csv")
    write(root / "labels.jsonl")
    with pytest.raises(UserError, match=r"has labels\.csv and labels\.jsonl: keep one"):
        make(root)
    (root / "labels.jsonl").unlink()
    write(root / "train.csv")
    with pytest.raises(UserError, match=r"has labels\.csv, whose classes are divided for you, and train\.csv"):
        make(root)


def test_labels_may_be_numbers_and_keep_their_words(root):
    write(root / "labels.csv", [("0_0.png", " 7 "), ("0_1.png", "7"), ("1_0.png", "a, b".replace(",", ";"))])
    assert list(labelled(root / "labels.csv")) == ["7", "a; b"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_files_are_found_in_either_unicode_form(root: Path, form: str) -> None:
    """An archive from a Mac has them in one, and a table written elsewhere in the other."""
    path = root / unicodedata.normalize(form, "café.png")
    (root / "0_0.png").rename(path)
    other = unicodedata.normalize("NFD" if form == "NFC" else "NFC", "café.png")
    write(root / "labels.csv", [(other, "c0")])
    assert labelled(root / "labels.csv") == {"c0": [path]}
