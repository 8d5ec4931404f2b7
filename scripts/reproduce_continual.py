"""Trains and tests what docs/continual.md tells of many tasks in a row on Omniglot, prints its tables and draws its picture.

python scripts/reproduce_continual.py --omniglot FOLDER [--runs outputs/continual] [--only NAMES] [--long] [--write]

Finished runs are not repeated. --write puts the tables and the picture into docs. Step sizes at the test are those of CHOICES that are
best on development streams.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from pages import PLAIN, finished, put

from metarun.config.compose import override
from metarun.config.stored import read_config
from metarun.drawing import figures
from metarun.experiment import evaluate
from metarun.protocols.continual import AT_ONCE

DOCS = Path(__file__).resolve().parents[1] / "docs"
BASE = "experiment=omniglot_small_continual"
RUNS = {
    "protonet": BASE,
    "oml": f"{BASE} algo=oml",
    "anil": f"{BASE} algo=anil",
    "maml": f"{BASE} algo=maml net.norm=group",  # statistics of all tasks are not those of a net that a task has changed
    "pretrain": f"{BASE} algo=pretrain episode.train.way=64 episode.train.shot=1 episode.train.query=1",
}
CHOICES = (0.001, 0.003, 0.01, 0.03)  # of algo.inner_lr at the test
LONG = "way=100 trainer.test_episodes=10"  # for learners of any number of classes
ANY = ("protonet", "oml", "pretrain")
COLOURS = {"protonet": "#3a7d5d", "oml": "#2f6690", "anil": "#8a5a9e", "maml": "#c8553d", "pretrain": "#b08b3e"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", required=True, help="the folder of its archives")
    parser.add_argument("--runs", type=Path, default=Path("outputs/continual"), help="folder of the runs")
    parser.add_argument("--only", default=",".join(RUNS), metavar="NAMES", help="of the rows, with commas between; others are left out")
    parser.add_argument("--long", action="store_true", help="streams of a hundred classes, too")
    parser.add_argument("--write", action="store_true", help="put tables and picture into docs")
    options = parser.parse_args()
    found, long = {}, {}
    for name in options.only.split(","):
        words, folder = RUNS[name], options.runs / name
        seconds = finished([*words.split(), f"data.root={options.omniglot}", *PLAIN], folder)["wall_s"]
        chosen = best(folder, name)
        # At once with the steps that the learner was trained for, one after the other with those that are best there.
        found[name] = both(folder, "protocol=continual", chosen) | {"words": words, "chosen": chosen, "seconds": seconds}
        if options.long and name in ANY:
            long[name] = both(folder, f"protocol=continual {LONG}", chosen)
    text = table(found) + ("\n" + longer(long) if long else "")
    print(text)
    if options.write:
        put(DOCS / "continual.md", "continual", text)
        figures.save(picture(found), DOCS / "pictures" / "continual.png")


def best(folder: Path, name: str) -> str:
    """The words that set the step size at the test: the best on development streams, for a learner that has one."""
    if name == "protonet":
        return ""
    words = [f"algo.inner_lr={rate}" for rate in CHOICES]
    return max(words, key=lambda word: measured(folder, f"protocol=continual {word}", "val")["stream_accuracy"]["mean"])


def both(folder: Path, asked: str, chosen: str) -> dict[str, Any]:
    """The test's scores ``at_once``, under the run's own settings, and in a ``stream``, under the chosen ones."""
    return {"at_once": measured(folder, asked), "stream": measured(folder, f"{asked} {chosen}".strip())}


def measured(folder: Path, words: str, split: Literal["test", "val"] = "test") -> dict[str, Any]:
    """What an evaluation under these words finds, with all its arrays' means, kept in the run's folder."""
    kept = folder / "asked" / f"{split} {words}".replace(" ", "_")
    if not (kept / "summary.json").is_file():
        kept.mkdir(parents=True, exist_ok=True)
        print(folder.name, split, words, flush=True)
        evaluate(override(read_config(folder), words.split()), folder, "best", kept, split)
    found: dict[str, Any] = json.loads((kept / "summary.json").read_text(encoding="utf-8"))[split]
    return found


def share(value: dict[str, float]) -> str:
    return f"{100 * value['mean']:.1f} ± {100 * value['ci95']:.1f}"


def cells(one: dict[str, Any]) -> str:
    """Accuracy at once, after the stream, and what was forgotten."""
    stream = one["stream"]
    return " | ".join(map(share, (one["at_once"]["stream_at_once"], stream["stream_accuracy"], stream["forgetting"])))


def table(found: dict[str, Any]) -> str:
    text = (
        "| | all at once | one after the other | forgetting | step size in the stream | training |\n| --- | --- | --- | --- | --- | --- |\n"
    )
    for name, one in found.items():
        rate = f"`{one['chosen']}`" if one["chosen"] else "–"
        text += f"| `{name}` | {cells(one)} | {rate} | {one['seconds']:.0f} s |\n"
    stream = next(iter(found.values()))["stream"]
    n, episodes = len(stream["curve"]), stream["stream_accuracy"]["n"]
    commands = "\n".join(
        f"metarun {one['words']}\n    metarun eval RUN protocol=continual {one['chosen']}".rstrip() for one in found.values()
    )
    return (
        f"Accuracy in %, {n} characters never seen, five drawings of each, {episodes} test streams, ± 1.96 standard errors over streams, "
        f"seed 0; chance is {100 / n:.0f} %.\n\n{text}\n```\n{commands}\n```\n"
    )


def longer(found: dict[str, Any]) -> str:
    text = "| | all at once | one after the other | forgetting |\n| --- | --- | --- | --- |\n"
    for name, one in found.items():
        text += f"| `{name}` | {cells(one)} |\n"
    return f"A hundred characters in a row, for learners of any number of classes (`{LONG}`, chance 1 %):\n\n{text}"


def picture(found: dict[str, Any]) -> Figure:
    """Left the same learners as meta-learning has them, right as life-long learning does."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    once, stream = figure.subplots(1, 2, sharey=True)
    for name, one in found.items():
        curve = one["stream"]["curve"]
        met = [point["step"] for point in curve]
        mean, wide = (np.array([point[key] for point in curve]) for key in ("mean", "ci95"))
        stream.plot(met, mean, color=COLOURS[name], label=name)
        stream.fill_between(met, mean - wide, mean + wide, color=COLOURS[name], alpha=0.2, linewidth=0)
        at = [(int(key.removeprefix(AT_ONCE)), value["mean"]) for key, value in one["at_once"].items() if key.startswith(AT_ONCE)]
        once.plot(*zip(*at), "o-", color=COLOURS[name], markersize=4, label=name)
    titles = "meta-learning: all of these classes at once", "life-long: one learner, class after class"
    for axes, title in zip((once, stream), titles):
        axes.plot(met, 1 / np.array(met, float), color="#b9c6d0", label="chance")
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="classes met", ylim=(-0.02, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
    once.set_ylabel("accuracy on all classes so far")
    once.legend(frameon=False, fontsize=9, loc="lower left")
    return figure


if __name__ == "__main__":
    main()
