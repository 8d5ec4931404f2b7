"""Paired comparison: the same test episodes, answered by two runs (or groups of runs), compared episode by episode.
Episode difficulty cancels, so that a difference shows which two separate confidence intervals would hide."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from metarun.comparison.runs import DamagedError, FinishedRun, shown

EPISODE_KEYS = ("seed", "data", "way", "shot", "query", "trainer.test_episodes")  # what determines the test episodes


class UnpairedError(Exception):
    """The two cannot be paired; the message is one line that says why."""


class Paired(NamedTuple):
    """Mean of (first − second) over episodes, with its 95 % interval."""

    difference: float
    ci95: float  # 1.96 * std / sqrt(n) of the differences
    n: int  # episodes
    metric: str
    higher_is_better: bool

    @property
    def significant(self) -> bool:
        """The interval excludes 0."""
        return self.n > 1 and abs(self.difference) > self.ci95

    @property
    def sign(self) -> str:
        """``+`` the first is better, ``-`` it is worse, ``=`` no significant difference."""
        if not self.significant:
            return "="
        return "+" if (self.difference > 0) == self.higher_is_better else "-"


def pair(first: list[FinishedRun], second: list[FinishedRun]) -> Paired:
    """Compare two groups on the episodes that both have answered; runs with the same episodes are averaged before.

    Raises:
        UnpairedError: nothing in common, or scores are missing.
    """
    metric = first[0].metric
    if {run.metric for run in first + second} != {metric}:
        raise UnpairedError(f"one is scored by {metric}, the other by {second[0].metric}")
    a, b = _scores(first), _scores(second)
    common = [episodes for episodes in a if episodes in b]
    if not common:
        raise UnpairedError(_why(first[0], second[0]))
    try:
        difference = np.concatenate([_mean(a[episodes]) - _mean(b[episodes]) for episodes in common])
    except DamagedError as error:
        raise UnpairedError(str(error)) from None
    n = len(difference)
    return Paired(float(difference.mean()), float(1.96 * difference.std() / math.sqrt(n)), n, metric, first[0].higher_is_better(metric))


def _scores(runs: list[FinishedRun]) -> dict[tuple[Any, ...], list[FinishedRun]]:
    """Runs by their test episodes: the hash of these, and where in them the support ends, which it does not tell."""
    found: dict[tuple[Any, ...], list[FinishedRun]] = {}
    for run in runs:
        sha = run.summary.get("episodes_sha256")
        if not isinstance(sha, str):
            raise UnpairedError(f"{shown(run.folder)} has no test result")
        found.setdefault((sha, run.values.get("shot"), run.values.get("query")), []).append(run)
    return found


def _mean(runs: list[FinishedRun]) -> np.ndarray:
    # float64: differences of 32-bit scores are small numbers
    return np.mean([run.scores().astype(np.float64) for run in runs], axis=0)


def _why(a: FinishedRun, b: FinishedRun) -> str:
    """Which settings make the episodes differ."""
    differ = [
        f"{name} {a.values.get(name)} against {b.values.get(name)}" for name in EPISODE_KEYS if a.values.get(name) != b.values.get(name)
    ]
    first, second = (run.summary["episodes_sha256"][:8] for run in (a, b))
    what = ", ".join(differ) or f"other data, or a hash of another version: episodes_sha256 {first} against {second}"
    return f"they were tested on different episodes ({what}); test one of them again with: metarun eval RUN KEY=VALUE …"
