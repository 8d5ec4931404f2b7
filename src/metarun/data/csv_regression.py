"""A table of regression tasks: each row is a point of a task, inputs x… and targets y…; tasks are divided between the splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from metarun.data.base import Dataset, Scaling, TableForm
from metarun.data.division import Share
from metarun.data.episodes import CLASSES, IMAGES, Episodes, choose, draws, episode_keys, task_keys
from metarun.data.leakage import refuse_shared
from metarun.data.numbers import chosen, gather, in_splits
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Kind, Regression
from metarun.task import Batch, Context, Task


class Points(Episodes):
    """Episodes of ``spec.shot`` support and ``spec.query`` query points of one task, distinct rows of it; ``spec.way`` has no meaning here.

    Args:
        x, y: the points of all tasks, [n, inputs] and [n, outputs] float32, grouped by task.
        counts: points of each task.
        names: of the tasks.
        split: part of every episode's identity, as is the ``seed``.
        device: where tasks appear.

    Raises:
        UserError: a task has too few points.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        counts: np.ndarray,
        names: Sequence[str],
        split: str,
        spec: EpisodeSpec,
        seed: int,
        device: str | torch.device,
    ) -> None:
        if spec.shot + spec.query > counts.min():
            raise UserError(
                f"shot={spec.shot} + query={spec.query} = {spec.shot + spec.query} rows per task, but task '{names[int(counts.argmin())]}' "
                f"of the {split} split has {counts.min()}; choose shot + query <= {counts.min()}, or data.min_rows={spec.shot + spec.query}"
            )
        self.x, self.y, self.counts, self.starts = x.to(device), y.to(device), counts, counts.cumsum() - counts
        self.split, self.spec, self.seed, self.same_classes = split, spec, seed, len(counts) == 1

    def rows(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Keys [B] uint64 and rows [B, shot + query] of these episodes."""
        keys, need = episode_keys(self.seed, self.split, indices), self.spec.shot + self.spec.query
        task = (draws(keys, CLASSES, ()) * len(self.counts)).astype(np.int64)
        return keys, self.starts[task][:, None] + choose(draws(keys, IMAGES, (2 * need,)), self.counts[task], need)

    def batch(self, indices: Sequence[int]) -> Task:
        keys, rows = self.rows(indices)
        found = torch.from_numpy(rows).to(self.x.device)
        support, query = found.split([self.spec.shot, self.spec.query], dim=1)
        classes = torch.zeros(len(keys), 1, dtype=torch.int64, device=self.x.device)
        context = Context(Batch(self.x[support], self.y[support]), classes, task_keys(keys).to(self.x.device), {})
        return Task(context, Batch(self.x[query], self.y[query]))

    def identity(self, indices: Sequence[int]) -> bytes:
        return self.rows(indices)[1].astype("<i8").tobytes()

    def content(self) -> bytes:
        digest = hashlib.sha256(str(self.counts.tolist()).encode())
        for part in (self.x, self.y):
            digest.update(part.cpu().contiguous().numpy().data)
        return digest.digest()


class CsvRegression(Dataset):
    """Points of many tasks: x [inputs], y [outputs] float32.

    With ``standardise`` errors are in deviations of the targets over all training tasks: a mean squared error of 1 is that of the mean.

    Args:
        seed: the run's; unused, so that all runs share one division into splits.
        root: a table, or a folder with ``train``, ``val`` and ``test`` as tables, see ``numbers.gather``.
        task: the column that names the task.
        inputs, targets: the columns of x and y; None: those whose names begin with x, and with y.
        standardise: bring every column to mean 0 and deviation 1 over the training rows.
        val_fraction, test_fraction, split_seed, fold: as of ``data=folder``, of tasks.
        min_rows: fewest rows of a task; tasks with fewer are left out, and named.

    Raises:
        UserError: the table is not as described.
    """

    kind: Kind = Regression()

    def __init__(
        self,
        seed: int,
        *,
        root: str | None,
        task: str,
        inputs: list[str] | None,
        targets: list[str] | None,
        standardise: bool,
        val_fraction: Share,
        test_fraction: Share,
        split_seed: int,
        fold: Annotated[int, Ge(0)],
        min_rows: Annotated[int, Ge(2)],
    ) -> None:
        forms: list[TableForm] = []

        def pick(columns: list[str]) -> list[str]:
            x = chosen("inputs", columns, inputs or [c for c in columns if c.startswith("x")])
            y = chosen("targets", columns, targets or [c for c in columns if c.startswith("y")])
            if both := [column for column in x if column in y]:
                raise UserError(f"the column {both[0]} is named by data.inputs and by data.targets: keep one")
            for found, letter, key in ((x, "x", "inputs"), (y, "y", "targets")):
                if not found:
                    raise UserError(
                        f"data.root={root} has no column whose name begins with {letter}: name those meant with data.{key}=[COLUMN]"
                    )
            forms.append(TableForm(tuple(x), tuple(y)))
            return [*x, *y]

        tables, whole = gather(root, "csv_regression", task, pick)
        self.parts = in_splits(tables, whole, "tasks", min_rows, val_fraction, test_fraction, split_seed, fold)
        refuse_shared(self.parts, "task")
        self.form = forms[0]  # that of all tables: others are refused
        n = len(self.form.inputs or ())
        self.rows = {split: torch.from_numpy(np.concatenate(list(groups.values()))) for split, groups in self.parts.items()}
        self.targets = len(self.form.targets)
        self.splits, self.input_shape, self.kind = list(self.parts), (n,), Regression(self.targets)
        if standardise:
            first = self.rows[self.splits[0]]
            self.scaling, self.target_scaling = Scaling.of(first[:, :n]), Scaling.of(first[:, n:])

    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> Points:
        self.check_split(split)
        n, rows = self.input_shape[0], self.rows[split]
        x, y = rows[:, :n], rows[:, n:]
        x, y = self.scaling(x) if self.scaling else x, self.target_scaling(y) if self.target_scaling else y
        counts = np.array([len(group) for group in self.parts[split].values()], np.int64)
        return Points(x.float(), y.float(), counts, list(self.parts[split]), split, spec, seed, device)

    def describe(self, split: str) -> str:
        width = f"{self.input_shape[0]} inputs and {self.targets} targets"
        return f"{len(self.parts[split]):,} tasks, {len(self.rows[split]):,} rows of {width}"
