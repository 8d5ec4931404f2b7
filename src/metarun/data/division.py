"""Classes, or tasks, divided at random between training, development and test: by a seed of its own, whole, never their examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from metarun.data.episodes import CLASSES, draws, episode_keys
from metarun.errors import UserError

Share = Annotated[float, Ge(0), Le(1)]


def divide(names: Sequence[str], what: str, val_fraction: float, test_fraction: float, split_seed: int, fold: int) -> dict[str, list[str]]:
    """The names of each split, sorted; a split of fraction 0 is left out, any other has one at least.

    Args:
        names: what is divided, in an order that is always the same.
        what: they are, for messages, as ``class folders``.
        val_fraction, test_fraction: shares of all names.
        split_seed: shuffles the names first.
        fold: turns the shuffled names on by so many test splits, so that the tests of folds 0, 1, 2 … have other names each, until all
            have been tested.

    Raises:
        UserError: the fractions add up to more than 1, or there are too few names.
    """
    rest = 1 - val_fraction - test_fraction
    if rest < -1e-9:
        raise UserError(f"data.val_fraction={val_fraction} + data.test_fraction={test_fraction} is above 1; leave a share for train")
    n = len(names)
    sizes = {split: max(1, round(share * n)) for split, share in (("val", val_fraction), ("test", test_fraction)) if share > 0}
    left = n - sum(sizes.values())
    if rest <= 1e-9:  # nothing is for training: what rounding left over, or took twice, is of the last one
        sizes[[*sizes][-1]] += left
        left = 0
    if left < (rest > 1e-9) or min(sizes.values(), default=1) < 1:
        raise UserError(f"{n} {what} are too few for the splits train, {', '.join(sizes)}; add some or set the fraction of one to 0")
    order = np.argsort(draws(episode_keys(split_seed, "folder", [0]), CLASSES, (n,))[0])
    turned = iter(names[i] for i in np.roll(order, -fold * sizes.get("test", sizes.get("val", 0))))
    sizes = {"train": left, **sizes} if left else sizes
    return {split: sorted(next(turned) for _ in range(size)) for split, size in sizes.items()}
