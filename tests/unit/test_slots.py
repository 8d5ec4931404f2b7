"""The places of a meta-batch: whole episodes, staggered, a pure function of the iteration."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import small

from metarun.data.slots import slots
from metarun.run import Run

SIZES = pytest.mark.parametrize(("meta_batch", "unrolls"), [(1, 1), (1, 4), (4, 4), (3, 5), (16, 5), (7, 3), (2, 8)])


def visits(meta_batch: int, unrolls: int, iterations: int, since: int = 0) -> list[list[tuple[int, bool, int]]]:
    """Of every place: episode, whether it begins, and its age, iteration by iteration from ``since`` on."""
    turns = [slots(i, meta_batch, unrolls, 3, since) for i in range(since, since + iterations)]
    return [[(turn.indices[place], turn.fresh[place], turn.age[place]) for turn in turns] for place in range(meta_batch)]


@SIZES
def test_every_place_visits_one_whole_episode_after_another(meta_batch: int, unrolls: int) -> None:
    met: set[int] = set()
    for place in visits(meta_batch, unrolls, 5 * unrolls):
        begins = [i for i, (_, fresh, _) in enumerate(place) if fresh]
        assert begins[0] == 0
        assert 1 <= begins[1] <= unrolls  # the first one is cut short, which staggers the places
        assert all(later - earlier == unrolls for earlier, later in pairwise(begins[1:]))
        for first, after in zip(begins, [*begins[1:], len(place)]):
            episodes, _, ages = zip(*place[first:after])
            assert len(set(episodes)) == 1
            assert ages == tuple(range(after - first))
            assert episodes[0] not in met
            met.add(episodes[0])


@SIZES
def test_as_many_places_begin_in_one_iteration_as_in_another(meta_batch: int, unrolls: int) -> None:
    begun = [sum(slots(i, meta_batch, unrolls, 3).fresh) for i in range(1, 1 + 4 * unrolls)]
    assert max(begun) - min(begun) <= 1
    assert sum(begun) == 4 * meta_batch


def test_episodes_that_end_in_one_meta_update_are_counted_through() -> None:
    for iteration in range(5):
        turn = slots(iteration, 3, 1, 7)
        assert turn == (range(3 * iteration, 3 * iteration + 3), [True] * 3, [0] * 3, 7)


@SIZES
def test_nothing_goes_on_that_was_begun_before_since(meta_batch: int, unrolls: int) -> None:
    for since in range(2 * unrolls):
        for cut, uncut in zip(visits(meta_batch, unrolls, 3 * unrolls, since), visits(meta_batch, unrolls, since + 3 * unrolls)):
            assert cut[0] == (uncut[since][0], True, 0)
            assert [episode for episode, _, _ in cut] == [episode for episode, _, _ in uncut[since:]]
            later = next((i for i in range(1, len(cut)) if cut[i][1]), len(cut))
            assert [age for _, _, age in cut[:later]] == list(range(later))
            assert cut[later:] == uncut[since + later :]


def test_tasks_say_where_they_go_on_and_those_of_one_meta_update_do_not() -> None:
    episodes = Run(small("algo=protonet", "net.hidden=8")).episodes("train")
    turn, carried = slots(4, 6, 3, 5), torch.arange(2.0)
    tasks = turn.tasks(episodes, range(2, 4), carried, 3)
    assert torch.equal(tasks.query.x, episodes.batch([turn.indices[2], turn.indices[3]]).query.x)
    start: Any = tasks.start
    assert start.state is carried
    assert start.fresh.tolist() == turn.fresh[2:4] == [False, False]
    assert start.k.tolist() == [5 * age for age in turn.age[2:4]] == [10, 10]
    assert turn.tasks(episodes, range(2), carried, 1).start == ()
