"""The tables of docs/control.md: bandits, the grid, 2-D navigation, CartPole, each with what knows nothing below and what knows all above.

python scripts/reproduce_control.py [--runs outputs/control] [--only TABLE] [--write]

Every row is a run of metarun; finished ones are not repeated. --write: the tables go to docs/control.md.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from pages import PLAIN, finished, put

from metarun.config.compose import override
from metarun.config.stored import read_config
from metarun.experiment import evaluate

PAGE = Path(__file__).resolve().parents[1] / "docs" / "control.md"
BANDITS = "experiment=bandits_rl2"
RULES = ("random", "greedy", "thompson", "ucb1", "gittins")
GRID = "experiment=gridnav_rl2"
NAVIGATION = "experiment=navigation2d_maml trainer.test_episodes=100"
SHORT, CAREFUL = (
    "trainer.iterations=100 trainer.val_every=20",
    "trainer.iterations=80 trainer.val_every=10 optim.lr=0.002 trainer.meta_batch=40",
)
ESTIMATORS = {"naive": SHORT, "promp": SHORT, "dice": CAREFUL}  # and what each is trained with
POLE = "experiment=cartpole_maml"
PULLS = (1, 10, 30, 100)

Summary = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("outputs/control"), help="folder of the runs; finished ones are not repeated")
    parser.add_argument("--only", default="", metavar="TABLE", help="bandits, gridnav, navigation or cartpole")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/control.md")
    options = parser.parse_args()
    for name, table in {"bandits": bandits, "gridnav": grid, "navigation": navigation, "cartpole": cartpole}.items():
        if options.only not in name:
            continue
        text = table(options.runs)
        print(text, flush=True)
        if options.write:
            put(PAGE, name, text)


def bandits(runs: Path) -> str:
    """Returns of a hundred pulls, and the reward by pull."""
    rows = {f"{BANDITS} algo={rule} query=1": runs / f"bandits-{rule}" for rule in RULES} | {BANDITS: runs / "bandits-rl2"}
    text = head("command", "return", *(f"pull {n}" for n in PULLS), "seconds")
    for words, folder in rows.items():
        summary = finished([*words.split(), *PLAIN], folder)
        rewards = {point["step"]: f"{point['mean']:.2f}" for point in summary["test"]["curve"]}
        text += row(f"`metarun {words}`", mean(summary["test"]["return"]), *(rewards[n] for n in PULLS), f"{summary['wall_s']:.0f}")
    return text + bounds(summary, len(PULLS) + 1)


def grid(runs: Path) -> str:
    """Returns by episode, and by how much the second is better than the first in the same environments."""
    folder = runs / "gridnav-rl2"
    rows = {f"{GRID} algo=random": runs / "gridnav-random", GRID: folder}
    text = head("command", *(f"episode {n}" for n in (1, 2, 3, 4)), "share of the optimum in the last", "seconds")
    for words, path in rows.items():
        summary = finished([*words.split(), *PLAIN], path)
        low, high = (summary["bounds"][name]["mean"] for name in ("random", "oracle"))
        curve = summary["test"]["curve"]
        share = f"{100 * curve[-1]['mean'] / high:.0f} %"
        text += row(f"`metarun {words}`", *map(mean, curve), share, f"{summary['wall_s']:.0f}")
    text += bounds(summary, 5)
    first, second = (scores(folder, f"shot={shot}") for shot in (0, 1))
    apart = second - first
    wide = 1.96 * apart.std() / math.sqrt(len(apart))
    return text + (
        f"\nThe second episode of `rl2` is better than the first by {apart.mean():.2f} ± {wide:.2f}, environment by environment "
        f"(`metarun eval RUN shot=1`, `shot=0`); random moves get {low:.2f}.\n".replace("-", "−")
    )


def navigation(runs: Path) -> str:
    """Returns before and after one inner step, by estimator."""
    text = head("command", "0 steps", "1 step", "best iteration", "seconds")
    for estimator, budget in ESTIMATORS.items():
        words = f"{NAVIGATION} {budget} algo.estimator={estimator}"
        summary = finished([*words.split(), *PLAIN], runs / f"navigation-{estimator}")
        before, after = summary["test"]["curve"][:2]
        text += row(f"`metarun {words}`", mean(before), mean(after), f"{summary['best_step']}", f"{summary['wall_s']:.0f}")
    return text + bounds(summary, 3)


def cartpole(runs: Path) -> str:
    """Returns by inner steps, of random pushes, and of a policy with none and with some."""
    text = head("command", "0 steps", "1 step", "3 steps", "seconds")
    rows = {f"{POLE} algo=random shot=0": "random", POLE: "maml_rl"}
    for words, name in rows.items():
        summary = finished([*words.split(), *PLAIN], runs / f"cartpole-{name}")
        curve = {point["step"]: mean(point) for point in summary["test"]["curve"] or [summary["test"]["return"] | {"step": 0}]}
        text += row(f"`metarun {words}`", *(curve.get(step, "–") for step in (0, 1, 3)), f"{summary['wall_s']:.0f}")
    return text + bounds(summary, 3)


def scores(folder: Path, words: str) -> np.ndarray:
    """The scores by environment of ``metarun eval`` of a run, from its folder where that was done already."""
    kept = folder / "eval" / words
    if not (kept / "test_scores.npy").is_file():
        evaluate(override(read_config(folder), words.split()), folder, "best", kept)
    found: np.ndarray = np.load(kept / "test_scores.npy")
    return found


def head(*cells: str) -> str:
    return row(*cells) + f"|{' --- |' * len(cells)}\n"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n".replace("-0.", "−0.").replace("| -", "| −")


def mean(found: dict[str, float]) -> str:
    return f"{found['mean']:.2f} ± {found['ci95']:.2f}"


def bounds(summary: Summary, empty: int) -> str:
    """The last rows of a table: what the bounds of these test episodes are."""
    return "".join(row(f"bound: {name}", mean(found), *["–"] * empty) for name, found in summary["bounds"].items())


if __name__ == "__main__":
    main()
