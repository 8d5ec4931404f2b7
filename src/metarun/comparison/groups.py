"""Groups runs over seeds, finds what differs between them, and takes statistics: mean and std over seeds, ci95 over episodes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from metarun.comparison.runs import FinishedRun

BLOCK = ("data", "way", "shot", "protocol")  # scores are comparable within one block
HOUSEKEEPING = (
    "run",
    "name",
    "seed",
    "trainer.name",
    "data.root",
    "data.split_seed",
    "data.fold",
)  # and what starts with logger. or ends with _target_: no experiment differs by them
DIVISION = ("data.split_seed", "data.fold")  # of classes into splits: runs repeat each other over these as over seeds
TECHNICAL = ("device", "engine.")  # results are the same to rounding: these tell runs apart only when nothing else does


class Statistic(NamedTuple):
    """A group's number: mean over its runs, sample std over its runs (None for one), mean of the runs' ci95 over episodes; NaN of one of
    which a run has none."""

    mean: float
    std: float | None
    ci95: float
    runs: int
    episodes: int

    @property
    def known(self) -> bool:
        """Whether it is a number."""
        return math.isfinite(self.mean)


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one block that differ in nothing but the seed and the division of classes, or that ``--group-by`` puts together."""

    runs: list[FinishedRun]
    key: dict[str, Any]  # what tells it from other groups

    @cached_property
    def block(self) -> tuple[str, ...]:
        """(data, way, shot, protocol), as text."""
        return tuple(str(self.runs[0].values[name]) for name in BLOCK)

    @property
    def seeds(self) -> list[int]:
        """The distinct seeds."""
        return sorted({run.values["seed"] for run in self.runs})

    @property
    def trainings(self) -> int:
        """How many trained learners its runs are of."""
        return len({run.training for run in self.runs})

    @property
    def divisions(self) -> int:
        """How many divisions of the classes into splits there are."""
        return len({tuple(run.values.get(name) for name in DIVISION) for run in self.runs})

    @property
    def metric(self) -> str:
        """The runs' own score."""
        return self.runs[0].metric

    def merit(self, mean: float, metric: str | None) -> float:
        """A mean of the metric (None: the runs' own), turned round where lower is better: the larger, the better."""
        return mean if self.runs[0].higher_is_better(metric or self.metric) else -mean

    def rank(self, split: str, metric: str | None) -> float:
        """The lower, the better; infinite without a score."""
        statistic = self.statistic(split, metric)
        return -self.merit(statistic.mean, metric) if statistic and statistic.known else math.inf

    def statistic(self, split: str, metric: str | None = None) -> Statistic | None:
        """Mean, std over runs and ci95 over episodes; NaN where a run that measured it diverged; None when no run has the metric."""
        name = metric or self.metric
        measured = [run for run in self.runs if name in run.measured[split]]
        found = [run.statistics[split][name] for run in measured if name in run.statistics[split]]
        if len(found) < len(measured):
            return Statistic(math.nan, None, math.nan, len(measured), 0)
        if not found:
            return None
        means = np.array([value["mean"] for value in found])
        std = float(means.std(ddof=1)) if len(means) > 1 else None
        ci95 = float(np.mean([value["ci95"] for value in found]))
        return Statistic(float(means.mean()), std, ci95, len(found), int(sum(value["n"] for value in found)))


def latest(runs: list[FinishedRun]) -> list[FinishedRun]:
    """The latest of each repetition of the same config and seed: counted twice, a repetition would feign a smaller spread."""
    if len(runs) == 2:
        return runs  # named one by one, as a run and its evaluation with another checkpoint
    newest: dict[tuple[Any, ...], FinishedRun] = {}
    # A run comes after its own evaluations, which have another checkpoint or less of what it has.
    for run in sorted(runs, key=lambda run: (run.training == run.folder.resolve(), (run.folder / "summary.json").stat().st_mtime)):
        newest[_repetition(run)] = run
    kept = {id(run) for run in newest.values()}
    return [run for run in runs if id(run) in kept]


def group(runs: list[FinishedRun], by: list[str] | None = None) -> list[Group]:
    """Group over seeds, or by the named keys alone, but never across blocks."""
    if len(runs) == 2 and len({_repetition(run) for run in runs}) == 1:
        by = by or ["run"]
    technical = len({(*_identity(run), *_drawn(run)) for run in runs}) < len(runs)
    found: dict[tuple[Any, ...], list[FinishedRun]] = {}
    for run in runs:
        identity = tuple(run.values.get(name) for name in (*by, *BLOCK)) if by else _identity(run, technical)
        found.setdefault(identity, []).append(run)
    firsts = [members[0] for members in found.values()]
    if by:
        columns = [*by, *(name for name in BLOCK if name not in by and _distinct(runs, name) > 1)]
    else:
        columns = _separating([run.values for run in firsts], differing(runs), differences(firsts))
    return [Group(members, {name: members[0].values.get(name) for name in columns}) for members in found.values()]


def _told_apart(rows: Sequence[Mapping[str, Any]], names: Iterable[str]) -> int:
    """How many of the rows these keys tell apart."""
    chosen = list(names)
    return len({tuple(row.get(name) for name in chosen) for row in rows})


