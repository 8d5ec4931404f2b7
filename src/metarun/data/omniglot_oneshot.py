"""Lake's within-alphabet one-shot challenge on Omniglot: 20 fixed runs of 20-way one-shot classification, for testing only.
Ten unseen alphabets, two pairs of drawers each; the training images of a run come from one drawer, the test images from another."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metarun.data.archive import Archive, damaged, obtain, read
from metarun.data.base import Dataset
from metarun.data.episodes import Episodes, episode_keys, task_keys
from metarun.data.omniglot import URL, Size, drawing
from metarun.data.picture import UnreadableError
from metarun.errors import UserError
from metarun.problem import EpisodeSpec
from metarun.task import Batch, Context, Task

RUNS = WAY = 20
SOURCE = Archive(
    "all_runs.zip",
    URL + "one-shot-classification/all_runs.zip",
    "sha256:437c1eeab0af8484112e1b4cc0f3d541ec727f7c47b9b202da738af9dfd6c325",
)
MEMBER = re.compile(r"(?:all_runs/)?(run\d\d/(?:class_labels\.txt|(?:training|test)/[^/.][^/]*\.png))")


class OmniglotOneshot(Dataset):
    """The 20 official runs (Lake, Salakhutdinov, Tenenbaum 2015, Science 350) as 20 episodes of a ``test`` split.

    Images as in ``Omniglot``: [1, size, size], ink = 1. Support: class01 .. class20 of a run with labels 0 .. 19; query: item01 .. item20,
    one of each class, in the order of the run. Report the mean error over the 20 runs (400 trials), after training on background
    alphabets only (``data=omniglot data.split=lake``, or ``minimal1`` and ``minimal2`` for the minimal challenge).

    Args:
        seed: unused; the runs are given.
        root: folder with all_runs.zip or its folder; else ``$METARUN_DATA``, else the user's cache; each also in ``omniglot/``.
        size: height and width in pixels, 8..256; as in training.
        download: fetch all_runs.zip from the official repository into the user's cache when absent.

    Raises:
        UserError: no such root, the file absent and not to be had, or runs that are not 20 pairings of 20 images.
    """

    fixed_spec = EpisodeSpec(way=WAY, shot=1, query=1)

    def __init__(self, seed: int, *, root: str | None, size: Size, download: bool) -> None:
        path = obtain(SOURCE, root, "omniglot", download, loose="run01")
        self.input_shape = (1, size, size)
        self.support, self.query, self.labels = _runs(path, size)

    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> Episodes:
        """The 20 runs, whatever ``spec`` says: ``fixed_spec`` is their shape.

        Raises:
            UserError: another split than ``test`` is asked for.
        """
        if split != "test":
            raise UserError(f"omniglot_oneshot has no {split} split, only 20 fixed test episodes; train with data=omniglot data.split=lake")
        return OneshotEpisodes(self.support, self.query, self.labels, seed, device)


class OneshotEpisodes(Episodes):
    """The runs as episodes 0 .. 19.

    Args:
        support, query: [20, 20, 1, size, size] uint8, by run.
        labels: [20, 20] int64, the class (0 .. 19) of every query image.
        seed: determines only the random keys handed to the learner.
        device: where tasks appear.
    """

    length = RUNS

    def __init__(self, support: Tensor, query: Tensor, labels: Tensor, seed: int, device: str | torch.device) -> None:
        self.support, self.query, self.labels = support.to(device), query.to(device), labels.to(device)
        self.seed = seed

    def batch(self, indices: Sequence[int]) -> Task:
        runs = torch.tensor(list(indices), dtype=torch.int64, device=self.labels.device)
        y = torch.arange(WAY, device=runs.device).expand(len(runs), -1)
        support = Batch(self.support[runs].float().div_(255), y)
        query = Batch(self.query[runs].float().div_(255), self.labels[runs])
        keys = task_keys(episode_keys(self.seed, "omniglot_oneshot", indices)).to(runs.device)
        return Task(Context(support, runs[:, None] * WAY + y, keys, {}), query)

    def identity(self, indices: Sequence[int]) -> bytes:
        runs = np.array(list(indices), dtype=np.int64)
        return np.concatenate([runs[:, None], self.labels.cpu().numpy()[runs]], 1).astype("<i8").tobytes()

    def content(self) -> bytes:
        return hashlib.sha256(torch.stack([self.support, self.query]).cpu().numpy().data).digest()


def _runs(path: Path, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Support and query images [20, 20, 1, size, size] uint8 and query labels [20, 20] int64 of all runs."""
    files = {MEMBER.fullmatch(name)[1]: content for name, content in read(path, MEMBER)}  # type: ignore[index]  # only what matches
    support, query, labels = [], [], []
    for run in (f"run{number:02d}" for number in range(1, RUNS + 1)):
        training = sorted(name for name in files if name.startswith(f"{run}/training/"))
        pairs = _pairs(path, run, training, files)
        support += [_image(path, name, files, size) for name in training]
        query += [_image(path, item, files, size) for item, _ in pairs]
        labels.append([training.index(name) for _, name in pairs])
    shape = (RUNS, WAY, 1, size, size)
    return torch.from_numpy(np.stack(support).reshape(shape)), torch.from_numpy(np.stack(query).reshape(shape)), torch.tensor(labels)


def _pairs(path: Path, run: str, training: list[str], files: dict[str, bytes]) -> list[tuple[str, str]]:
    """The pairs (test image, training image of the same class) of a run, by name of the test image; each image stands in one pair."""
    labels = f"{run}/class_labels.txt"
    if labels not in files:
        raise damaged(path, f"{labels} is missing")
    test = sorted(name for name in files if name.startswith(f"{run}/test/"))
    lines = [line.split() for line in files[labels].decode(errors="replace").splitlines() if line.strip()]
    if sorted(line[0] for line in lines) != test or sorted(line[-1] for line in lines) != training or len(lines) != WAY:
        raise damaged(path, f"{labels} does not pair each of {WAY} test images with one of {WAY} training images, every image once")
    return sorted((line[0], line[-1]) for line in lines)


def _image(path: Path, name: str, files: dict[str, bytes], size: int) -> np.ndarray:
    try:
        return drawing(files[name], size)
    except UnreadableError as error:
        raise damaged(path, f"{name}: {error}") from None
