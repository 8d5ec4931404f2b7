"""Tables of candidates: what a word's place is, files in any order, searches as episodes, bounds, and files that are no such table."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarun.data.nas201 import NAS201
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Search, Space
from metarun.task import select

SPEC = EpisodeSpec(way=1, shot=0, query=1)
OPTIONS = (2, 3, 2)
WORDS = list(itertools.product(*map(range, OPTIONS)))


def columns(seed: int = 0) -> dict[str, Any]:
    """A made-up table in random order; the accuracies of a word are its digits, so that every row is known."""
    words = np.random.default_rng(seed).permutation(WORDS).astype(np.uint8)
    digits = words.astype(float) @ [10, 20, 1]
    return {"edges": words, "toy_val": digits, "toy_test": digits + 0.5, "more_val": digits, "more_test": digits}


def written(path: Path, **changes: Any) -> Path:
    np.savez(path, **{name: value for name, value in (columns() | changes).items() if value is not None})
    return path


def test_a_words_place_counts_through_all_words() -> None:
    space = Space(OPTIONS)
    assert space.size == len(WORDS)
    assert space.index(torch.tensor(WORDS)).tolist() == list(range(len(WORDS)))


def test_random_words_are_uniform() -> None:
    space = Space(OPTIONS)
    drawn = torch.vmap(space.draw)(torch.arange(12_000))
    counts = torch.bincount(space.index(drawn), minlength=12)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_a_file_in_any_order_is_the_same_table(tmp_path: Path) -> None:
    for seed in (0, 1):
        data = NAS201(0, root=str(written(tmp_path / f"{seed}.npz", **columns(seed))), dataset="toy")
        expected = np.array([10 * a + 20 * b + c for a, b, c in WORDS]) / 100
        np.testing.assert_allclose(data.validation, expected, atol=1e-6)
        np.testing.assert_allclose(data.test, expected + 0.005, atol=1e-6)
        assert (data.kind.options, data.note, data.input_shape) == (OPTIONS, "toy", (3,))


def test_a_folder_is_searched_for_the_published_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nas").mkdir()
    written(tmp_path / "nas" / "nas_bench_201.npz")
    assert NAS201(0, root=str(tmp_path), dataset="more").note == "more"
    monkeypatch.setenv("METARUN_DATA", str(tmp_path))
    assert NAS201(0, root=None, dataset="toy").note == "toy"


def test_only_the_test_looks_at_test_accuracies(tmp_path: Path) -> None:
    data = NAS201(0, root=str(written(tmp_path / "t.npz")), dataset="toy")
    tasks = {split: data.episodes(split, SPEC, 0).batch([3, 4]) for split in data.splits}
    for split, task in tasks.items():
        np.testing.assert_array_equal(task.context.extras["validation"][1], data.validation)
        np.testing.assert_array_equal(task.query.y[1, 0], data.test if split == "test" else data.validation)
    assert len({int(task.context.key[0]) for task in tasks.values()}) == 3
    again = select(data.episodes("test", SPEC, 0).batch([4]), 0)
    assert again.context.key == tasks["test"].context.key[1]


def test_the_score_is_what_the_choice_is_worth() -> None:
    kind = Search(OPTIONS)
    worth = torch.arange(12.0)[None] / 12
    for i, word in enumerate(WORDS):
        assert float(kind.score(torch.tensor([word]), worth)) == pytest.approx(i / 12)
        assert float(kind.loss(torch.tensor([word]), worth)) == pytest.approx(1 - i / 12)
    assert "12 candidates" in kind.describe(SPEC)
    assert kind.outputs(SPEC) == 3


def test_bounds_are_a_random_pick_and_the_best(tmp_path: Path) -> None:
    data = NAS201(0, root=str(written(tmp_path / "t.npz")), dataset="toy")
    bounds = data.episodes("test", SPEC, 0).bounds(4000)
    assert bounds["trivial"].mean() == pytest.approx(data.test.mean(), abs=0.01)
    assert set(bounds["trivial"].round(4)) == {round(float(t), 4) for t in data.test}
    assert set(bounds["oracle"]) == {float(data.test.max())}


def test_the_content_counts(tmp_path: Path) -> None:
    def digest(**changes: Any) -> str:
        data = NAS201(0, root=str(written(tmp_path / "t.npz", **changes)), dataset="toy")
        return data.episodes("test", SPEC, 0).sha256(5)

    assert digest() == digest(**columns(1))
    assert digest() != digest(toy_test=columns()["toy_test"] + 1)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"edges": None}, "'edges' must be"),
        ({"edges": columns()["edges"][:-1]}, "every combination of options"),
        ({"edges": columns()["edges"].repeat(2, 0)[:12]}, "every combination of options"),
        ({"edges": columns()["edges"].astype(float)}, "every combination of options"),
        ({"toy_val": columns()["toy_val"] * 10}, "one accuracy in percent"),
        ({"toy_val": columns()["toy_val"][:5]}, "one accuracy in percent"),
        ({"toy_test": columns()["toy_test"] * np.nan}, "one accuracy in percent"),
        ({"toy_test": None}, "data.dataset=toy is not in"),
    ],
)
def test_what_is_no_table_is_refused(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        NAS201(0, root=str(written(tmp_path / "t.npz", **changes)), dataset="toy")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only toy, more; did you mean 'toy'"):
        NAS201(0, root=str(written(tmp_path / "t.npz")), dataset="toi")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"nas_bench_201\.npz is not in .*empty; name the table with data\.root=FILE"):
        NAS201(0, root=str(tmp_path / "empty"), dataset="toy")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match=r"text\.npz is no table of candidates that can be read"):
        NAS201(0, root=str(tmp_path / "text.npz"), dataset="toy")
    with pytest.raises(UserError, match="no tests split"):
        NAS201(0, root=str(written(tmp_path / "t.npz")), dataset="toy").episodes("tests", SPEC, 0)
