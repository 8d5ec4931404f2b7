"""Finds run folders and reads their config.yaml and summary.json; what is damaged or unfinished is named, never fatal.
Folders may come from other people: YAML without tags and aliases, arrays without pickles, nothing is executed."""

from __future__ import annotations

import glob
import io
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from metarun.config import legacy
from metarun.config.nested import leaves
from metarun.errors import UserError, nearest
from metarun.storage import foreign
from metarun.storage.foreign import DamagedError

RUN_FILES = {"config.yaml", "summary.json", "metrics.jsonl", "metarun.log", "test_scores.npy", "checkpoints"}  # one of them marks a run
REQUIRED: dict[str, tuple[type, ...]] = {
    "algo": (str,), "data": (str,), "way": (int,), "shot": (int,), "seed": (int,), "parameters": (int,), "bn_mode": (str,),
    "wall_s": (int, float), "val": (dict, type(None)), "test": (dict, type(None)),
}  # fmt: skip
FROM_SUMMARY = {"algo": "algo.name", "data": "data.name", "way": "way", "shot": "shot", "query": "query", "seed": "seed"}
EPISODES = "episodes"  # the protocol of runs that do not say how they were tested
LOWER_IS_BETTER = {  # words of a score's name
    *("loss", "mse", "sse", "rmse", "mae", "nll", "joint_nll", "error", "ece", "brier", "perplexity", "eer", "aurc", "fpr"),
    *("forgetting", "corrupt"),
}
OVER = {  # by protocol: what its curve goes over, if not inner steps, and of what it is, if not of the metric
    "continual": ("classes met", ""),
    "rewards": ("action", "mean reward"),
}
RIVAL = "rival_"  # how names of scores begin that are others' in the run's own
LONG = 2**28  # bytes of test_scores.npy or metrics.jsonl: tens of millions of episodes, a million points


