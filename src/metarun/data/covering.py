"""Training sets that between them have every image of some data: for learners that tell what each one is worth, or what it shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch

from metarun.data.episodes import CLASSES, IMAGES, ClassEpisodes, Split, draws, episode_keys
from metarun.problem import EpisodeSpec

NAME = "covering"  # in place of a split's name, as a part of what determines an episode


def joined(splits: Iterable[Split]) -> Split:
    """The images and classes of several splits as one, in their order; without attributes and groups."""
    parts = list(splits)
    counts = np.concatenate([part.counts for part in parts])
    files = [part.files for part in parts]
    return Split(
        torch.cat([part.images for part in parts]),
        counts.cumsum() - counts,
        counts,
        [name for part in parts for name in part.names],
        files=None if None in files else [name for part in files for name in part or []],
    )


class Covering(ClassEpisodes):
    """Whole training sets of ``way`` classes, in each of which ``shot`` images of a class are the support and others the clean examples.

    In one round every class has its turn, beside classes that are drawn anew; from one round to the next its support moves on by ``shot``
    images. After ``length`` episodes every image has been in a support at least ``times`` times. Queries are as many images of a class as
    its support, beginning with those that are in neither; where there are no more of them, the support comes again.

    Args:
        data: the images.
        spec: way, shot and clean of the training sets; nothing is made corrupt.
        seed: any integer.
        device: where the images lie once, and where tasks appear.
        times: see above, >= 1.

    Raises:
        UserError: more classes or images per class are asked for than there are.
    """

    def __init__(self, data: Split, spec: EpisodeSpec, seed: int, device: str | torch.device, times: int) -> None:
        plain = EpisodeSpec(way=spec.way, shot=spec.shot, query=1, clean=spec.clean, whole=True)
        super().__init__(data._replace(groups=None), NAME, plain, seed, device)
        self.spec = replace(plain, query=spec.shot)  # of which a class must have one
        self.query_y = self.query_y.repeat_interleave(spec.shot)
        self.rounds = times * -(-int(data.counts.max()) // spec.shot)
        self.turns = -(-data.classes // spec.way)  # episodes of a round
        self.length = self.rounds * self.turns
        most = int(data.counts.max())
        there = np.arange(most) < data.counts[:, None]
        shuffled = draws(episode_keys(seed, NAME, np.arange(data.classes)), IMAGES, (most,))
        self.order = np.where(there, shuffled, 2.0).argsort(-1)  # [classes, most]: the images of each class in random order, then none

    def indices(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys, classes and image rows of these episodes, see ``ClassEpisodes``."""
        way, shot, clean, n = self.spec.way, self.spec.shot, self.spec.clean, self.data.classes
        support, known, query = np.split(np.arange(2 * shot + clean), [shot, shot + clean])
        turn, place = np.divmod(np.asarray(indices, dtype=np.int64), self.turns)
        shuffled = draws(episode_keys(self.seed, f"{NAME} classes", turn), CLASSES, (n,)).argsort(-1)
        classes = np.take_along_axis(shuffled, (place[:, None] * way + np.arange(way)) % n, -1)  # the last turn begins again
        counts = self.data.counts[classes]
        images = (turn[:, None, None] * shot + np.concatenate([support, query, known])) % counts[..., None]
        return (
            episode_keys(self.seed, NAME, indices),
            classes,
            self.data.starts[classes][..., None] + self.order[classes[..., None], images],
        )
