"""The tables of docs/bayesian.md: how often right and how sure, of every method on the same episodes.

python scripts/reproduce_bayes.py --omniglot ../shared/omniglot [--runs FOLDER] [--only TABLE [--rows NAME …]] [--seeds 0 1 2] [--write]

Every line is a run of metarun, of one thread; finished ones are not repeated. --write: the tables go to docs/bayesian.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import ONE_THREAD, finished, put

from metarun.protocols.base import statistics

PAGE = Path(__file__).resolve().parents[1] / "docs" / "bayesian.md"
FEW = "trainer.val_episodes=100 trainer.test_episodes=300"
MAML = f"experiment=omniglot_small_maml trainer.meta_batch=4 trainer.iterations=400 trainer.val_every=400 {FEW}"
PROTONET = f"experiment=omniglot_small_protonet {FEW}"
PACOH, WAVES = "experiment=pacoh_sinusoid", "experiment=bmaml_sinusoid"
MIXTURE = "experiment=sine_line"
LONGER = "trainer.iterations=3000 trainer.val_every=500"
OF_MAML = f"{MIXTURE} ~algo.test_samples ~algo.deviation ~algo.centre_lr ~algo.divergence ~algo.learn_lr ~algo.clip"
FROM = "init_from="  # the run of a row of the same table, in capitals
ASKING = "protocol=[default,active]"
ALPACA = f"experiment=sinusoid_alpaca data.noise=0.1 episode.eval.shot=15 {ASKING}"
PLAIN_ADAM = f"{PACOH} optim.method=adam optim.weight_decay=0"
RUNS = {
    "omniglot": {
        "protonet": PROTONET,
        "versa": f"{PROTONET} algo=versa",
        "maml": MAML,
        "r2d2": f"{MAML} algo=r2d2",
        "emaml": f"{MAML} algo=emaml algo.members=3",
        "bmaml": f"{MAML} algo=bmaml algo.particles=3",
        "platipus": f"{MAML} algo=platipus",
    },
    "pacoh": {
        "pacoh": PACOH,
        "dkt": f"{PLAIN_ADAM} algo=dkt",
        "alpaca": f"{PLAIN_ADAM} algo=alpaca",
        "maml": f"{PLAIN_ADAM} algo=maml algo.inner_lr=0.01 algo.test_steps=5",
        "bmaml": f"{PLAIN_ADAM} algo=bmaml algo.inner_lr=0.05 algo.test_steps=5",
        "platipus": f"{PLAIN_ADAM} algo=platipus algo.inner_lr=0.01 algo.centre_lr=0.01 algo.test_steps=5",
    },
    "waves": {
        "maml": f"{WAVES} algo=maml algo.inner_lr=0.01",
        "emaml": f"{WAVES} algo=emaml ~algo.inner_lr ~algo.inner_steps ~algo.test_steps "
        "algo.member.inner_lr=0.01 algo.member.inner_steps=1 algo.member.test_steps=5",
        "bmaml": WAVES,
    },
    "mixture": {
        "maml": f"{OF_MAML} algo=maml algo.inner_lr=0.001 {LONGER}",
        "emaml": f"{OF_MAML} algo=emaml ~algo.inner_lr ~algo.inner_steps ~algo.test_steps "
        f"algo.member.inner_lr=0.001 algo.member.inner_steps=5 algo.member.test_steps=5 {LONGER}",
        "platipus": f"{MIXTURE} {FROM}MAML",
        "pmaml": f"{MIXTURE} algo=pmaml {FROM}MAML",
    },
    "active": {
        "alpaca, sine waves": ALPACA,
        "dkt, sine waves": f"{ALPACA} algo=dkt",
        "protonet, Omniglot": f"{PROTONET} episode.eval.shot=5 {ASKING}",
        "versa, Omniglot": f"{PROTONET} episode.eval.shot=5 {ASKING} algo=versa",
    },
}
RUNS["vinyals"] = {name: f"{words} data.split=vinyals" for name, words in RUNS["omniglot"].items()}
SEEDS = {"waves": [0, 1, 2]}  # of the tables that have more than one
OF_OMNIGLOT = "experiment=omniglot"
COLUMNS = {
    "omniglot": {
        "accuracy": "accuracy",
        "NLL": "nll",
        "Brier": "brier",
        "ECE": "ece",
        "ECE, calibrated": "ece_calibrated",
        "temperature": "temperature",
        "accuracy of the surest 80 %": "accuracy_at_80",
        "risk–coverage area": "aurc",
    },
    "pacoh": {
        "NLL of all targets together": "joint_nll",
        "NLL": "nll",
        "RMSE": "rmse",
        "calibration error": "calibration_error",
        "inside the 50 % interval": "coverage_50",
        "inside the 90 % interval": "coverage_90",
    },
    "waves": {"MSE": "mse", "NLL": "nll", "calibration error": "calibration_error", "inside the 90 % interval": "coverage_90"},
    "mixture": {
        "MSE of the best sample": "best_sample_mse",
        "of one": "sample_mse",
        "of their mean": "mean_of_samples_mse",
        "of one against the best": "readings",
        "inside the 90 % interval": "coverage_90",
    },
    "active": {"labels chosen": "active", "labels at random": "random", "gain, in mean over labels": "active_gain"},
}
COLUMNS["vinyals"] = COLUMNS["omniglot"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", required=True, help="folder of the Omniglot archives")
    parser.add_argument("--runs", type=Path, default=Path("outputs/bayes"), help="folder of the runs")
    parser.add_argument("--only", choices=RUNS, help="one of the tables")
    parser.add_argument("--rows", nargs="+", help="some of its rows; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", help="of every run; default: those of the page")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/bayesian.md")
    options = parser.parse_args()
    names = {run for name in ([options.only] if options.only else RUNS) for run in RUNS[name]}
    if unknown := sorted(set(options.rows or ()) - names):
        parser.error(f"--rows: no row is called {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    torch.set_num_threads(1)
    for name in [options.only] if options.only else RUNS:
        found: dict[str, list[dict[str, Any]]] = {}
        for run, words in RUNS[name].items():
            if options.rows and run not in options.rows:
                continue
            extra = [f"data.root={options.omniglot}"] if words.startswith(OF_OMNIGLOT) else []
            found[run] = [
                found_by([*begun(words, options.runs / name, seed), *extra, f"seed={seed}"], options.runs / name / f"{run}-{seed}")
                for seed in options.seeds or SEEDS.get(name, [0])
            ]
            print(name, run, {key: scores(found[run], key) for key in COLUMNS[name].values()}, flush=True)
        text = table(name, found)
        print(text)
        if options.write:
            put(PAGE, name, text)


def begun(words: str, runs: Path, seed: int) -> list[str]:
    """The words of a row, with the folder of the run that it begins with."""
    return [f"{FROM}{runs / word.removeprefix(FROM).lower()}-{seed}" if word.startswith(FROM) else word for word in words.split()]


def found_by(words: list[str], folder: Path) -> dict[str, Any]:
    """The summary of a run; of a regression with the mean over episodes of root mean squares beside."""
    summary = finished([*words, *ONE_THREAD], folder)
    if summary["metric"] == "mse":
        summary["test"]["rmse"] = statistics(np.sqrt(np.load(folder / "test_scores.npy")))
    return summary


def scores(summaries: list[dict[str, Any]], name: str) -> str:
    """A score of the test as ``mean ± ci95``; of several seeds with the standard deviation over them in place of that, and each of them."""
    found = [score(summary, name) for summary in summaries]
    means = [each["mean"] for each in found if each]
    if not means:
        return "–"
    if None in means:
        return "diverges"  # in an episode or more of a seed, so that there is no mean
    if name == "temperature":
        return ", ".join(f"{mean:.2f}" for mean in means)
    if len(means) == 1:
        return f"{means[0]:.4f} ± {found[0]['ci95']:.4f}"
    return f"{np.mean(means):.3f} ± {np.std(means, ddof=1):.3f} ({', '.join(f'{mean:.3f}' for mean in means)})"


def score(summary: dict[str, Any], name: str) -> dict[str, float]:
    """Of the test; the temperature is that of development tasks."""
    if name in ("active", "random"):
        name = f"{name}_{summary['metric']}"
    found: dict[str, float] = summary["val" if name == "temperature" else "test"].get(name, {})
    return found


def table(name: str, found: dict[str, list[dict[str, Any]]]) -> str:
    """One row a method, in Markdown, and the commands."""
    columns = COLUMNS[name]
    text = f"| | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}\n"
    for run, summaries in found.items():
        text += f"| {run} | {' | '.join(scores(summaries, key) for key in columns.values())} |\n"
    commands = (f"metarun {words}{' data.root=PATH' * words.startswith(OF_OMNIGLOT)}\n" for words in map(RUNS[name].__getitem__, found))
    return text + "\n```\n" + "".join(commands) + "```\n"


if __name__ == "__main__":
    main()
