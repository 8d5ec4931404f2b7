"""Training sets that between them have every image: nothing is left out, nothing is in a support and among the clean examples at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import patterns, same

from metarun.data.covering import Covering, joined
from metarun.data.episodes import Split
from metarun.errors import UserError
from metarun.problem import EpisodeSpec
from metarun.task import select

SPEC = EpisodeSpec(way=3, shot=4, query=5, clean=2, corrupt="labels", rate=0.5)


def uneven() -> Split:
    """Seven classes of 8 to 14 images, every image another number."""
    counts = np.arange(8, 15)
    images = torch.arange(int(counts.sum()), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    return Split(images, counts.cumsum() - counts, counts, [f"c{i}" for i in range(7)])


@pytest.mark.parametrize("times", [1, 3])
def test_every_image_is_in_a_support(times: int) -> None:
    data = uneven()
    episodes = Covering(data, SPEC, 0, "cpu", times)
    tasks = episodes.batch(range(episodes.length or 0))
    support = tasks.context.support.x
    seen = torch.bincount(support.flatten(), minlength=len(data.images))
    assert int(seen.min()) >= times
    assert support.shape[1] == 12
    owner = torch.from_numpy(np.repeat(np.arange(7), data.counts))
    labels = torch.gather(tasks.context.classes, 1, tasks.context.support.y)
    assert torch.equal(owner[support], labels)  # nothing is made corrupt
    assert tasks.corrupt == ()
    for row, (support, clean) in enumerate(zip(tasks.context.support.x, tasks.context.extras["clean_x"])):
        assert len(tasks.context.classes[row].unique()) == 3
        there = {int(i) for i in support}
        others = {round(float(pixel) * 255) for pixel in clean[:, 0, 0, 0]}
        assert (len(there), len(others)) == (12, 6)
        assert not there & others
    queries = (tasks.query.x[..., 0, 0, 0] * 255).round().long()
    owner_of_query = owner[queries]
    assert torch.equal(owner_of_query, torch.gather(tasks.context.classes, 1, tasks.query.y))
    for support, clean, asked in zip(tasks.context.support.x, tasks.context.extras["clean_x"], queries):
        first = set(asked.view(3, 4)[:, 0].tolist())
        assert not first & set(support.tolist())
        assert not first & {round(float(pixel) * 255) for pixel in clean[:, 0, 0, 0]}


def test_it_is_a_pure_function_of_seed_and_index() -> None:
    first, again, other = (Covering(uneven(), SPEC, seed, "cpu", 1) for seed in (0, 0, 1))
    assert same(first.batch([5, 2]), again.batch([5, 2]))
    assert same(select(first.batch([5, 2]), 1).context.support, select(first.batch([2]), 0).context.support)
    assert not same(first.batch([2]).context.support, other.batch([2]).context.support)


def test_classes_meet_others_from_round_to_round() -> None:
    episodes = Covering(uneven(), SPEC, 0, "cpu", 3)
    beside = {frozenset(classes.tolist()) for classes in episodes.batch(range(episodes.length or 0)).context.classes}
    assert len(beside) > episodes.turns


def test_splits_are_joined_in_their_order() -> None:
    parts = [patterns(3, 4, 0), patterns(2, 4, 1)]
    whole = joined(parts)
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    assert (whole.starts.tolist(), whole.counts.tolist(), whole.files) == ([0, 4, 8, 12, 16], [4] * 5, None)
    named = [part._replace(files=[f"{i}/{j}" for j in range(len(part.images))]) for i, part in enumerate(parts)]
    assert (joined(named).files or [])[11:13] == ["0/11", "1/0"]


def test_too_few_images_get_a_line() -> None:
    with pytest.raises(UserError, match=r"shot=6 \+ query=1 \+ clean=2 = 9 images per class, but class 'c0' .* has 8"):
        Covering(uneven(), EpisodeSpec(way=3, shot=6, query=5, clean=2), 0, "cpu", 1)
