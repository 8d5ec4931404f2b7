"""Learned optimizers beside tuned rivals of old: on the net of their training, on others, five times as long; and a rule that was found.

python scripts/reproduce_optimizers.py [--runs outputs/optimizers] [--only images symbolic] [--write]

Every row is a command of metarun's, which the tables show; finished ones are not repeated. The learned optimizer is trained once, on one
net; rivals are tuned anew on development tasks of every net. --write: tables and pictures go to docs/optimizers.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from pages import PLAIN, evaluated, finished, put

matplotlib.use("agg")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "optimizers.md"
PICTURES = PAGE.parent / "pictures"
RIVALS = "protocol=rivals protocol.rivals.only=[nesterov,adam] protocol.rivals.sparse=2 trainer.curve=log"
IMAGES = "experiment=glyphs_optimizer protocol=rivals protocol.rivals.sparse=2"
BEFORE = "experiment=glyphs_optimizer trainer.iterations=0"  # the rule from which meta-training sets out
SYMBOLIC = "experiment=quadratics_symbolic protocol=rivals"
FEW = "trainer.val_episodes=10 trainer.test_episodes=40"
FEWER = "trainer.val_episodes=5 trainer.test_episodes=20"
# What the optimizer was not trained on, and first, with a finer grid of rates, what it was: name, and words of `metarun eval`.
FINER = "as trained, every rate"
TRANSFERS = {
    FINER: "protocol.rivals.sparse=1 trainer.val_episodes=50 trainer.test_episodes=100",
    "width 128": "net.sizes=[128]",
    "three hidden layers": "net.sizes=[32,32,32]",
    "tanh": "net.activation=tanh",
    "500 steps": f"algo.test_steps=500 {FEWER}",
    "a CNN of four layers": f"net=conv4 net.hidden=8 net.down=stride {FEWER}",
}
STEPS = (20, 50, 100)
NAMES = {"sgd": "SGD", "momentum": "momentum", "nesterov": "Nesterov", "rmsprop": "RMSprop", "adam": "Adam"}
Summary = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("outputs/optimizers"), help="folder of the runs; finished ones are not repeated")
    parser.add_argument("--only", nargs="+", choices=("images", "symbolic"), default=("images", "symbolic"))
    parser.add_argument("--write", action="store_true", help="put tables and pictures into docs/optimizers.md")
    options = parser.parse_args()
    for part in options.only:
        text, figure = (images if part == "images" else symbolic)(options.runs)
        print(text)
        if options.write:
            put(PAGE, part, text)
            figure.savefig(PICTURES / f"optimizers_{part}.png", dpi=110)


def trained(words: str, folder: Path) -> Summary:
    """The summary of a run, from its folder if it is finished; one that was interrupted goes on."""
    return finished([*words.split(), *PLAIN], folder)


def images(runs: Path) -> tuple[str, Figure]:
    """Table and picture of the MLP optimizer on images."""
    own, before = trained(IMAGES, runs / "mlp"), trained(BEFORE, runs / "before")
    found = {"as trained": own} | {name: evaluated(runs / "mlp", f"{RIVALS} {FEW} {words}") for name, words in TRANSFERS.items()}
    gains = np.load(runs / "mlp" / "test_scores.npy") - np.load(runs / "before" / "test_scores.npy")
    gain = {"mean": float(gains.mean()), "ci95": float(1.96 * gains.std() / len(gains) ** 0.5)}
    text = rows(own, before, gain) + f"\nTrained and tested by `metarun {IMAGES}`, the second row by `metarun {BEFORE}`.\n\n"
    text += f"Tests on others add `{RIVALS} {FEW}`.\n\n"
    text += "| tested on | MLP optimizer | Nesterov | Adam | its difference to the better one, task by task | with `metarun eval RUN` |\n"
    text += "| --- | --- | --- | --- | --- | --- |\n"
    for name, summary in found.items():
        test, metric = summary["test"], summary["metric"]
        rivals = [f"{percent(test[f'rival_{rule}'])} ({test[f'rival_{rule}']['rate']:g})" for rule in ("nesterov", "adam")]
        best = max((test[f"rival_{rule}"] for rule in ("nesterov", "adam")), key=lambda one: one["mean"])
        apart = percent({"mean": best["difference"], "ci95": best["difference_ci95"]}, "+")
        words = TRANSFERS.get(name, "")
        text += f"| {name} | {percent(test[metric])} | {' | '.join(rivals)} | {apart} | {f'`{words}`' if words else ''} |\n"
    found.pop(FINER)  # the first panel has these curves
    return text, panels(found, "accuracy on unseen images", ("nesterov", "adam"))


def symbolic(runs: Path) -> tuple[str, Figure]:
    """Table and picture of the rule that was found for quadratic functions."""
    own = trained(SYMBOLIC, runs / "symbolic")
    formulas = "".join(f"    {line}\n" for line in own["found"]["rule"])
    return f"{rows(own)}\n`metarun {SYMBOLIC}`, {own['wall_s'] / 60:.0f} minutes, found\n\n{formulas}", panels(
        {"": own}, "loss", tuple(NAMES)
    )


def rows(summary: Summary, before: Summary | None = None, gain: dict[str, float] | None = None) -> str:
    """The curve of one test, a row for each method; and one of the method ``before`` meta-training, which had a ``gain`` from it."""
    curve, rivals = {point["step"]: point for point in summary["test"]["curve"]}, summary["test"]["curve"][0]["rivals"]
    told = percent if summary["metric"] == "accuracy" else number
    steps = " | ".join(f"step {k}" for k in STEPS)
    text = f"| | rate | {steps} | the first row's difference, task by task |\n| ---{' | ---' * (len(STEPS) + 2)} |\n"
    text += f"| **{summary['algo']}** | | {' | '.join(told(curve[k]) for k in STEPS)} | |\n"
    if before and gain:
        points = {point["step"]: point for point in before["test"]["curve"]}
        text += f"| the same before meta-training | | {' | '.join(told(points[k]) for k in STEPS)} | {told(gain, '+')} |\n"
    for name in rivals:
        one = summary["test"][f"rival_{name}"]
        apart = told({"mean": one["difference"], "ci95": one["difference_ci95"]}, "+")
        text += f"| {NAMES[name]} | {one['rate']:g} | {' | '.join(told(curve[k]['rivals'][name]) for k in STEPS)} | {apart} |\n"
    return text


def percent(value: dict[str, float], sign: str = "") -> str:
    return f"{100 * value['mean']:{sign}.1f} ± {100 * value['ci95']:.1f}".replace("-", "−")


def number(value: dict[str, float], sign: str = "") -> str:
    return f"{value['mean']:{sign}.3f} ± {value['ci95']:.3f}".replace("-", "−")


def panels(found: dict[str, Summary], label: str, rivals: tuple[str, ...]) -> Figure:
    """A panel for each test: the curves of all methods with their 95 % bands."""
    wide = min(3, len(found))
    figure = Figure(
        figsize=(3.6 * wide + (3 if wide == 1 else 0), 3.2 * -(-len(found) // wide) + (1 if wide == 1 else 0)), layout="constrained"
    )
    places = np.ravel(figure.subplots(-(-len(found) // wide), wide, squeeze=False))
    for axes in places[len(found) :]:
        axes.set_axis_off()
    for axes, (name, summary) in zip(places, found.items()):
        curve = summary["test"]["curve"]
        steps = [point["step"] for point in curve]
        for rule in ("", *rivals):
            points = [point["rivals"][rule] if rule else point for point in curve]
            mean, error = (np.array([point[key] for point in points], dtype=float) for key in ("mean", "ci95"))
            (line,) = axes.plot(steps, mean, label=NAMES.get(rule, summary["algo"]), linewidth=1.3 if rule else 2.2)
            axes.fill_between(steps, mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(title=name, xlabel="step", ylabel=label)
        if label == "loss":
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
