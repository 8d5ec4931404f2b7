"""The LSTM optimizer on quadratic functions against SGD, Nesterov, RMSprop and Adam, whose rates are tuned on development functions.

python scripts/bench_quadratics.py [--runs outputs/quadratics] [--write]

Every line is a run of metarun: `experiment=quadratics_lstm`, and `experiment=quadratics algo.rule=RULE algo.rate=RATE` for every rate;
of these the one with the least loss on 1000 development functions is tested. --write: table and picture go to docs/optimizers.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from pages import PLAIN, finished, put

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGE = Path(__file__).resolve().parents[1] / "docs" / "optimizers.md"
PICTURE = PAGE.parent / "pictures" / "quadratics.png"
STEPS = (0, 20, 50, 100)
BAR = 0.15  # of the LSTM optimizer's loss after 100 steps
# Six rates a decade, by their logarithms in sixths.
RATES = {"sgd": range(-15, -7), "nesterov": range(-17, -8), "rmsprop": range(-13, -2), "adam": range(-9, 1)}
NAMES = {"sgd": "SGD", "nesterov": "Nesterov", "rmsprop": "RMSprop", "adam": "Adam"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("outputs/quadratics"), help="folder of the runs; finished ones are not repeated")
    parser.add_argument("--write", action="store_true", help="put table and picture into docs/optimizers.md")
    options = parser.parse_args()
    rows = [(NAMES[rule], *tuned(rule, options.runs)) for rule in RATES]
    words = "experiment=quadratics_lstm"
    rows.append(("LSTM optimizer", f"metarun {words}", options.runs / "lstm", finished([*words.split(), *PLAIN], options.runs / "lstm")))
    text = table(rows)
    print(text)
    if options.write:
        put(PAGE, "quadratics", text)
        picture(rows)
    loss = rows[-1][-1]["test"]["sse"]["mean"]
    if loss >= BAR:
        sys.exit(f"the LSTM optimizer ends at {loss:.3f}, which must be below {BAR}")


def tuned(rule: str, runs: Path) -> tuple[str, Path, dict[str, Any]]:
    """The command, folder and summary of the run whose rate is best on development functions."""
    found = {}
    for sixths in RATES[rule]:
        rate = float(f"{10 ** (sixths / 6):.2g}")
        words = f"experiment=quadratics algo.rule={rule} algo.rate={rate} trainer.val_episodes=1000"
        summary = finished([*words.split(), *PLAIN], runs / f"{rule}-{rate}")
        loss = summary["val"]["sse"]["mean"]
        found[rate] = (math.inf if loss is None or math.isnan(loss) else loss, f"metarun {words}", runs / f"{rule}-{rate}", summary)
    best = min(found, key=lambda rate: found[rate][0])
    print(rule, {rate: round(loss, 4) for rate, (loss, *_) in found.items()}, "->", best, flush=True)
    if best in (min(found), max(found)):
        sys.exit(f"the best rate of {rule} lies at an end of those that were tried")
    return found[best][1:]


def table(rows: list[tuple[str, str, Path, dict[str, Any]]]) -> str:
    """Losses by step, and how the last row differs from each on the same functions, in Markdown, with the commands."""
    text = f"| | {' | '.join(f'step {k}' for k in STEPS)} | the last row's difference, function by function |\n| --- |{' --- |' * 5}\n"
    ours = np.load(rows[-1][2] / "test_scores.npy")
    for name, _, folder, summary in rows:
        curve = {point["step"]: f"{point['mean']:.3f} ± {point['ci95']:.3f}" for point in summary["test"]["curve"]}
        apart = ours - np.load(folder / "test_scores.npy")
        paired = (
            f"{apart.mean():+.3f} ± {1.96 * apart.std() / math.sqrt(len(apart)):.3f}".replace("-", "−") if folder != rows[-1][2] else "–"
        )
        text += f"| {name} | {' | '.join(curve[k] for k in STEPS)} | {paired} |\n"
    return text + "\n```\n" + "".join(f"{command}\n" for _, command, _, _ in rows) + "```\n"


def picture(rows: list[tuple[str, str, Path, dict[str, Any]]]) -> None:
    """All curves with their 95 % intervals."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, _, _, summary in rows:
        steps, mean, error = np.array([[p["step"], p["mean"], p["ci95"]] for p in summary["test"]["curve"]]).T
        (line,) = axes.plot(steps, mean, label=name, linewidth=2.2 if name == rows[-1][0] else 1.4)
        axes.fill_between(steps, mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(yscale="log", xlabel="step", ylabel="loss, mean over 1000 unseen functions", xlim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
