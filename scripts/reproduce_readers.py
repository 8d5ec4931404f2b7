"""Runs every command behind the tables of sequence readers in docs/black-box.md; finished runs are not repeated.

python scripts/reproduce_readers.py --omniglot ../shared/omniglot [--runs outputs/readers] [--table readers [--only snail …]] [--write]

--table: that one alone. --only: runs whose lines are made anew, in both tables of accuracies; the others stay as the page has them.
--write: tables and picture go to the page.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from pages import evaluated, finished, put, table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "black-box.md"
PICTURE = PAGE.parent / "pictures" / "presentations.png"
ONE_CORE = ["device=cpu", "engine.threads=1", "logger.every=20"]
MANN = "experiment=omniglot_small_mann"
PRESETS = {name: f"experiment=omniglot_small_{name} init_from=PROTONET" for name in ("snail", "incontext", "metanet", "cnp")}
SHOTS = "shot=5 episode.train.query=3 trainer.curve=last"
READERS = {"protonet": "experiment=omniglot_small_protonet", **PRESETS, "snail_5shot": f"{PRESETS['snail']} {SHOTS}"}
VINYALS = "_vinyals"  # ends the names of runs on that split
RUNS = {"mann": MANN, "lstm": f"{MANN} algo=lstm algo.hidden=200 trainer.curve=last", **READERS}
RUNS |= {f"{name}{VINYALS}": f"{words} data.split=vinyals" for name, words in READERS.items()}
RUNS[f"metanet{VINYALS}"] += " trainer.iterations=2000"  # with as many classes it learns for longer
# What each is asked, first what its own test asks.
ASKED = {
    "protonet": ("5w1s", "5w5s"),
    "snail": ("5w1s", "5w5s"),
    "snail_5shot": ("5w5s",),
    "incontext": ("5w1s", "5w5s"),
    "metanet": ("5w1s", "5w5s"),
    "cnp": ("5w1s", "5w5s"),
}
TIMES = (1, 2, 3, 4, 5, 10)
# In %, at the 1st, 2nd, 3rd, 4th, 5th and 10th presentation: other training characters, and many times the budget.
ELSEWHERE = {
    "mann, the paper": (36.4, 82.8, 91.0, 92.6, 94.9, 98.1),
    "lstm, the paper": (24.4, 49.5, 55.3, 61.0, 63.6, 62.5),
    "mann, a reproduction": (35.4, 89.2, 95.2, 96.3, 96.9, 97.8),
    "lstm, a reproduction": (30.4, 77.9, 85.3, 87.5, 88.8, 91.6),
}
WAY = 5
# Whoever forgets nothing: at first it guesses among the labels that no class seen so far has.
PERFECT = 100 * sum(1 / (WAY - known) for known in range(WAY)) / WAY
TASKS = {task: f"{words} query=15 trainer.curve=last" for task, words in {"5w1s": "shot=1", "5w5s": "shot=5"}.items()}
BAR = {2: 0.60, 5: 0.80}  # of MANN
BEHIND, HELD = 0.03, ("snail", "incontext", "metanet")  # how far below ProtoNet these may be, each by the best of its runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", required=True, help="folder with the Omniglot archives")
    parser.add_argument("--runs", type=Path, default=Path("outputs/readers"), help="folder of the runs; finished ones are not repeated")
    parser.add_argument("--table", choices=TABLES, help="of all that there are, this one alone")
    parser.add_argument("--only", nargs="+", choices=ASKED, default=[*ASKED], help="of readers, the lines that are made anew")
    parser.add_argument("--write", action="store_true", help="put tables and picture into docs/black-box.md")
    options = parser.parse_args()
    results = Results(options.runs, options.omniglot, options.only)
    amiss = []
    for name, (made, lacking) in TABLES.items():
        if options.table in (None, name):
            text = made(results)
            print(text, flush=True)
            if options.write:
                put(PAGE, name, f"{text}\n")
            if options.write and made is presentations:
                picture(results)
            amiss += lacking(results)
    if amiss:
        sys.exit("\n".join(amiss))


class Results:
    """Summaries by run; what is not there yet is run first."""

    def __init__(self, runs: Path, omniglot: str, readers: list[str]) -> None:
        self.runs, self.omniglot, self.readers = runs, omniglot, readers

    def training(self, name: str) -> dict[str, Any]:
        """The summary of a run."""
        encoder = f"protonet{VINYALS * name.endswith(VINYALS)}"
        if "PROTONET" in RUNS[name]:
            self.training(encoder)
        words = RUNS[name].replace("PROTONET", str(self.runs / encoder)).split()
        return finished([*words, f"data.root={self.omniglot}", *ONE_CORE], self.runs / name)

    def evaluation(self, name: str, words: str) -> dict[str, Any]:
        """What ``metarun eval`` of a run finds on the test split."""
        self.training(name)
        return evaluated(self.runs / name, words)["test"]

    def score(self, name: str, task: str) -> dict[str, float]:
        """A run's accuracy in a task."""
        own = ASKED[name.removesuffix(VINYALS)][0]
        accuracy: dict[str, float] = self.evaluation(name, "" if task == own else TASKS[task])["accuracy"]
        return accuracy

    def at(self, name: str, time: int) -> dict[str, float]:
        """A run's accuracy at a presentation."""
        return self.evaluation(name, "protocol=presentations")[f"presentation_{time}"]


