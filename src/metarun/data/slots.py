"""The places of a meta-batch: which episode each is at, and how far. A pure function of the iteration, so resume needs no more.
With ``unrolls`` > 1 a place stays with its episode for as many meta-updates; places are staggered, so that not all begin at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from metarun.data.episodes import Episodes
from metarun.task import Start, Task


class Slots(NamedTuple):
    """The places of one meta-batch."""

    indices: Sequence[int]  # of the episodes
    fresh: list[bool]  # whether the episode begins now
    age: list[int]  # meta-updates since it began
    steps: int  # inner steps of a meta-update

    def tasks(self, episodes: Episodes, share: range, carried: Any, unrolls: int) -> Task:
        """The tasks in the places ``share``, on from the states ``carried``, which are stacked; () where nothing has begun."""
        tasks = episodes.batch(self.indices[share.start : share.stop])
        if unrolls == 1:
            return tasks
        device = tasks.context.key.device
        fresh = torch.tensor([self.fresh[i] for i in share], device=device)
        k = torch.tensor([self.age[i] * self.steps for i in share], device=device)
        return tasks._replace(start=Start(carried, fresh, k))


def slots(iteration: int, meta_batch: int, unrolls: int, steps: int, since: int = 0) -> Slots:
    """The places at ``iteration`` 0, 1, …; none goes on with what was begun before the iteration ``since``."""
    if unrolls == 1:
        return Slots(range(iteration * meta_batch, (iteration + 1) * meta_batch), [True] * meta_batch, [0] * meta_batch, steps)
    indices, fresh, age = [], [], []
    for place in range(meta_batch):
        ahead = place * unrolls // meta_batch
        turn = (iteration + ahead) // unrolls
        begun = max(since, turn * unrolls - ahead)
        indices.append(turn * meta_batch + place)
        fresh.append(begun == iteration)
        age.append(iteration - begun)
    return Slots(indices, fresh, age, steps)
