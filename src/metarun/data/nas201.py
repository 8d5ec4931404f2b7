"""Architecture search in a table: every candidate has been trained before, so that a search of hundreds of them takes milliseconds.
NAS-Bench-201, Dong & Yang 2020, arXiv:2001.00326; a table of one's own in the same form works as well."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from metarun.data.archive import DAMAGE, arrays, places
from metarun.data.base import Dataset
from metarun.data.episodes import Episodes, draws, episode_keys, task_keys
from metarun.errors import UserError, nearest
from metarun.problem import EpisodeSpec, Search, Space
from metarun.task import Batch, Context, Task

FILE = "nas_bench_201.npz"
PICK = 51  # stream of draws, apart from those of other data


class SearchEpisodes(Episodes):
    """Searches that differ in their random key alone.

    Args:
        space: the candidates.
        validation: what trying each tells, [candidates] float32, a fraction.
        worth: what each is worth in the end, likewise.
        split: part of every episode's identity, as is the ``seed``.
        device: where tasks appear.
    """

    def __init__(self, space: Space, validation: np.ndarray, worth: np.ndarray, split: str, seed: int, device: str | torch.device) -> None:
        self.space, self.split, self.seed, self.device = space, split, seed, device
        self.validation, self.worth = torch.from_numpy(validation).to(device), torch.from_numpy(worth).to(device)

    def batch(self, indices: Sequence[int]) -> Task:
        keys = episode_keys(self.seed, self.split, indices)
        n, decisions, size = len(keys), len(self.space.options), self.space.size
        none = Batch(torch.zeros(n, 0, decisions, device=self.device), torch.zeros(n, 0, size, device=self.device))
        classes = torch.zeros(n, 1, dtype=torch.int64, device=self.device)
        context = Context(none, classes, task_keys(keys).to(self.device), {"validation": self.validation.expand(n, size)})
        return Task(context, Batch(torch.zeros(n, 1, decisions, device=self.device), self.worth.expand(n, 1, size)))

    def identity(self, indices: Sequence[int]) -> bytes:
        return episode_keys(self.seed, self.split, indices).astype("<u8").tobytes()

    def content(self) -> bytes:
        tables = [table.cpu().numpy().astype("<f4").tobytes() for table in (self.validation, self.worth)]
        return hashlib.sha256(b"".join([repr(self.space.options).encode(), *tables])).digest()

    def bounds(self, n: int) -> dict[str, np.ndarray]:
        """A single candidate picked at random in every search, and the best one there is."""
        worth = self.worth.cpu().numpy().astype(np.float64)
        picked = (draws(episode_keys(self.seed, self.split, range(n)), PICK, ()) * len(worth)).astype(np.int64)
        return {"trivial": worth[picked], "oracle": np.full(n, worth.max())}


class SearchTable(Dataset):
    """A table of all candidates; a task is one search.

    Development searches are scored by the validation accuracy of what they find, so that only the test looks at test accuracies.

    Args:
        options: of every decision, see ``Space``.
        validation, test: accuracies [candidates], fractions, in the order of ``Space.index``.
    """

    fixed_spec = EpisodeSpec(way=1, shot=0, query=1)
    splits = ("train", "val", "test")  # independent streams of searches
    kind = Search()

    def __init__(self, options: tuple[int, ...], validation: np.ndarray, test: np.ndarray) -> None:
        self.kind, self.input_shape = Search(options), (len(options),)
        self.validation, self.test = validation.astype(np.float32), test.astype(np.float32)

    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> SearchEpisodes:
        self.check_split(split)
        worth = self.test if split == "test" else self.validation
        return SearchEpisodes(self.kind.space, self.validation, worth, split, seed, device)

    def describe(self, split: str) -> str:
        return f"endless searches among {self.kind.space.size:,} candidates"


class NAS201(SearchTable):
    """The table of cells: six edges, five operations each.

    Args:
        seed: the run's; unused, since every episode is a function of the seed handed to ``episodes``.
        root: the table, or its folder; else ``$METARUN_DATA``, else the user's cache; each also in ``nas/``. An .npz file with ``edges``
            [candidates, decisions], options 0, 1, … of every candidate, all that there are in any order, and of every data set NAME
            accuracies ``NAME_val`` and ``NAME_test`` [candidates] in percent.
        dataset: NAME, on which candidates are trained.

    Raises:
        UserError: no such file, or something else in it.
    """

    def __init__(self, seed: int, *, root: str | None, dataset: str) -> None:
        path = _locate(root)
        try:
            columns = arrays(path)
        except (*DAMAGE, ValueError) as error:
            raise UserError(f"{path} is no table of candidates that can be read ({error}); give another with data.root=FILE") from None
        known = [name.removesuffix("_val") for name in columns if name.endswith("_val")]
        if dataset not in known or f"{dataset}_test" not in columns:
            raise UserError(f"data.dataset={dataset} is not in {path}, only {', '.join(known)}{nearest(dataset, known)}")
        edges, accuracies = columns.get("edges", np.zeros(())), [columns[f"{dataset}_{part}"] for part in ("val", "test")]
        order, options = _order(path, edges)
        if not all(values.shape == order.shape and ((values >= 0) & (values <= 100)).all() for values in accuracies):
            raise UserError(f"{path}: {dataset}_val and {dataset}_test must be one accuracy in percent, 0..100, for each row of 'edges'")
        super().__init__(options, *(values[order] / 100 for values in accuracies))
        self.note = dataset


def _order(path: Path, edges: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """The row of every candidate in the order of ``Space.index``, and the options of every decision.

    Raises:
        UserError: these are not all words of some decisions, each once.
    """
    if edges.ndim == 2 and edges.size and edges.dtype.kind in "iu" and edges.min() == 0:
        options = tuple((edges.max(0).astype(np.int64) + 1).tolist())
        places = Space(options).index(torch.from_numpy(edges.astype(np.int64))).numpy()
        if min(options) > 1 and len(places) == len(np.unique(places)) == Space(options).size:
            return places.argsort(), options
    raise UserError(f"{path}: 'edges' must be [candidates, decisions], every combination of options 0, 1, … once, two options or more")


def _locate(root: str | None) -> Path:
    """The table's file.

    Raises:
        UserError: it is not there.
    """
    if root and Path(root).expanduser().is_file():
        return Path(root).expanduser()
    found = next((folder / FILE for folder in places(root, "nas") if (folder / FILE).is_file()), None)
    if not found:
        where = f"in {root}" if root else "in $METARUN_DATA or the user's cache"
        raise UserError(f"{FILE} is not {where}; name the table with data.root=FILE (docs/search.md says what it holds)")
    return found
