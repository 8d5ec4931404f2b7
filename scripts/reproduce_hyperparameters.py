"""What learned rates, momentum and decays gain against fixed ones that were tuned: the table of docs/search.md.

python scripts/reproduce_hyperparameters.py --root FOLDER [--runs outputs/hyperparameters] [--write]

Every row is a run of metarun, judged on development tasks; finished runs are not repeated. --write puts the table into the page.
"""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path
from typing import Any

from pages import PLAIN, finished, put

PAGE = Path(__file__).resolve().parents[1] / "docs" / "search.md"
# Ordinary training of a small net on 25 images, 50 steps of SGD with momentum; tasks are judged by 75 further images.
SAME = "algo=hyperparameters data=omniglot data.split=small data.size=14 net=mlp net.sizes=[32] net.norm=none way=5 shot=5"
SAME += " trainer.val_episodes=200 trainer.test_episodes=1"
FIXED = f"{SAME} trainer.iterations=0"
RATES, MOMENTA, DECAYS = (0.01, 0.03, 0.1, 0.3), (0.9,), (0.0001, 0.03)
LEARNING = "optim.lr=0.1 trainer.iterations=50 trainer.meta_batch=4 trainer.val_every=50"
LEARNED = {
    "learned from these on, unrolled": LEARNING,
    "decays alone, by conjugate gradient": f"algo.gradient=cg {LEARNING}",
    "decays alone, by a Neumann series": f"algo.gradient=neumann {LEARNING}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of Omniglot's archives")
    parser.add_argument("--runs", type=Path, default=Path("outputs/hyperparameters"), help="folder of the runs")
    parser.add_argument("--write", action="store_true", help="put the table into docs/search.md")
    options = parser.parse_args()
    text = table(options.runs, [*([f"data.root={options.root}"] if options.root else []), *PLAIN])
    print(text)
    if options.write:
        put(PAGE, "hyperparameters", text)


def table(runs: Path, more: list[str]) -> str:
    """Losses and accuracies on development tasks, in Markdown, with the commands; ``more``: further words of all."""
    grid = [f"algo.rate={r} algo.momentum={m} algo.decay={d}" for r, m, d in itertools.product(RATES, MOMENTA, DECAYS)]
    fixed = {words: finished([*f"{FIXED} {words}".split(), *more], runs / re.sub(r"[^\w.]+", "-", f"fixed-{words}")) for words in grid}
    best = min(fixed, key=lambda words: loss(fixed[words]))
    rows = {f"fixed, the best of {len(grid)}: `{best}`": fixed[best]}
    words = {name: f"{SAME} {best} {more}" for name, more in LEARNED.items()}
    rows |= {name: finished([*line.split(), *more], runs / re.sub(r"[^a-z]+", "-", name)) for name, line in words.items()}
    text = "| rates, momentum, decays | loss | accuracy |\n| --- | --- | --- |\n"
    for name, summary in rows.items():
        stats = summary["val"]["loss"], {key: 100 * value for key, value in summary["val"]["accuracy"].items()}
        text += f"| {name} | {stats[0]['mean']:.3f} ± {stats[0]['ci95']:.3f} | {stats[1]['mean']:.1f} ± {stats[1]['ci95']:.1f} |\n"
    axes = {"rate": RATES, "momentum": MOMENTA, "decay": DECAYS}
    swept = " ".join(f"algo.{key}={','.join(map(str, axis))}" for key, axis in axes.items())
    lines = [f"-m {FIXED} {swept}", *words.values()]
    return f"{text}\n```\n" + "".join(f"metarun {line}\n" for line in lines) + "```\n"


def loss(summary: dict[str, Any]) -> float:
    """On development tasks."""
    return float(summary["val"]["loss"]["mean"])


if __name__ == "__main__":
    main()
