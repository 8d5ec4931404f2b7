"""Proposed shapes of episodes run, whatever the sizes of classes; a split of few classes is warned of."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from metarun.data.episodes import ClassEpisodes, Split
from metarun.data.shapes import few_classes, proposal
from metarun.errors import UserError
from metarun.problem import EpisodeSpec


def split(*counts: int) -> Split:
    sizes = np.array(counts, np.int64)
    return Split(torch.zeros(sum(counts), 1, 2, 2, dtype=torch.uint8), sizes.cumsum() - sizes, sizes, [f"c{i}" for i in range(len(counts))])


def runs(data: Split, name: str, spec: EpisodeSpec) -> bool:
    try:
        ClassEpisodes(data, name, spec, 0)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("seed", range(40))
def test_what_is_proposed_runs(seed):
    random = np.random.default_rng(seed)
    splits = {name: split(*random.integers(2, 30, random.integers(2, 9))) for name in ("train", "val", "test")}
    more = {"unlabelled": int(random.integers(0, 2)), "unknown": int(random.integers(0, 2))}
    asked = EpisodeSpec(way=int(random.integers(2, 12)), shot=int(random.integers(1, 12)), query=int(random.integers(1, 30)), **more)
    said = proposal(splits, asked)
    numbers = re.match(r"; this would run: way=(\d+) shot=(\d+) query=(\d+)", said)
    if numbers is None:
        assert said == "; no shape of episodes runs: every split needs two classes of two examples at least"
        smallest = EpisodeSpec(way=2, shot=1, query=1, **more)
        assert not all(runs(part, name, smallest) for name, part in splits.items())
        return
    way, shot, query = map(int, numbers.groups())
    assert way <= asked.way
    assert shot <= asked.shot
    assert query <= asked.query
    for name, part in splits.items():
        ClassEpisodes(part, name, EpisodeSpec(way=way, shot=shot, query=query, **more), 0).batch(range(3))


@pytest.mark.parametrize(
    ("counts", "asked", "wanted"),
    [
        ((8,) * 4, (5, 1, 4), "; this would run: way=3 shot=1 query=4"),
        ((12,) * 2, (2, 5, 10), "; this would run: way=2 shot=5 query=7"),
        ((12,) * 9, (5, 20, 15), "; this would run: way=5 shot=6 query=6"),
        ((30, 30, 30, 3), (2, 5, 15), "; this would run: way=2 shot=1 query=2, or data.min_images=20, which leaves out 1 of 4 classes"),
        ((30, 3, 3, 3), (2, 5, 15), "; this would run: way=2 shot=1 query=2"),
        ((30,), (2, 5, 15), "; no shape of episodes runs: every split needs two classes of two examples at least"),
    ],
)
def test_proposals(counts, asked, wanted):
    spec = EpisodeSpec(**dict(zip(("way", "shot", "query"), asked)))
    assert proposal({"val": split(*counts)}, spec, "data.min_images") == wanted


@pytest.mark.parametrize(
    ("classes", "way", "told"), [(7, 5, ""), (6, 5, "over 6 sets of classes"), (5, 5, "hold the same 5"), (4, 2, "over 6 sets")]
)
def test_few_classes_are_warned_of(classes, way, told):
    said = few_classes("val", split(*[3] * classes), EpisodeSpec(way=way, shot=1, query=1))
    assert told in said
    assert bool(said) == bool(told)
    if said:
        assert said.startswith(f"val has {classes} classes for way={way}, so ")