@dataclass(frozen=True)
class FinishedRun:
    """One finished run: its folder, its config by dotted key, its summary."""

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]

    @cached_property
    def values(self) -> dict[str, Any]:
        """What the run can be told apart by: algo, data, way, shot, query, seed, norm, run (its folder), other config leaves."""
        known = {key: self.summary[key] for key in FROM_SUMMARY if key in self.summary}
        asked = self.summary.get("protocol")
        protocol = str(asked[0]) if isinstance(asked, list) and asked else EPISODES  # the first says what scores are compared
        known |= {"norm": self.summary["bn_mode"], "run": shown(self.folder), "protocol": protocol}
        return known | {key: value for key, value in self.config.items() if key not in (*FROM_SUMMARY.values(), "net.norm")}

    @cached_property
    def measured(self) -> dict[str, dict[str, float]]:
        """``measured[split][metric]`` is the mean, NaN where it is no finite number: an adaptation that diverged has no score."""
        return {split: _means(self.summary[split] or {}) for split in ("val", "test")}

    @cached_property
    def training(self) -> Path:
        """The folder of the run whose weights were measured: of an evaluation, RUN/eval/<n>, that is RUN."""
        above = self.folder.resolve().parent
        return above.parent if above.name == "eval" and (above.parent / "checkpoints").is_dir() else self.folder.resolve()

    @cached_property
    def statistics(self) -> dict[str, dict[str, dict[str, float]]]:
        """``statistics[split][metric]`` is {mean, ci95, n}; only what is a finite number."""
        return {split: _statistics(self.summary[split] or {}) for split in ("val", "test")}

    @cached_property
    def metric(self) -> str:
        """The run's own score, as its summary says; the first summaries did not, and had accuracies and squared errors."""
        names = [*self.measured["test"], *self.measured["val"]]
        return next((name for name in (self.summary.get("metric"), "accuracy", "mse") if name in names), names[0])

    @property
    def same_classes(self) -> list[str]:
        """The splits all of whose episodes hold the same classes, as far as the summary says so."""
        said = self.summary.get("same_classes")
        return said if isinstance(said, list) else []

    def higher_is_better(self, metric: str) -> bool:
        """What the summary says of its own score, and so of its rivals'; of any other, by its name: true but for losses and errors."""
        said = self.summary.get("higher_is_better")
        if isinstance(said, bool) and (metric == self.summary.get("metric") or metric.startswith(RIVAL)):
            return said
        return not LOWER_IS_BETTER & set(metric.lower().split("_"))

    def scores(self) -> np.ndarray:
        """The score of each test episode, [n].

        Raises:
            DamagedError: no scores, or not as many as the summary says.
        """
        path, expected = self.folder / "test_scores.npy", self.statistics["test"].get(self.metric, {}).get("n")
        if not path.exists():
            raise DamagedError(f"{shown(self.folder)} has no test_scores.npy")
        try:
            scores = np.load(io.BytesIO(foreign.read(path, LONG)), allow_pickle=False)
        except (DamagedError, OSError, ValueError, EOFError, MemoryError) as error:  # a header may ask for terabytes
            raise DamagedError(f"{shown(path)} cannot be read ({foreign.one_line(error)})") from None
        if scores.ndim != 1 or len(scores) != expected:
            raise DamagedError(f"{shown(path)} has shape {scores.shape}, but the summary tells of {expected} episodes")
        if not np.isfinite(scores).all():
            raise DamagedError(f"{shown(path)} has {int((~np.isfinite(scores)).sum())} scores that are not finite numbers")
        return scores

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The points of metrics.jsonl; a line cut off by a crash is left out."""
        try:
            lines = foreign.read(self.folder / "metrics.jsonl", LONG).splitlines()
        except DamagedError:
            return
        for line in lines:
            try:
                point = foreign.parse_json(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(point, dict) and isinstance(point.get("step"), int):
                yield point


@dataclass
class Found:
    """What a search has brought to light."""

    runs: list[FinishedRun] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)  # a config, no summary
    damaged: list[tuple[Path, str]] = field(default_factory=list)  # folder and reason
    notes: list[str] = field(default_factory=list)


def collect(words: list[str]) -> Found:
    """Read all runs at or below the paths and globs in ``words``, each once.

    Raises:
        UserError: a path does not exist, or nothing valid is left.
    """
    if not words:
        raise UserError("name the runs: metarun compare RUN…, where RUN is a run's folder, a folder of runs (outputs, a sweep) or a glob")
    found, seen = Found(), set[str]()
    for word in words:
        before = len(seen)
        for path in _expand(word):
            if path.is_dir():
                for folder in _walk(path, seen, found):
                    _read_into(found, folder)
        if len(seen) == before and word not in words[: words.index(word)]:
            found.notes.append(f"{word} is not a folder, left out")
    if not found.runs:
        counts = [f"{len(found.damaged)} damaged" * bool(found.damaged), f"{len(found.unfinished)} unfinished" * bool(found.unfinished)]
        what = " and ".join(filter(None, counts)) or "no"
        first = f" (first: {shown(found.damaged[0][0])}: {found.damaged[0][1]})" if found.damaged else ""
        raise UserError(f"nothing to compare: {what} runs in {' '.join(words)}{first}; name folders that hold config.yaml and summary.json")
    return found


def _expand(word: str) -> list[Path]:
    """A path as it is, or a glob's matches."""
    path = Path(word)
    if path.exists():
        return [path]
    if glob.has_magic(word):
        matches = sorted(glob.glob(word, recursive=True), key=_natural)
        if matches:
            return [Path(match) for match in matches]
        raise UserError(f"nothing matches {word}")
    siblings = [str(path.parent / other.name) for other in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(f"there is no run folder {word}{nearest(word, siblings)}")


def _walk(folder: Path, seen: set[str], found: Found) -> Iterator[Path]:
    """Run folders at or below ``folder`` in natural order; a run is not searched, so that its eval/ counts only when named."""
    real = os.path.realpath(folder)  # links are followed, loops and double mentions are not
    if real in seen:
        return
    seen.add(real)
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        found.damaged.append((folder, f"cannot be opened ({error.strerror})"))
        return
    if not entries or RUN_FILES & {entry.name for entry in entries}:
        yield folder
        return
    for entry in sorted(entries, key=lambda entry: _natural(entry.name)):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _walk(folder / entry.name, seen, found)


def _natural(name: str) -> list[Any]:
    """Sorts 2_maml before 10_maml."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _read_into(found: Found, folder: Path) -> None:
    try:
        run = read(folder)
    except DamagedError as error:
        found.damaged.append((folder, str(error)))
        return
    if run:
        found.runs.append(run)
    else:
        found.unfinished.append(folder)


def read(folder: Path) -> FinishedRun | None:
    """Read one run; None when it is unfinished.

    Raises:
        DamagedError: with the reason.
    """
    if not any(folder.iterdir()):
        raise DamagedError("the folder is empty")
    config = {key: _plain(value) for key, value in leaves(legacy.updated(foreign.yaml_mapping(folder / "config.yaml")))}
    if not (folder / "summary.json").exists():
        return None
    summary = foreign.json_object(folder / "summary.json")
    missing = [key for key in REQUIRED if key not in summary]
    if missing:
        raise DamagedError(f"summary.json lacks {', '.join(missing)}")
    wrong = [key for key, kinds in REQUIRED.items() if not isinstance(summary[key], kinds)]
    if wrong:
        raise DamagedError(f"summary.json has a wrong value for {', '.join(wrong)}")
    run = FinishedRun(folder, config, summary)
    if not any(run.measured.values()):
        raise DamagedError("summary.json has no finite result, neither val nor test")
    return run


def _plain(value: Any) -> str | int | float | None:
    """A value that can be compared and sorted by; a list is text."""
    return value if isinstance(value, str | int | float | None) else str(value)


def _means(split: dict[str, Any]) -> dict[str, float]:
    """By metric of a summary's split; null, as a summary says that there is none, is NaN."""
    means = {name: value["mean"] for name, value in split.items() if isinstance(value, dict) and "mean" in value}
    return {name: math.nan if mean is None else mean for name, mean in means.items() if mean is None or _finite(mean)}


def _statistics(split: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The entries of a summary's split that are complete statistics."""
    dicts = {name: value for name, value in split.items() if isinstance(value, dict)}
    return {name: value for name, value in dicts.items() if all(_finite(value.get(key)) for key in ("mean", "ci95", "n"))}


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def shown(path: Path) -> str:
    """A path as people write it: relative to the working folder when below it."""
    try:
        return foreign.printable(str(path.resolve().relative_to(Path.cwd())))
    except ValueError:
        return foreign.printable(str(path))
