"""The table of docs/search.md: searches in the table of NAS-Bench-201.

python scripts/reproduce_search.py --root FOLDER [--runs outputs/search] [--write]

Every row is a run of metarun for each data set; a finished one is not repeated. --write puts the table into the page.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from metarun.config.compose import compose, resolve
from metarun.experiment import train

PAGE = Path(__file__).resolve().parents[1] / "docs" / "search.md"
PLAIN = ["device=cpu", "logger=quiet"]
# Searches: what a row is called, and its words.
SEARCHERS = {
    "random search": "algo=random_search",
    "ageing evolution": "algo=evolution",
    "REINFORCE, logits, rate 0.1": "algo=reinforce",
    "REINFORCE, logits, rate 0.01": "algo=reinforce algo.rate=0.01",
    "REINFORCE, LSTM, rate 0.01": "algo=reinforce algo.controller=lstm algo.rate=0.01",
}
DATASETS = ("cifar10", "cifar100", "imagenet16_120")
EVALUATIONS = (100, 300)
TABLE = re.compile(r"(<!-- nas: .*? -->\n).*?(<!-- /nas -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="the table of NAS-Bench-201, or its folder")
    parser.add_argument("--runs", type=Path, default=Path("outputs/search"), help="folder of the runs")
    parser.add_argument("--write", action="store_true", help="put the table into docs/search.md")
    options = parser.parse_args()
    text = table(options.runs, options.root)
    print(text)
    if options.write:
        PAGE.write_text(TABLE.sub(lambda found: found[1] + text + found[2], PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def finished(words: str, folder: Path, *more: str) -> dict[str, Any]:
    """The summary of a run, from its folder if it is finished and was given the same words."""
    told = folder / "words.txt"
    if (folder / "summary.json").is_file():
        if told.read_text(encoding="utf-8") != words:
            sys.exit(f"{folder} holds the run of other words than '{words}': move it away, or choose other --runs")
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return summary
    print("metarun", words, flush=True)
    summary = train(resolve(compose([*words.split(), *more, *PLAIN])), folder)
    told.write_text(words, encoding="utf-8")
    return summary


def table(runs: Path, root: str | None) -> str:
    """Percent of test accuracy, mean ± standard deviation over searches, in Markdown, with the commands."""
    head = [f"{data}, {n}" for n in EVALUATIONS for data in DATASETS]
    text = f"| candidates tried | {' | '.join(head)} |\n| --- |{' --- |' * len(head)}\n"
    bounds: dict[str, list[str]] = {"trivial": [], "oracle": []}
    commands = ""
    for name, words in SEARCHERS.items():
        cells = {}
        for data in DATASETS:
            line = f"experiment=nas201 {words} data.dataset={data} trainer.curve=all"
            folder = runs / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{data}"
            summary = finished(line, folder, *([f"data.root={root}"] if root else []))
            curve = {point["step"]: point for point in summary["test"]["curve"]}
            for n in EVALUATIONS:
                cells[f"{data}, {n}"] = spread(curve[n], summary["test"]["accuracy"]["n"])
            if name == "random search":
                for bound in bounds:
                    bounds[bound].append(f"{100 * summary['bounds'][bound]['mean']:.2f}")
        commands += f"metarun experiment=nas201 {words} data.dataset=DATASET trainer.curve=all\n"
        text += f"| {name} | {' | '.join(cells[column] for column in head)} |\n"
    text += f"| one candidate at random | {' | '.join(bounds['trivial'] * 2)} |\n"
    text += f"| the best candidate there is | {' | '.join(bounds['oracle'] * 2)} |\n"
    return f"{text}\n```\n{commands}```\n"


def spread(point: dict[str, float], n: int) -> str:
    """Mean ± standard deviation in percent, from a mean and 1.96 standard errors over n."""
    return f"{100 * point['mean']:.2f} ± {100 * point['ci95'] * math.sqrt(n) / 1.96:.2f}"


if __name__ == "__main__":
    main()
