"""Vectors of words as attributes: the files that are read, how a class finds its words, and one clear line for every mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metarun.data.attributes import described
from metarun.data.episodes import Split
from metarun.data.word_vectors import read_word_vectors
from metarun.errors import UserError

GLOVE = "cat 3 4\npickup 1 0\ntruck 0 1\n, 9 9\npolar-bear 0 -2\n"


def written(folder: Path, text: str | bytes, name: str = "glove.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("heading", ["", "5 2\n"])
def test_a_class_has_the_vector_of_its_name_or_the_mean_of_its_words(tmp_path: Path, heading: str) -> None:
    found = read_word_vectors(written(tmp_path, heading + GLOVE), ["Cat", "vehicles/pickup_truck", "polar bear"])
    root = np.sqrt(2)
    expected = {"Cat": [0.6 * root, 0.8 * root], "vehicles/pickup_truck": [1, 1], "polar bear": [0, -root]}
    assert set(found) == set(expected)
    for name, vector in expected.items():
        np.testing.assert_allclose(found[name], vector, rtol=1e-6, atol=1e-7)
        assert found[name].dtype == np.float32


def test_arrays_hold_the_same(tmp_path: Path) -> None:
    other = {"x_names": np.array(["dog"]), "x_vec": np.ones((1, 3))}
    path = tmp_path / "vectors.npz"
    np.savez(path, glove_names=np.array(["cat", "pickup+truck"]), glove_vec=np.array([[3.0, 4], [0, 2]]), **other)
    found = read_word_vectors(path, ["cat", "pickup_truck"])
    np.testing.assert_allclose(found["pickup_truck"], [0, np.sqrt(2)], rtol=1e-6)
    np.testing.assert_allclose(found["cat"], np.sqrt(2) * np.array([0.6, 0.8]), rtol=1e-6)
    with pytest.raises(UserError, match="vectors of several lengths, such as that of 'dog'"):
        read_word_vectors(path, ["cat", "dog"])


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (GLOVE, "glove.txt", "has no vector of 'zebra', for the class 'zebra'"),
        ("cat 1 2\nzebra 1 x\n", "glove.txt", "line 2: could not convert string to float"),
        ("cat 1 2\nzebra 0 0\n", "glove.txt", "has a vector for 'zebra' that says nothing, of length 0"),
        ("cat 1 2\nzebra 1\n", "glove.vec", "has no vector of 'zebra'"),
        (b"cat 1 2\n\xff\xfe", "glove.txt", "is no text in UTF-8"),
        (b"not an archive", "a.npz", "cannot be read"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str | bytes, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_word_vectors(written(tmp_path, text, name), ["cat", "zebra"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vec": np.ones((1, 2))}, "has no array of names"),
        ({"names": np.array(["cat"])}, "arrays that do not belong together"),
        ({"names": np.array(["cat"]), "vec": np.ones((2, 2))}, "arrays that do not belong together"),
        ({"names": np.array([1]), "vec": np.ones((1, 2))}, "arrays that do not belong together"),
    ],
)
def test_arrays_that_are_no_words_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_word_vectors(tmp_path / "a.npz", ["cat"])


def test_splits_are_described_by_a_table_or_by_words(tmp_path: Path) -> None:
    splits = {"train": Split(torch.zeros(2, 1, 8, 8), np.array([0, 1]), np.array([1, 1]), ["cat", "truck"])}
    assert described(splits, None) is splits
    table = written(tmp_path, "cat,1,2\ntruck,3,4\n", "table.csv")
    assert torch.equal(described(splits, table)["train"].attributes, torch.tensor([[1.0, 2], [3, 4]]))
    words = described(splits, written(tmp_path, GLOVE))["train"].attributes
    torch.testing.assert_close(words, 2**0.5 * torch.tensor([[0.6, 0.8], [0, 1]]))
    with pytest.raises(UserError, match=r"nowhere[.]csv is no file; give a table"):
        described(splits, "nowhere.csv")
