"""Which files of a folder are mislabelled? Those that do not look like their class to learners that weigh their training data.
Each learner trains on a part of the folder; between them they see every file several times (``data.covering``)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.abilities import WeighsExamples
from metarun.algorithm import Algorithm, State
from metarun.data.base import ImageDataset
from metarun.data.covering import Covering, joined
from metarun.data.episodes import Split
from metarun.errors import UserError
from metarun.inner import upcast
from metarun.predict.contact_sheet import Answer, draw
from metarun.problem import Problem, best_guess
from metarun.protocols.base import AfterAdaptation, Arrays, Scores
from metarun.run import Run
from metarun.storage.files import replace_file
from metarun.task import Task

TIMES = 3  # learners that see a file, at least
LISTED = 10  # suspects that a run prints
SHOWN, BESIDE = 48, 24  # suspects on the sheet, and classes of which there are trusted pictures above them


@dataclass(frozen=True, kw_only=True)
class Audit(AfterAdaptation):
    """What a learner makes of every example that it was trained on, and of every query."""

    name = "audit"

    def learned(self, algorithm: Algorithm, state: State, task: Task) -> dict[str, Tensor]:
        """``weights`` [n] of the support; ``log_probabilities`` [n + m, way], its own and the query's, of the task's ``classes`` [way]."""
        assert isinstance(algorithm, WeighsExamples)
        logits = upcast(best_guess(algorithm.predict(state, torch.cat([task.context.examples().x, task.query.x]))))
        found = {"classes": task.context.classes, "log_probabilities": logits.log_softmax(-1)}
        return found | {"weights": algorithm.example_weights(state)}

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        return {}, []


@dataclass(frozen=True)
class Judged:
    """One file, and what learners made of it."""

    file: str  # its path below the root
    label: str  # the class it lies in
    fits: float  # the probability of that class, 0..1, in the geometric mean over the learners that knew it: e to minus the mean loss
    weight: float  # mean over the learners; 1: it counts like any other
    looks_like: str  # the most probable of the classes that it was beside
    probability: float  # of what it looks like, as of its class
    row: int  # in the data


def possible(run: Run) -> bool:
    """Whether a run's method and data are such that its files can be judged."""
    data = run.data
    there = isinstance(data, ImageDataset) and any(split.files for split in data.splits.values())
    return there and isinstance(run.algorithm, WeighsExamples) and run.spec["eval"].whole


def covering(run: Run) -> Covering:
    """The training sets by which all the data of a run are judged.

    Raises:
        UserError: there are no training sets of images.
    """
    if not isinstance(run.data, ImageDataset) or not run.spec["eval"].whole:
        raise UserError(f"weights are of examples of whole training sets: {run.title} has none; train with episode=dataset")
    return Covering(joined(run.data.splits.values()), run.spec["eval"], run.valid.root.seed, run.device, TIMES)


def judge(run: Run, asked: AfterAdaptation, after_block: Callable[[int, int], None]) -> tuple[Split, Arrays]:
    """The data, all splits as one, and what is noted of the learner of every training set; ``after_block`` hears how many are done.

    To what is noted, ``rows`` [training sets, n + m] of the data are added: of the support and, after it, of the query.
    """
    episodes = covering(run)
    n, shot = episodes.length or 0, episodes.spec.shot
    arrays = run.engine.score(run.algorithm, episodes, n, asked, lambda done: after_block(done, n))
    images = episodes.indices(range(n))[2]
    rows = np.concatenate([images[..., :shot].reshape(n, -1), images[..., shot : 2 * shot].reshape(n, -1)], 1)
    return episodes.data, arrays | {"rows": rows}


def over_learners(values: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    """Of values [...] of the ``rows`` [...] of n examples, the mean for each example [n]; NaN where there is none."""
    rows = rows.astype(np.int64).ravel()
    counts = np.bincount(rows, minlength=n)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = np.bincount(rows, values.ravel(), minlength=n) / counts
    return found


def suspects(run: Run, after_block: Callable[[int, int], None] = lambda done, n: None) -> tuple[Split, list[Judged]]:
    """The data of a run, and all its files, the most suspicious first: those that fit the class they lie in the least.

    A weight does not say so: it is small as well where an example is so easy that nothing is learned from it any more. Nor does the
    arithmetic mean of probabilities as well: those learners that have a wrong label by heart then outvote the others that are sure.
    """
    data, arrays = judge(run, Audit("last"), after_block)
    n, rows, weights = len(data.images), arrays["rows"], arrays["weights"]
    weights = over_learners(weights, rows[:, : weights.shape[1]], n)
    # Pairs of an example and a class that it was beside, as one number each.
    pairs = rows[..., None] * data.classes + arrays["classes"][:, None].astype(np.int64)
    known, where = np.unique(pairs, return_inverse=True)
    means = np.exp(over_learners(arrays["log_probabilities"], where, len(known)))
    owner, classes = np.divmod(known, data.classes)
    labels = np.repeat(np.arange(data.classes), data.counts)
    fits = means[classes == labels[owner]]
    order = np.lexsort((-means, owner))
    best = order[np.unique(owner[order], return_index=True)[1]]  # of each example the most probable class
    found = [
        Judged(
            _name(data, i, int(label)), data.names[label], float(fits[i]), float(weights[i]), data.names[classes[at]], float(means[at]), i
        )
        for i, (label, at) in enumerate(zip(labels, best))
    ]
    return data, sorted(found, key=lambda judged: judged.fits)


def _name(data: Split, row: int, label: int) -> str:
    """What a row of the data is called: its file, or the class and a number."""
    return data.files[row] if data.files else f"{data.names[label]}/{row - int(data.starts[label]):04d}"


def table(judged: Sequence[Judged]) -> bytes:
    """A CSV of all files, the most suspicious first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["file", "class", "fits", "weight", "looks_like", "probability"])
    for one in judged:
        writer.writerow([one.file, one.label, f"{one.fits:.6g}", f"{one.weight:.6f}", one.looks_like, f"{one.probability:.6f}"])
    return out.getvalue().encode(errors="surrogateescape")


def sheet(path: Path, title: str, data: Split, judged: Sequence[Judged]) -> None:
    """A picture of the most suspicious files, beside pictures of their classes that fit well."""
    shown = judged[:SHOWN]
    classes = list(dict.fromkeys(one.label for one in shown))[:BESIDE]
    trusted = [(one.label, data.images[one.row].cpu().numpy()) for one in reversed(judged) if one.label in classes]
    answers = [
        Answer(one.file, data.images[one.row].cpu().numpy(), {one.looks_like: one.probability}, one.label, f"fits {one.fits:.1%}")
        for one in shown
    ]
    lines = [
        title,
        f"the {len(shown)} most suspicious of {len(judged):,} files; above them, of their classes, the pictures that fit best",
    ]
    draw(path, lines, sorted(trusted, key=lambda one: classes.index(one[0])), answers, "file")


def export(run: Run, out: Path, picture: Path | None) -> dict[str, Any]:
    """Write a weight for every file to ``out``, a CSV, and the sheet, if one is wanted; returns what was written.

    Raises:
        UserError: see ``covering``.
    """
    data, judged = suspects(run)
    replace_file(out, lambda handle: handle.write(table(judged)))
    if picture:
        sheet(picture, run.title, data, judged)
    return {"weights": str(out), "files": len(judged), "sheet": picture and str(picture), "suspects": listed(judged)}


def listed(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The most suspicious, for a summary."""
    return [
        {"file": one.file, "class": one.label, "fits": round(one.fits, 4), "weight": round(one.weight, 4), "looks_like": one.looks_like}
        for one in judged[:LISTED]
    ]
