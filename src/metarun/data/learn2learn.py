"""The image benchmarks of learn2learn (Arnold, Mahajan, Datta, Bunner, Zarkias 2020, arXiv:2008.12284), as that library reads them:
to cross-check a result of ``data=miniimagenet`` and its like, or where only its files are at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from metarun.data.base import ImageDataset
from metarun.data.cache import room, user_cache
from metarun.data.episodes import Split
from metarun.errors import UserError
from metarun.runtime.learn2learn import library

Taskset = Literal["mini-imagenet", "tiered-imagenet", "fc100", "cifarfs"]
SPLITS = {"train": "train", "val": "validation", "test": "test"}  # metarun's name and the library's


class Learn2Learn(ImageDataset):
    """Images and splits of ``learn2learn.vision.benchmarks.get_tasksets``; episodes are drawn by metarun.

    The library unpickles its files, and a pickle may run any program. It therefore looks only where the user's own files are, in
    ``$METARUN_DATA/learn2learn`` or else in the user's cache, and never where a configuration, which may be somebody else's, says.

    Args:
        seed: unused; the splits are given.
        taskset: which one. Omniglot is not among them: the library shuffles its classes anew at each start (see ``data=omniglot``).

    Raises:
        MissingLibrary: learn2learn is not installed.
        UserError: the library cannot load it, or gives images that are not of 8 bits.
    """

    def __init__(self, seed: int, *, taskset: Taskset) -> None:
        self.note = taskset  # the name of the data beside that of the library
        folder = Path(os.environ.get("METARUN_DATA") or user_cache()).expanduser() / "learn2learn"
        found = library()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tasksets = found.vision.benchmarks.get_tasksets(taskset, root=str(folder))
        except Exception as error:  # no network, no room, a damaged pickle: the library raises what it stumbles over
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            names = ", ".join(name for name in get_args(Taskset) if name != taskset)
            raise UserError(
                f"learn2learn could not load data.taskset={taskset} in {folder} ({why}); put its files there, or choose another ({names})"
            ) from None
        super().__init__({split: _split(getattr(tasksets, theirs).dataset, split) for split, theirs in SPLITS.items()})


def _split(dataset: Any, split: str) -> Split:
    """The images of a ``MetaDataset``, class by class in the order of its labels.

    Raises:
        UserError: an image is not 8 bits a channel, in 0..1 or in 0..255.
    """
    rows = {label: sorted(dataset.labels_to_indices[label]) for label in sorted(dataset.labels_to_indices)}
    count = np.array([len(indices) for indices in rows.values()], np.int64)
    order = [index for indices in rows.values() for index in indices]
    first = torch.stack([dataset[index][0] for index in order[: count[0]]])
    scale = 1 if first.max() > 1 else 255  # of a whole class, so that a dark image does not decide
    images = room((len(order), *first.shape[1:]))
    for row, index in enumerate(order):
        image = dataset[index][0] * scale
        whole = image.round()
        if not ((image - whole).abs().max() < 1e-2 and whole.min() >= 0 and whole.max() <= 255):
            raise UserError(f"learn2learn gives images of the {split} split that are not of 8 bits, but normalised or augmented")
        images[row] = whole.byte().numpy()
    return Split(torch.from_numpy(images), count.cumsum() - count, count, [f"class {label}" for label in rows])
