"""Images that training does not see: which they are, that none is lost, and a share that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarun.data.episodes import Split
from metarun.data.held_out import hold_out, joined
from metarun.errors import UserError


def numbered(counts: list[int], first: int = 0) -> Split:
    """Images that are their own numbers."""
    n = np.array(counts, np.int64)
    images = torch.arange(first, first + int(n.sum())).reshape(-1, 1, 1, 1)
    attributes = torch.arange(float(len(counts)))[:, None] + first
    return Split(images, n.cumsum() - n, n, [f"c{first + i}" for i in range(len(n))], attributes)


def rows(split: Split) -> list[list[int]]:
    return [split.images[start : start + count].flatten().tolist() for start, count in zip(split.starts, split.counts)]


def test_a_share_of_every_training_class_is_a_split_of_its_own() -> None:
    whole = {"train": numbered([10, 5, 20]), "val": numbered([4], 100)}
    found = hold_out(whole, 0.2)
    assert [len(part) for part in rows(found["seen"])] == [2, 1, 4]
    for kept, held, every in zip(rows(found["train"]), rows(found["seen"]), rows(whole["train"])):
        assert sorted(kept + held) == every
    assert found["val"] is whole["val"]
    assert found["seen"].names == found["train"].names == whole["train"].names
    assert rows(hold_out(whole, 0.2)["seen"]) == rows(found["seen"])  # always the same
    assert rows(found["seen"])[2] != [16, 17, 18, 19]  # and not just the last
    assert hold_out(whole, 0.0) is whole


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_a_share_that_is_nothing_or_leaves_too_little_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=rf"data.held_out={share} takes \d of the \d+ images of class 'c\d', and leaves"):
        hold_out({"train": numbered([10, 5])}, share)


def test_two_splits_are_one() -> None:
    both = joined(numbered([2, 3]), numbered([1, 2], 50))
    assert rows(both) == [[0, 1], [2, 3, 4], [50], [51, 52]]
    assert both.names == ["c0", "c1", "c50", "c51"]
    assert both.attributes.flatten().tolist() == [0, 1, 50, 51]
