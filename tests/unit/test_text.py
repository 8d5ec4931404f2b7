"""Texts as data: forms of files, rows of bytes and back, classes divided by name, and every mistake in one line."""

import csv
import json
import zipfile

import numpy as np
import pytest
import torch

from metarun.data import phrases
from metarun.data.corpus import gather
from metarun.data.picture import UnreadableError
from metarun.data.text import Text, decode, encode
from metarun.errors import UserError

SETTINGS = {"corpus": None, "length": 32, "val_classes": 1, "test_classes": 1, "min_texts": 2}
SAID = {"alarm": ["Wake me  up", "ring at 7"], "bank": ["what do i owe", "pay the bill"], "café": ["a flat white", "zwei Käse"]}


def text(root=None, **changes) -> Text:
    return Text(0, root=None if root is None else str(root), **SETTINGS | changes)


@pytest.fixture(params=["jsonl", "csv", "folders", "corpus"])
def root(request, tmp_path):
    """The same texts in every form, and the further settings that it takes."""
    rows = [{"text": said, "label": label} for label, texts in SAID.items() for said in texts]
    lines = "\n".join(json.dumps(row) for row in rows)
    if request.param == "jsonl":
        (tmp_path / "said.jsonl").write_text(lines + "\n\n")
        return tmp_path / "said.jsonl", {}
    if request.param == "csv":
        with (tmp_path / "said.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["label", "more", "text"])
            writer.writeheader()
            writer.writerows({"more": "", **row} for row in rows)
        return tmp_path / "said.csv", {}
    if request.param == "folders":
        for label, texts in SAID.items():
            (tmp_path / label).mkdir()
            for i, said in enumerate(texts):
                (tmp_path / label / f"{i}.txt").write_text(said, encoding="utf-8")
        return tmp_path, {}
    with zipfile.ZipFile(tmp_path / "several.zip", "w") as packed:
        packed.writestr("SAID/train.jsonl", "\n".join(lines.splitlines()[::2]))
        packed.writestr("SAID/test.jsonl", "\n".join(lines.splitlines()[1::2]))
        packed.writestr("SAID/oos_test.jsonl", '{"text": "nothing of it", "label": "oos"}')
        packed.writestr("OTHER/train.jsonl", '{"text": "other", "label": "other"}')
    return tmp_path / "several.zip", {"corpus": "said"}


def test_every_form_gives_the_same_texts_with_the_last_class_by_name_for_the_test(root):
    place, settings = root
    data = text(place, **settings)
    assert {split: part.names for split, part in data.splits.items()} == {"train": ["alarm"], "val": ["bank"], "test": ["café"]}
    said = {name: sorted(decode(row.numpy()) for row in part.images) for part in data.splits.values() for name in part.names}
    assert said == {"alarm": ["ring at 7", "wake me up"], "bank": ["pay the bill", "what do i owe"], "café": ["a flat white", "zwei käse"]}
    assert data.input_shape == (32,)
    assert data.note == settings.get("corpus", "")


def test_a_text_is_there_once_nearest_to_the_test(tmp_path):
    rows = [("a", "one"), ("a", "TWO "), ("a", "two"), ("a", "three"), ("b", "five"), ("b", "six"), ("c", "one"), ("c", "seven")]
    (tmp_path / "said.jsonl").write_text("\n".join(json.dumps({"label": label, "text": said}) for label, said in rows))
    data = text(tmp_path / "said.jsonl")
    assert [decode(row.numpy()) for row in data.splits["train"].images] == ["two", "three"]
    assert [decode(row.numpy()) for row in data.splits["test"].images] == ["one", "seven"]


def test_texts_that_are_the_same_once_cut_are_there_once(tmp_path):
    rows = [("a", "a long text, one"), ("a", "a long text, two"), ("a", "three"), ("a", "four"), ("b", "five"), ("b", "six"),
            ("c", "a long text, all"), ("c", "seven")]  # fmt: skip
    (tmp_path / "said.jsonl").write_text("\n".join(json.dumps({"label": label, "text": said}) for label, said in rows))
    data = text(tmp_path / "said.jsonl", length=8)
    assert [decode(row.numpy()) for row in data.splits["train"].images] == ["three", "four"]
    assert [decode(row.numpy()) for row in data.splits["test"].images] == ["a long t", "seven"]


def test_what_is_too_long_is_cut_and_no_half_letter_is_shown():
    assert decode(encode("ab" * 40, 8)) == "abababab"
    assert decode(encode("abcdefgß ff", 8)) == "abcdefgs"  # casefold
    assert decode(encode("abcdefgäh", 8)) == "abcdefg"
    with pytest.raises(UnreadableError, match=r"an empty text"):
        encode(" \n", 8)


def test_relations_are_marked_in_their_sentences(tmp_path):
    sentence = {"tokens": ["Ada", "Lovelace", "lived", "in", "London"], "h": ["ada", "Q1", [[0, 1]]], "t": ["london", "Q2", [[4]]]}
    with zipfile.ZipFile(tmp_path / "relations.zip", "w") as packed:
        packed.writestr("val_wiki.json", json.dumps({"P1": [sentence]}))
        packed.writestr("val_nyt.json", json.dumps({"P1": [{"tokens": []}]}))
    assert gather(tmp_path / "relations.zip", "wiki") == {"P1": ["[Ada Lovelace] lived in [London]"]}
    with pytest.raises(UserError, match=r"val_nyt.json is no file of relations as FewRel's"):
        gather(tmp_path / "relations.zip", "nyt")


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("x.jsonl", '{"text": "a", "label": "b"}\n{"text": "a', r"x.jsonl line 2 is not JSON .*; write it as"),
        ("x.jsonl", '["a", "b"]', "x.jsonl line 1 has no text and label"),
        ("x.jsonl", '{"text": 5, "label": "b"}', "x.jsonl line 1 has no text and label"),
        ("x.jsonl", '{"text": "  ", "label": "b"}', "x.jsonl line 1 has an empty text; remove the line"),
        ("x.jsonl", '{"text": "a", "label": ""}', "x.jsonl line 1 has an empty label"),
        ("x.csv", "text,class\na,b\n", "x.csv has no column label"),
        ("x.csv", "text,label\na\n", "x.csv line 2 is too short"),
        ("x.jsonl", b"\xff\xfe", "x.jsonl is no text in UTF-8"),
        ("x.pdf", "", "x.pdf is no file of texts; give data.root=FILE"),
        ("c/1.txt", "", "1.txt is an empty text; remove the file"),
        ("x.zip", "no archive", "x.zip is damaged"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_line(tmp_path, name, content, wanted):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=wanted) as raised:
        text(tmp_path if name == "c/1.txt" else path)
    assert "\n" not in str(raised.value)


def test_a_corpus_that_is_not_there_is_told_with_those_that_are(tmp_path):
    with zipfile.ZipFile(tmp_path / "several.zip", "w") as packed:
        for name in ("CLINC150", "SNIPS"):
            packed.writestr(f"{name}/train.jsonl", '{"text": "a", "label": "b"}')
    with pytest.raises(UserError, match=r"several.zip holds several corpora; choose data.corpus=CLINC150 or SNIPS"):
        text(tmp_path / "several.zip")
    with pytest.raises(UserError, match=r"no corpus CLINC15 in .*did you mean 'CLINC150'"):
        text(tmp_path / "several.zip", corpus="CLINC15")
    with pytest.raises(UserError, match=r"data.corpus=CLINC150 needs data.root=FILE"):
        text(corpus="CLINC150")


def test_classes_that_are_too_few_or_too_small(tmp_path, caplog):
    rows = [("a", "one"), ("b", "two"), ("b", "three"), ("c", "four"), ("c", "five"), ("d", "six"), ("d", "seven")]
    (tmp_path / "said.jsonl").write_text("\n".join(json.dumps({"label": label, "text": said}) for label, said in rows))
    with pytest.raises(UserError, match=r"data.val_classes=3 [+] data.test_classes=1 leave none of the 4 classes for training"):
        text(tmp_path / "said.jsonl", val_classes=3)
    data = text(tmp_path / "said.jsonl")
    assert data.splits["train"].names == ["b"]
    assert "fewer than data.min_texts=2 texts and are left out, such as a" in caplog.text
    with pytest.raises(UserError, match=r"no class of training has data.min_texts=3 texts"):
        text(tmp_path / "said.jsonl", min_texts=3)


def test_invented_requests_are_always_the_same_and_their_classes_can_be_told_apart():
    said = phrases.invent(12, 6)
    assert said == phrases.invent(12, 6)
    assert len(said) == 12
    assert {len(texts) for texts in said.values()} == {6}
    data = text(length=96, val_classes=20, test_classes=30)
    assert [part.classes for part in data.splits.values()] == [50, 20, 30]
    assert all((part.counts >= 20).all() for part in data.splits.values())
    names = [name for part in data.splits.values() for name in part.names]
    assert len(set(names)) == 100
    assert torch.equal(data.splits["val"].images, text(length=96, val_classes=20, test_classes=30).splits["val"].images)
    assert np.unique(data.splits["train"].images.numpy(), axis=0).shape[0] == len(data.splits["train"].images)
