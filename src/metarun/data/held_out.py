"""Images of training classes that training does not see, so that seen and unseen classes can be asked for together."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch

from metarun.data.episodes import IMAGES, Split, draws, episode_keys
from metarun.errors import UserError

SEEN = "seen"  # the split that they are


def hold_out(splits: dict[str, Split], share: float) -> dict[str, Split]:
    """Splits in which a ``share`` of the images of every training class, at random but always the same, is a split of its own, ``seen``.

    Raises:
        UserError: it is no image of a class, or leaves fewer than two.
    """
    if not share or "train" not in splits:
        return splits
    train = splits["train"]
    uniform = draws(episode_keys(0, "held out", range(train.classes)), IMAGES, (int(train.counts.max()),))
    kept: list[np.ndarray] = []
    held: list[np.ndarray] = []
    for name, start, count, random in zip(train.names, train.starts, train.counts, uniform):
        out = round(share * count)
        if out < 1 or count - out < 2:
            raise UserError(
                f"data.held_out={share:g} takes {out} of the {count} images of class '{name}', and leaves {count - out}: choose a share "
                "that is one image at least and leaves two"
            )
        order = random[:count].argsort()
        held.append(start + np.sort(order[:out]))
        kept.append(start + np.sort(order[out:]))
    return splits | {"train": _part(train, kept), SEEN: _part(train, held)}


def joined(first: Split, second: Split) -> Split:
    """The classes of two splits as those of one, the first one's first."""
    counts = np.concatenate([first.counts, second.counts])
    return Split(
        torch.cat([first.images, second.images]),
        np.concatenate([first.starts, second.starts + len(first.images)]),
        counts,
        first.names + second.names,
        torch.cat([first.attributes, second.attributes]),
    )


def _part(split: Split, rows: list[np.ndarray]) -> Split:
    """These rows of every class."""
    counts = np.array([len(found) for found in rows], np.int64)
    starts = np.array([0, *accumulate(counts[:-1].tolist())], np.int64)
    places = np.concatenate(rows)
    files = split.files and [split.files[i] for i in places]
    return split._replace(images=split.images[torch.from_numpy(places)], starts=starts, counts=counts, files=files)
