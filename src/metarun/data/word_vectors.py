"""Vectors of words as attributes of classes: a class is described by the words of its name, of which other people's texts told the meaning.
Files as of GloVe (Pennington, Socher, Manning 2014), word2vec and fastText, or arrays of NumPy."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from metarun.data.archive import DAMAGE, arrays
from metarun.errors import UserError, nearest

SUFFIXES = (".txt", ".vec", ".npz")
NAMES, VECTORS = "names", "vec"  # how the names of two arrays of a .npz end that belong together, as glove_names and glove_vec
FORM = "a line of text is a word and its numbers, separated by blanks; a .npz has arrays X_names [n] of texts and X_vec [n, numbers]"


def read_word_vectors(path: Path, classes: Collection[str]) -> dict[str, np.ndarray]:
    """The vector of every class [numbers] float32, brought to the length √numbers, so that its numbers are about 1 in size.

    A class is looked up by the last part of its path, in small letters. A name of several words (``pickup_truck``) that has no vector
    itself has the mean of its words'. Of the file nothing else is kept, so that it may be a vocabulary of millions.

    Raises:
        UserError: a class has no vector, vectors differ in length or have something else than numbers in them.
    """
    wanted = {name: plain(name.rpartition("/")[2]) for name in classes}
    words = {*wanted.values(), *(word for name in wanted.values() for word in name.split("_"))}
    found: dict[str, np.ndarray] = {}
    for word, vector in _arrays(path) if path.suffix.lower() == ".npz" else _lines(path, words):
        found.setdefault(plain(word), vector)
    result: dict[str, np.ndarray] = {}
    for name, words_of in wanted.items():
        parts = [words_of] if words_of in found else words_of.split("_")
        if missing := [part for part in parts if part not in found]:
            hint = nearest(missing[0], found)
            raise UserError(f"{path} has no vector of '{missing[0]}', for the class '{name}'{hint}; rename the class, or use other vectors")
        vectors = [np.asarray(found[part], np.float64) for part in parts]
        if len({len(vector) for vector in (*vectors, *list(result.values())[:1])}) > 1:
            raise UserError(f"{path} has vectors of several lengths, such as that of '{name}'; {FORM}")
        mean = np.mean(vectors, 0)
        length = np.linalg.norm(mean)
        if not 0 < length < np.inf:
            raise UserError(f"{path} has a vector for '{name}' that says nothing, of length {length:g}; remove it, or use other vectors")
        result[name] = (mean * np.sqrt(len(mean)) / length).astype(np.float32)
    return result


def plain(name: str) -> str:
    """A name in small letters, its words joined by underscores."""
    return re.sub(r"[\s+_-]+", "_", name.strip().lower())


def _lines(path: Path, words: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The words of a text file that are among ``words``; a first line of two numbers, as word2vec's, is a heading."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                word, *cells = line.rstrip().split(" ")
                if plain(word) in words and len(cells) > 1:
                    yield word, _numbers(cells, f"{path} line {number}: ")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error}); {FORM}") from None


def _numbers(cells: list[str], where: str) -> np.ndarray:
    try:
        return np.array(cells, np.float64)
    except ValueError as error:
        raise UserError(f"{where}{error}; {FORM}") from None


def _arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """All words of the pairs of arrays in a .npz."""
    try:
        found = arrays(path)
    except (*DAMAGE, ValueError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:100]}); {FORM}") from None
    pairs = [(array, found.get(name.removesuffix(NAMES) + VECTORS)) for name, array in found.items() if name.endswith(NAMES)]
    if not pairs:
        raise UserError(f"{path} has no array of names; {FORM}")
    for names, vectors in pairs:
        if names.dtype.kind != "U" or vectors is None or vectors.ndim != 2 or len(vectors) != len(names) or vectors.dtype.kind not in "fiu":
            raise UserError(f"{path} has arrays that do not belong together; {FORM}")
        yield from zip(names.tolist(), vectors)
