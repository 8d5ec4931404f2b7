"""The tables of docs/learned-data.md on weighted training data: imbalance, flipped labels, noise, and files in wrong folders.

python scripts/reproduce_weights.py [--omniglot FOLDER] [--cifar FOLDER] [--runs outputs/weights] [--only TABLE] [--write]

Every row is a run of metarun; a finished one is not repeated. --write puts the tables into the page.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import ONE_THREAD, finished, put
from torch import Tensor

from metarun.adaptation import asked
from metarun.algorithm import Algorithm, State
from metarun.config.compose import compose, resolve
from metarun.config.stored import read_config
from metarun.data.episodes import Split, draws, episode_keys
from metarun.inner import upcast
from metarun.predict import audit
from metarun.problem import best_guess
from metarun.protocols.base import AfterAdaptation, Arrays, Scores, statistics
from metarun.protocols.episodes import OfEpisodes
from metarun.protocols.weights import auroc
from metarun.run import Run
from metarun.task import Task

PAGE = Path(__file__).resolve().parents[1] / "docs" / "learned-data.md"
PLANTED, LOOKED_AT = 0.05, 50  # of the files, renamed into a wrong class; and how many of the most suspicious are judged

# By table: what a row is called, and its words.
ALONE = "algo=supervised episode.corrupt=none episode.rate=0"
ROWS = {
    "imbalance": {
        "plain training": "algo=supervised algo.test_steps=1000",
        "random weights": "algo=random_weights algo.test_steps=1000",
        "class ratio": "algo=ratio algo.test_steps=1000",
        "Meta-Weight-Net": "algo=metaweight algo.meta_rate=0.01",
        "L2RW": "algo=l2rw",
        "the 10 clean examples alone": f"{ALONE} shot=5",
    },
    "flips": {
        "plain training": "algo=supervised",
        "random weights": "algo=random_weights",
        "Meta-Weight-Net": "algo=metaweight",
        "L2RW": "algo=l2rw",
        "the 200 clean examples alone": f"{ALONE} shot=20",
        "no label flipped": ALONE,
    },
    "noise": {
        "plain training": "algo=supervised",
        "random weights": "algo=random_weights",
        "Meta-Weight-Net": "algo=metaweight",
        "L2RW": "algo=l2rw",
        "DataRater": "algo=datarater",
        "no noise": ALONE,
    },
}
TOLD = {"imbalance": "", "flips": "AUROC of clean against flipped", "noise": "AUROC of clean against noise"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", type=Path, help="folder of the Omniglot archives")
    parser.add_argument("--cifar", type=Path, help="folder of cifar_fs.zip")
    parser.add_argument("--runs", type=Path, default=Path("outputs/weights"), help="folder of the runs")
    parser.add_argument("--only", choices=[*ROWS, "planted"], help="one of the tables; planted: those of files in wrong folders")
    parser.add_argument("--development", action="store_true", help="files of the classes by which settings were chosen; not written")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/learned-data.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables: dict[str, Callable[[], str]] = {name: partial(table, name, options.runs) for name in ROWS if options.only in (None, name)}
    for name, folder in FOLDERS.items() if options.only in (None, "planted") else ():
        if source := getattr(options, name):
            runs = options.runs / ("development" if options.development else "planted") / name
            tables[name] = partial(wrong_folders, folder, source, runs, options.development)
    for name, made in tables.items():
        text = made()
        print(text, flush=True)
        if options.write and not options.development:
            if name == "flips":
                shutil.copy(options.runs / name / "meta-weight-net" / "weights.png", PAGE.parent / "pictures" / "weights.png")
            put(PAGE, name, text)


# Training sets of invented characters.


def table(name: str, runs: Path) -> str:
    """Test error in percent, mean ± 1.96 standard errors over training sets, and training set by training set less that of L2RW."""
    words = {row: f"experiment=weights_{name} {more}" for row, more in ROWS[name].items()}
    folders = {row: runs / name / re.sub(r"[^a-z0-9]+", "-", row.lower()) for row in words}
    more = [*ONE_THREAD, f"logger.pictures={str(name == 'flips').lower()}"]
    found = {row: finished([*line.split(), *more], folders[row]) for row, line in words.items()}
    errors = {row: 100 - 100 * np.load(folder / "test_scores.npy") for row, folder in folders.items()}
    text = f"| training | error, % | less that of L2RW | {TOLD[name]} |\n| --- | --- | --- | --- |\n"
    for row, error in errors.items():
        less = "–" if row == "L2RW" else shown(error - errors["L2RW"])
        area = (found[row]["test"] or {}).get("weights_auroc")
        told = f"{area['mean']:.3f} ± {area['ci95']:.3f}" if area else "–"
        text += f"| {row} | {shown(error)} | {less} | {told} |\n"
        if row == "plain training" and name == "flips":
            stopped, steps = early(folders[row])
            label = f"plain training, stopped by the clean examples, after {min(steps)} to {max(steps)} steps"
            text += f"| {label} | {shown(stopped)} | {shown(stopped - errors['L2RW'])} | – |\n"
    if name == "imbalance":  # where nothing is wrong there is nothing to be told from
        text = "\n".join(line.rpartition(" | ")[0] + " |" for line in text.splitlines()) + "\n"
    commands = "\n".join(f"metarun {line}" for line in words.values())
    return f"{text}\n```\n{commands}\n```\n"


def shown(values: np.ndarray) -> str:
    """Mean ± 1.96 standard errors."""
    found = statistics(values)
    return f"{found['mean']:.2f} ± {found['ci95']:.2f}"


@dataclass(frozen=True, kw_only=True)
class OnClean(OfEpisodes):
    """As ``protocol=episodes``, and beside it the accuracy on the clean examples after the same steps."""

    def measure(self, algorithm: Algorithm, task: Task, *, scanned: bool) -> dict[str, Tensor]:
        clean, query, score = task.context.clean, task.query, algorithm.problem.score
        points = self.points(algorithm.steps(task.context, False), task.context.support.y.shape[0])

        def read(state: State, answer: Tensor) -> dict[str, Tensor]:
            n = query.y.shape[0]
            return {"score": score(answer[:n], query.y), "clean": score(answer[n:], clean.y)}

        return asked(algorithm, task.context, torch.cat([query.x, clean.x]), points, read, scanned=scanned)  # type: ignore[no-any-return]


EVERY = 20  # steps between those among which the clean examples choose


@dataclass(frozen=True, kw_only=True)
class Often(OnClean):
    """After every ``EVERY`` steps."""

    def points(self, steps: int, examples: int) -> Sequence[int]:
        return range(0, steps + 1, EVERY)


def early(folder: Path) -> tuple[np.ndarray, list[int]]:
    """Test errors [training sets] in percent of a run after the steps at which the clean examples are answered best, and these steps."""
    run = Run(read_config(folder))
    arrays = run.engine.score(
        run.algorithm, run.episodes("test"), run.valid.trainer.values["test_episodes"], Often("all"), lambda done: None
    )
    best = arrays["clean"].argmax(1)
    return 100 - 100 * np.take_along_axis(arrays["score"], best[:, None], 1)[:, 0], [EVERY * int(i) for i in best]


# Files in wrong folders.


@dataclass(frozen=True)
class Folder:
    """A folder of real pictures in which some lie in a wrong class."""

    title: str
    archive: str
    member: str  # pattern of those of the archive's files that are reported: class and name
    development: tuple[str, str]  # archive and pattern of those by which settings were chosen: of other classes
    words: str
    learner: str  # beside the experiment's own settings
    plain: str  # the rival that weighs nothing


FOLDERS = {
    "omniglot": Folder(
        "Omniglot",
        "images_background_small1.zip",
        r"[^/]+/([^/]+/[^/]+)/([^/.]+\.png)",
        ("images_background_small2.zip", r"[^/]+/((?:Japanese_\(katakana\)|Sanskrit|Tagalog)/[^/]+)/([^/.]+\.png)"),
        "data.size=28 data.channels=1 data.invert=true",
        "",
        "algo=supervised algo.rate=0.05 algo.test_steps=100",
    ),
    "cifar": Folder(
        "CIFAR-FS",
        "cifar_fs.zip",
        r"cifar_fs/train/([^/]+)/([^/.]+\.png)",
        ("cifar_fs.zip", r"cifar_fs/(?:val|test)/([^/]+)/([^/.]+\.png)"),
        "shot=80 episode.clean=10",
        "algo.test_steps=400",
        "algo=supervised algo.rate=0.05 algo.test_steps=300",
    ),
}


def planted(archive: Path, member: str, root: Path) -> set[str]:
    """Unpack the pictures below ``root``, ``PLANTED`` of them in a class folder drawn at random; their paths below the root."""
    noted = root.with_suffix(".json")
    if noted.is_file():
        return set(json.loads(noted.read_text(encoding="utf-8")))
    with zipfile.ZipFile(archive) as packed:
        found = {
            (match[1].replace("/", "-"), match[2]): name for name in sorted(packed.namelist()) if (match := re.fullmatch(member, name))
        }
        classes = sorted({label for label, _ in found})
        keys = episode_keys(0, "planted", range(len(found)))
        order, other = (draws(keys, stream, ()) for stream in (0, 1))
        chosen = set(np.argsort(order)[: round(PLANTED * len(found))].tolist())
        wrong = []
        for i, ((label, file), name) in enumerate(found.items()):
            if i in chosen:
                label = classes[(classes.index(label) + 1 + int(other[i] * (len(classes) - 1))) % len(classes)]
                file = f"planted-{file}"
                wrong.append(f"{label}/{file}")
            path = root / label / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(packed.read(name))
    noted.write_text(json.dumps(wrong), encoding="utf-8")
    return set(wrong)


@dataclass(frozen=True, kw_only=True)
class Losses(AfterAdaptation):
    """The loss of every example, and of every query, under a net that was trained on the examples."""

    name = "losses"

    def learned(self, algorithm: Algorithm, state: State, task: Task) -> dict[str, Tensor]:
        (x, y), query = task.context.examples(), task.query
        logits = upcast(best_guess(algorithm.predict(state, torch.cat([x, query.x]))))
        return {"loss": torch.nn.functional.cross_entropy(logits, torch.cat([y, query.y]), reduction="none")}

    def summarise(self, problem: Any, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        return {}, []


def wrong_folders(folder: Folder, source: Path, runs: Path, development: bool) -> str:
    """Precision among the most suspicious files, and AUROC, of a learner that weighs its examples and of rivals that weigh none."""
    archive, member = folder.development if development else (folder.archive, folder.member)
    root = runs / "photos"
    wrong = planted(source / archive, member, root)
    base = f"experiment=mislabelled data.root=PHOTOS {folder.words} way={len(list(root.iterdir())) // 2}"
    text = f"| {folder.title}, the most suspicious by | wrong among the first {LOOKED_AT} | AUROC |\n| --- | --- | --- |\n"
    weighing, plain = (f"{base} {words}".rstrip() for words in (folder.learner, folder.plain))
    finished([*weighing.split(), f"data.root={root}", *ONE_THREAD], runs / "run")
    with (runs / "run" / "weights.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    for column, row in {"fits": "how they fit their class, as the run lists them", "weight": "their weight"}.items():
        text += judged(row, [one["file"] for one in listed], np.array([float(one[column]) for one in listed]), wrong)
    run = Run(resolve(compose([*plain.replace("PHOTOS", str(root)).split(), *ONE_THREAD])))
    data, arrays = audit.judge(run, Losses("last"), lambda done, n: None)
    shown = arrays["rows"].shape[1] // 2  # of which the first half are those that a net was trained on
    for part, row in {
        shown: "loss of a plain net that was trained on them",
        2 * shown: "loss of plain nets, trained on them or not",
    }.items():
        losses = audit.over_learners(arrays["loss"][:, :part], arrays["rows"][:, :part], len(data.images))
        text += judged(row, data.files or [], -losses, wrong)
    text += judged("distance to the mean of their class, pixels", data.files or [], -to_the_others(data), wrong)
    text += f"| chance | {len(wrong) / len(data.images):.2f} | 0.500 |\n"
    commands = f"metarun {weighing}\nmetarun {plain}\n"
    return f"{text}\n{len(data.images):,} files of {data.classes} classes, {len(wrong)} of them in a wrong one.\n\n```\n{commands}```\n"


def to_the_others(data: Split) -> np.ndarray:
    """How far every image [n] is from the mean of the others of its class."""
    images = data.images.flatten(1).double()
    labels = torch.from_numpy(np.repeat(np.arange(data.classes), data.counts))
    sums = torch.zeros(data.classes, images.shape[1], dtype=images.dtype).index_add(0, labels, images)
    others = (sums[labels] - images) / (torch.from_numpy(data.counts)[labels][:, None] - 1)
    return (images - others).norm(dim=1).numpy()


def judged(row: str, files: Sequence[str], weights: np.ndarray, wrong: set[str]) -> str:
    """A row: of files with weights [n], the lower the more suspicious."""
    marks = np.array([name in wrong for name in files])
    first = np.argsort(weights, kind="stable")[:LOOKED_AT]
    return f"| {row} | {marks[first].mean():.2f} | {auroc(weights, marks):.3f} |\n"


if __name__ == "__main__":
    main()