def percent(score: dict[str, float]) -> str:
    """Mean and interval in %."""
    return f"{100 * score['mean']:.2f} ± {100 * score['ci95']:.2f}"


def presentations(results: Results) -> str:
    """Accuracy at presentations, with its bounds, beside what others have."""
    rows = [["chance", *["20.00"] * len(TIMES), "–"]]
    for name in ("mann", "lstm"):
        rows.append([name, *(percent(results.at(name, time)) for time in TIMES), f"{results.training(name)['iterations']}"])
    rows.append(["a perfect memory", f"{PERFECT:.2f}", *["100.00"] * (len(TIMES) - 1), "–"])
    rows += [[name, *(f"{value}" for value in values), "–"] for name, values in ELSEWHERE.items()]
    return "\n".join(table(["accuracy % at presentation", *map(str, TIMES), "iterations"], rows))


def forgetful(results: Results) -> list[str]:
    """What MANN's accuracies lack."""
    known = {time: results.at("mann", time)["mean"] for time in BAR}
    if all(known[time] >= bar for time, bar in BAR.items()) and known[2] > results.at("lstm", 2)["mean"]:
        return []
    return [f"mann is right in {known} at these presentations; {BAR} is the least, and the 2nd above that of lstm"]


def accuracies(results: Results, split: str = "") -> str:
    """Accuracy in episodes; ``split``: what ends the names of its runs."""
    lines = table(["method", *TASKS, "iterations", "trained by"], [])
    for name, asked in ASKED.items():
        run = f"{name}{split}"
        if name in results.readers:
            cells = [percent(results.score(run, task)) if task in asked else "–" for task in TASKS]
            row = [run, *cells, f"{results.training(run)['iterations']}", f"`metarun {RUNS[run]} data.root=PATH`"]
            lines += table([], [row])[2:]
        else:
            lines += [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {run} | ")]
    return "\n".join(lines)


def behind(results: Results, split: str = "") -> list[str]:
    """Who of those that were made anew is farther below ProtoNet than may be."""
    found: list[str] = []
    if "protonet" not in results.readers:
        return found
    for task in ("5w1s", "5w5s"):
        means = {name: results.score(f"{name}{split}", task)["mean"] for name in results.readers if task in ASKED[name]}
        for held in HELD:
            score = max((mean for name, mean in means.items() if name.startswith(held)), default=1.0)
            if score < means["protonet"] - BEHIND:
                found.append(f"{task}: {held} has {score:.4f}, protonet {means['protonet']:.4f}")
    return found


def picture(results: Results) -> None:
    """The curves of the first table, of all presentations."""
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for name, colour in {"mann": "#2f6690", "lstm": "#c8553d"}.items():
        scores = [results.at(name, time) for time in range(1, 11)]
        means = [100 * score["mean"] for score in scores]
        axes.errorbar(range(1, 11), means, [100 * score["ci95"] for score in scores], fmt="o-", color=colour, markersize=4, label=name)
        axes.plot(TIMES, ELSEWHERE[f"{name}, the paper"], "x:", color=colour, markersize=5, label=f"{name}, the paper")
    axes.axhline(100 / WAY, color="#b9c6d0", linewidth=1, label="chance")
    axes.set_xlabel("presentation of a class")
    axes.set_ylabel("accuracy %")
    axes.set_ylim(0, 102)
    axes.set_xticks(range(1, 11))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(PICTURE, dpi=110)


TABLES = {
    "presentations": (presentations, forgetful),
    "readers": (accuracies, behind),
    "vinyals": (partial(accuracies, split=VINYALS), partial(behind, split=VINYALS)),
}

if __name__ == "__main__":
    main()