def _separating(rows: Sequence[Mapping[str, Any]], columns: list[str], further: Sequence[str]) -> list[str]:
    """The columns and what it takes of the further keys to tell all rows apart, such as a key that older runs do not have."""
    for name in further:
        if _told_apart(rows, columns) == len(rows):
            break
        if _told_apart(rows, [*columns, name]) > _told_apart(rows, columns):
            columns = [*columns, name]
    return columns


def columns_of(groups: Sequence[Group]) -> list[str]:
    """The keys of a table's columns: which block a group is of, and what differs between groups of one block.

    What differs from block to block alone, as a learning rate tuned for each data set, fills a table and tells no rivals apart.
    """
    by_block: dict[tuple[str, ...], list[Group]] = {}
    for member in groups:
        by_block.setdefault(member.block, []).append(member)

    def varies(name: str) -> bool:
        return any(len({m.key[name] for m in members} - {None}) > 1 for members in by_block.values())

    keys = [name for name in groups[0].key if name != "norm"]  # norm has a column of its own
    kept = [name for name in keys if name in ("algo", "run", *BLOCK) or varies(name)] if len(by_block) > 1 else keys
    return _separating([member.key for member in groups], kept, keys)


def labels(members: Sequence[Group]) -> dict[Group, str]:
    """For legends: each group's algorithm, and as few keys as tell it from the others of this algorithm among ``members``.

    Groups that differ by their block alone have one label.
    """
    found: dict[Group, str] = {}
    for algo in dict.fromkeys(member.key.get("algo") for member in members):
        rivals = [member for member in members if member.key.get("algo") == algo]
        rows = [member.key for member in rivals]
        keys, names = [name for name in rows[0] if name not in (*BLOCK, "algo")], list[str]()
        while _told_apart(rows, names) < _told_apart(rows, keys):
            names.append(max(keys, key=lambda name: _told_apart(rows, [*names, name])))
        for member in rivals:
            rest = [f"{short(name)} {text(member.key[name])}" for name in keys if name in names and member.key[name] is not None]
            found[member] = ", ".join([*([str(algo)] if algo else []), *rest]) or "all runs"
    return {member: found[member] for member in members}


def differing(runs: list[FinishedRun]) -> list[str]:
    """The columns that tell these runs apart: algo always, then whatever differs and is not said by another column already."""
    columns = ["algo", *(name for name in BLOCK if _distinct(runs, name) > 1)]
    shown = [[run.values[name] for run in runs] for name in columns]
    for name in _keys(runs):
        if name in columns or not _tells_apart(name) or _distinct(runs, name) < 2:
            continue
        values = [run.values.get(name) for run in runs]
        if values not in shown and not _implied(runs, name):  # episode.eval.way repeats way
            columns.append(name)
            shown.append(values)
    return columns


def differences(runs: list[FinishedRun]) -> list[str]:
    """Every config key in which the runs differ, but for seed and housekeeping; absent counts as a value."""
    absent = object()
    return [name for name in _keys(runs) if _tells_apart(name, technical=True) and len({run.values.get(name, absent) for run in runs}) > 1]


def _keys(runs: list[FinishedRun]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.values))


def _distinct(runs: list[FinishedRun], name: str) -> int:
    """How many values a key has among the runs that have it."""
    return len({run.values[name] for run in runs if name in run.values})


def _tells_apart(name: str, technical: bool = False) -> bool:
    if name in HOUSEKEEPING or name.startswith("logger.") or name.endswith("_target_"):
        return False
    return technical or not name.startswith(TECHNICAL)


def _identity(run: FinishedRun, technical: bool = False) -> tuple[Any, ...]:
    return tuple(sorted((item for item in run.values.items() if _tells_apart(item[0], technical)), key=lambda item: item[0]))


def _repetition(run: FinishedRun) -> tuple[Any, ...]:
    """What two runs share when one repeats the other."""
    return *_identity(run, technical=True), *_drawn(run)


def _drawn(run: FinishedRun) -> tuple[Any, ...]:
    """What is drawn for a run: by its seed, and by how the classes are divided."""
    return run.values["seed"], *(run.values.get(name) for name in DIVISION)


def _implied(runs: list[FinishedRun], name: str) -> bool:
    """Whether a key of data, net or optim merely follows from which data, net or optimizer it is, as the image size does."""
    owner = {"data": "data", "net": "net.name", "optim": "optim.name", "norm": "net.name"}.get(name.partition(".")[0])
    if owner in (None, name):
        return False
    pairs = {(run.values.get(owner), run.values[name]) for run in runs if name in run.values}
    return len(pairs) == len({value for value, _ in pairs})


def short(name: str) -> str:
    """A key without its group: inner_lr for algo.inner_lr, net for net.name."""
    first, _, rest = name.partition(".")
    return first if rest in ("", "name") else rest


def text(value: Any) -> str:
    """A config value for people."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def best(groups: Iterable[Group], split: str, metric: str | None) -> dict[tuple[str, ...], Group]:
    """The best group of each block in which there are at least two."""
    blocks: dict[tuple[str, ...], list[tuple[float, Group]]] = {}
    for candidate in groups:
        if (rank := candidate.rank(split, metric)) < math.inf:
            blocks.setdefault(candidate.block, []).append((rank, candidate))
    return {block: min(rivals, key=lambda rival: rival[0])[1] for block, rivals in blocks.items() if len(rivals) > 1}
