"""The table of docs/search.md: searches in the table of NAS-Bench-201.

python scripts/reproduce_search.py --root FOLDER [--runs outputs/search] [--write]

Every row is a run of metarun for each data set, but that of TPE, which is Optuna's (the extra ``optuna``); what is finished is not
repeated. --write puts the table into the page.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

import numpy as np
import torch
from pages import PLAIN, finished, put

from metarun.data.nas201 import NAS201

PAGE = Path(__file__).resolve().parents[1] / "docs" / "search.md"
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
TPE, STUDIES = "TPE, by Optuna", 20  # what its row is called, and how many searches it has, as one takes a second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="the table of NAS-Bench-201, or its folder")
    parser.add_argument("--runs", type=Path, default=Path("outputs/search"), help="folder of the runs")
    parser.add_argument("--write", action="store_true", help="put the table into docs/search.md")
    options = parser.parse_args()
    text = table(options.runs, options.root)
    print(text)
    if options.write:
        put(PAGE, "nas", text)


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
            summary = finished([*line.split(), *([f"data.root={root}"] if root else []), *PLAIN], folder)
            curve = {point["step"]: point for point in summary["test"]["curve"]}
            for n in EVALUATIONS:
                cells[f"{data}, {n}"] = spread(curve[n], summary["test"]["accuracy"]["n"])
            if name == "random search":
                for bound in bounds:
                    bounds[bound].append(f"{100 * summary['bounds'][bound]['mean']:.2f}")
        commands += f"metarun experiment=nas201 {words} data.dataset=DATASET trainer.curve=all\n"
        text += f"| {name} | {' | '.join(cells[column] for column in head)} |\n"
    studies = {data: tpe(runs / f"tpe-{data}.npy", root, data) for data in DATASETS}
    ends = {f"{data}, {n}": studies[data][:, n - 1] for data in DATASETS for n in EVALUATIONS}
    text += f"| {TPE}, {STUDIES} searches | {' | '.join(f'{ends[name].mean():.2f} ± {ends[name].std(ddof=1):.2f}' for name in head)} |\n"
    text += f"| one candidate at random | {' | '.join(bounds['trivial'] * 2)} |\n"
    text += f"| the best candidate there is | {' | '.join(bounds['oracle'] * 2)} |\n"
    return f"{text}\n```\n{commands}```\n"


def tpe(kept: Path, root: str | None, data: str) -> np.ndarray:
    """Test accuracy in percent of the best by validation so far, [searches, candidates tried], by tree-structured Parzen estimators.

    Bergstra, Bardenet, Bengio, Kégl 2011, as Optuna has them with its own settings. ``kept``: the file that the result is kept in.
    """
    if kept.is_file():
        return np.load(kept)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table, found = NAS201(0, root=root, dataset=data), np.zeros((STUDIES, max(EVALUATIONS)))
    space = table.kind.space
    for seed in range(STUDIES):
        study, best = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed)), (-1.0, 0.0)
        for k in range(max(EVALUATIONS)):
            trial = study.ask()
            word = [trial.suggest_categorical(f"edge {i}", list(range(options))) for i, options in enumerate(space.options)]
            place = int(space.index(torch.tensor(word)))
            study.tell(trial, float(table.validation[place]))
            best = max(best, (float(table.validation[place]), float(table.test[place])), key=lambda pair: pair[0])
            found[seed, k] = 100 * best[1]
    np.save(kept, found)
    return found


def spread(point: dict[str, float], n: int) -> str:
    """Mean ± standard deviation in percent, from a mean and 1.96 standard errors over n."""
    return f"{100 * point['mean']:.2f} ± {100 * point['ci95'] * math.sqrt(n) / 1.96:.2f}"


if __name__ == "__main__":
    main()
