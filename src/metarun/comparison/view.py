"""What is compared with what: the groups in their order, the columns, the best of each block and the distance to it.
Every output (terminal, Markdown, CSV, LaTeX, JSON, plots, report) is drawn from one ``View``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metarun.comparison.groups import BLOCK, Group, best, columns_of, differing, group, latest
from metarun.comparison.keys import full
from metarun.comparison.paired import Paired, UnpairedError, pair
from metarun.comparison.runs import FinishedRun
from metarun.errors import UserError, nearest

SPLITS = ("val", "test")


@dataclass(frozen=True)
class View:
    """A comparison, ready to be shown.

    Attributes:
        groups: in the order of the table.
        columns: the keys that a table shows of a group (of ``Group.key``), beside the numbers.
        repeated, unmeasured: how many runs are left out, since a later one repeats them or since they do not have the metric.
        metric: the metric asked for; None for each run's own score.
        splits: shown, ``val`` and ``test`` or one of them.
        by: the split behind order and plots: the last of ``splits`` that has a result.
        spread: over what std is taken, ``seeds``, ``divisions`` of the classes, ``runs`` that differ in both or more, or ``evaluations``,
            some of one and the same training.
        best: for each split, the best group of each block of at least two.
        versus: for groups that can be paired with the best of their block on test episodes.
    """

    groups: list[Group]
    columns: list[str]
    repeated: int
    unmeasured: int
    metric: str | None
    splits: tuple[str, ...]
    by: str
    spread: str
    best: dict[str, dict[tuple[str, ...], Group]]
    versus: dict[int, Paired]

    @property
    def runs(self) -> list[FinishedRun]:
        """All runs of all groups."""
        return [run for member in self.groups for run in member.runs]

    def is_best(self, member: Group, split: str) -> bool:
        """Whether the group is the best of a block of at least two."""
        return self.best[split].get(member.block) is member

    def metrics(self) -> list[str]:
        """The metrics that the table's numbers are in."""
        return [self.metric] if self.metric else list(dict.fromkeys(member.metric for member in self.groups))


def view(runs: list[FinishedRun], metric: str | None, split: str | None, group_by: list[str], sort: str | None) -> View:
    """Group, order and pair.

    Raises:
        UserError: a name that is not among the runs' metrics, splits or keys, with the nearest that is.
    """
    if split is not None and split not in SPLITS:
        raise UserError(f"there is no split '{split}'{nearest(split, SPLITS)} (splits: val, test)")
    _check_metric(runs, metric, split)
    splits = (split,) if split else SPLITS
    keys = [full(name, runs, "--group-by") for name in group_by]
    counted = runs if keys else latest(runs)
    kept = [run for run in counted if any((metric or run.metric) in run.measured[name] for name in splits)]
    groups = group(kept, keys)
    by = next((name for name in reversed(splits) if any(member.statistic(name, metric) for member in groups)), splits[-1])
    alike = all(differing(member.runs) == ["algo"] and len({run.values["algo"] for run in member.runs}) == 1 for member in groups)
    trained = all(member.trainings == len(member.runs) for member in groups)
    only_seeds = alike and trained and all(len(member.seeds) == len(member.runs) for member in groups)
    only_divisions = alike and trained and all(member.divisions == len(member.runs) > len(member.seeds) for member in groups)
    chosen = {name: best(groups, name, metric) for name in splits}
    groups = _sort(groups, sort, runs, by, metric)
    versus = _versus(groups, chosen["test"]) if "test" in splits and metric in (None, groups[0].metric) else {}
    spread = "seeds" if only_seeds else "divisions" if only_divisions else "runs" if trained else "evaluations"
    repeated, unmeasured = len(runs) - len(counted), len(counted) - len(kept)
    return View(groups, columns_of(groups), repeated, unmeasured, metric, splits, by, spread, chosen, versus)


def _check_metric(runs: list[FinishedRun], metric: str | None, split: str | None) -> None:
    known = dict.fromkeys(name for run in runs for part in ([split] if split else SPLITS) for name in run.measured[part])
    if not known:
        raise UserError(f"no run has a {split} result; leave out --split {split}")
    if metric is not None and metric not in known:
        raise UserError(f"no run has the metric '{metric}'{nearest(metric, known)} (metrics: {', '.join(known)})")


def _sort(groups: list[Group], sort: str | None, runs: list[FinishedRun], by: str, metric: str | None) -> list[Group]:
    """By block and merit, or by the key asked for; a leading minus turns the order round."""
    if sort is None:
        return sorted(groups, key=lambda member: ([_orderly(member.runs[0].values[name]) for name in BLOCK], member.rank(by, metric)))
    down, name = sort.startswith("-"), sort.removeprefix("-")
    computed: dict[str, Any] = {
        "val": lambda member: member.rank("val", metric),
        "test": lambda member: member.rank("test", metric),
        "seeds": lambda member: len(member.seeds),
        "parameters": lambda member: mean_of(member, "parameters"),
        "wall": lambda member: mean_of(member, "wall_s"),
    }
    key = full(name, runs, "--sort", tuple(computed))
    return sorted(groups, key=computed.get(key, lambda member: _orderly(member.runs[0].values.get(key))), reverse=down)


def _orderly(value: Any) -> tuple[int, float, str]:
    """Numbers before words before nothing."""
    if isinstance(value, int | float):
        return 0, value, ""
    return (2, 0, "") if value is None else (1, 0, str(value))


def mean_of(member: Group, key: str) -> float:
    """Mean over a group's runs of a number of the summary."""
    return sum(run.summary[key] for run in member.runs) / len(member.runs)


def _versus(groups: list[Group], winners: dict[tuple[str, ...], Group]) -> dict[int, Paired]:
    found: dict[int, Paired] = {}
    for i, member in enumerate(groups):
        winner = winners.get(member.block)
        if winner is None or winner is member:
            continue
        try:
            found[i] = pair(member.runs, winner.runs)
        except UnpairedError:
            continue  # a dash in the table; asked for by name, --paired says why
    return found
