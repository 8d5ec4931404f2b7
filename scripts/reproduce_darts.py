"""One space of cells searched in four ways, on one axis of cost: the table and the picture of docs/search.md.

python scripts/reproduce_darts.py --root FOLDER [--only cells few_shot] [--runs outputs/darts] [--write]

cells: a candidate's worth is its accuracy on development tasks after a short training, the same for all: a run of metarun. DARTS is one
run each. few_shot: MAML as the learner of DARTS, near T-NAS, beside MAML on a cell by hand. Cost is the CPU time of everything that was
trained; finished runs are not repeated. --write puts tables and picture into the page.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from pages import PLAIN, finished, put

from metarun import inner
from metarun.algos.search._searcher import Searcher
from metarun.algos.search.evolution import Evolution
from metarun.algos.search.random_search import RandomSearch
from metarun.algos.search.reinforce import Reinforce
from metarun.cli import main as program
from metarun.nets.cell import EDGES, OPERATIONS, spelled
from metarun.nets.pixels import Pixels
from metarun.problem import EpisodeSpec, Problem, Search

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGE = Path(__file__).resolve().parents[1] / "docs" / "search.md"
PICTURE = PAGE.parent / "pictures" / "darts.png"
SPACE = Search((len(OPERATIONS),) * len(EDGES))
# What all trainings have in common.
SAME = "data=omniglot data.split=small data.size=20 net=cell net.hidden=8 net.norm=group way=20 episode.train.query=6 optim.lr=0.005"
SAME += " trainer.meta_batch=1 trainer.val_every=1000 trainer.test_episodes=1 engine.threads=1"
TRAINING = f"algo=protonet {SAME} trainer.iterations=80 trainer.val_episodes=100"
DARTS = {
    "DARTS, first order": f"algo=darts algo.rate=0.03 {SAME} trainer.iterations=160 trainer.val_episodes=20",
    "DARTS, second order": f"algo=darts algo.rate=0.03 algo.virtual_lr=0.01 {SAME} trainer.iterations=160 trainer.val_episodes=20",
}
# Few-shot search and its base: MAML, 5-way 1-shot; of a search half as many iterations, as each costs several times as much.
MAML = SAME.replace("way=20 episode.train.query=6", "way=5 shot=1 episode.train.query=5").replace("meta_batch=1", "meta_batch=2")
MAML += " trainer.val_episodes=200"
FEW_SHOT = f"algo=darts algo@algo.learner=maml algo.rate=0.03 {MAML} trainer.iterations=60"
BASE = f"algo=maml {MAML} trainer.iterations=120"
BY_HAND = "-".join(["conv3"] * len(EDGES))
TRIED = 20  # candidates of a search
SEARCHERS: dict[str, tuple[type[Searcher], dict[str, Any]]] = {
    "random search": (RandomSearch, {}),
    "ageing evolution, P 5, S 2": (Evolution, {"population": 5, "sample": 2}),
    "REINFORCE, logits, rate 0.1": (Reinforce, {"controller": "logits", "hidden": 1, "rate": 0.1, "momentum": 0.9}),
}
COLOURS = ("#555555", "#2f6690", "#7fb69a", "#c8553d", "#8a5a9e")


class Trained(NamedTuple):
    """A run, and what it took."""

    summary: dict[str, Any]
    seconds: float  # of CPU time

    @property
    def accuracy(self) -> float:
        """On development tasks, in percent."""
        return 100 * float(self.summary["val"]["accuracy"]["mean"])


class Lab:
    """Trains what it is asked for, once.

    Args:
        runs: folder of the runs.
        root: of the data; None: where they are looked for.
    """

    def __init__(self, runs: Path, root: str | None) -> None:
        self.runs, self.more = runs, [*([f"data.root={root}"] if root else []), *PLAIN]

    def run(self, words: str, name: str) -> Trained:
        """The run of these words, in the folder of that name."""
        note, begun = self.runs / name / "cpu_seconds.txt", time.process_time()
        summary = finished([*words.split(), *self.more], self.runs / name)
        if not note.is_file():
            note.write_text(f"{time.process_time() - begun:.2f}\n", encoding="utf-8")
        return Trained(summary, float(note.read_text(encoding="utf-8")))

    def worth(self, genotype: str, seed: int = 0) -> Trained:
        """A cell after the short training."""
        return self.run(f"{TRAINING} net.genotype={genotype} seed={seed}", f"{genotype}-{seed}")


class Point(NamedTuple):
    """Where a search stands."""

    seconds: float  # of CPU time so far
    accuracy: float  # of the best cell so far, by the training that all candidates have
    genotype: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of Omniglot's archives")
    parser.add_argument("--runs", type=Path, default=Path("outputs/darts"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=("cells", "few_shot"), default=("cells", "few_shot"))
    parser.add_argument("--write", action="store_true", help="put tables and picture into docs/search.md")
    options = parser.parse_args()
    lab = Lab(options.runs, options.root)
    if "cells" in options.only:
        cells(lab, options.write)
    if "few_shot" in options.only:
        text = few_shot(lab)
        print(text)
        if options.write:
            put(PAGE, "few_shot", text)


def cells(lab: Lab, write: bool) -> None:
    """The space searched in four ways."""
    curves = {name: searched(lab, *searcher) for name, searcher in SEARCHERS.items()}
    random = [point.accuracy for point in candidates(lab, *SEARCHERS["random search"])]
    for name, words in DARTS.items():
        run = lab.run(words, folder(name))
        genotype = run.summary["found"]["genotype"]
        curves[name] = [Point(run.seconds, lab.worth(genotype).accuracy, genotype)]
    text = table(lab, curves, random)
    print(text)
    if write:
        put(PAGE, "darts", text)
        draw(curves, statistics.mean(random))
        program.main(["show", str(lab.runs / folder(next(iter(DARTS)))), "--what", "cell", "--out", str(PICTURE.with_name("cell.png"))])


def few_shot(lab: Lab) -> str:
    """MAML on a cell by hand, DARTS with MAML, and MAML on the cell that this found, in Markdown, with the commands."""
    search = lab.run(FEW_SHOT, "few-shot-search")
    genotype = search.summary["found"]["genotype"]
    rows = {
        f"MAML, `{BY_HAND}`": lab.run(f"{BASE} net.genotype={BY_HAND}", "maml-by-hand"),
        "DARTS with MAML: weights and architecture adapt to each task": search,
        f"MAML, `{genotype}`, which that found": lab.run(f"{BASE} net.genotype={genotype}", f"maml-{genotype}"),
    }
    text = "| | parameters | CPU seconds | accuracy, % |\n| --- | --- | --- | --- |\n"
    for name, run in rows.items():
        error = 100 * run.summary["val"]["accuracy"]["ci95"]
        text += f"| {name} | {run.summary['parameters']:,} | {run.seconds:.0f} | {run.accuracy:.1f} ± {error:.1f} |\n"
    return f"{text}\n```\nmetarun {FEW_SHOT}\nmetarun {BASE} net.genotype=CELL\n```\n"


def folder(name: str) -> str:
    """Of the run that a row is called after."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def candidates(lab: Lab, method: type[Searcher], settings: dict[str, Any]) -> list[Point]:
    """What a searcher tries, one after the other: it proposes, a training tells what that is worth, and it learns from that."""
    spec = EpisodeSpec(way=1, shot=0, query=1)
    problem = Problem(SPACE, (len(EDGES),), outputs=len(EDGES), classes=0, train=spec, eval=spec)
    searcher = method(Pixels((len(EDGES),)), problem, test_steps=TRIED, **settings)
    key, found = torch.tensor(0), list[Point]()
    memory = searcher.remember(inner.fold_in(key, 1), torch.tensor(-torch.inf))
    for k in range(TRIED):
        own = inner.fold_in(key, k + 2)
        word = searcher.propose(memory, own, k)
        run = lab.worth(spelled(word.tolist()))
        found.append(Point(run.seconds, run.accuracy, spelled(word.tolist())))
        memory = searcher.learn(memory, word, torch.tensor(run.accuracy / 100), own, k)
    return found


def searched(lab: Lab, method: type[Searcher], settings: dict[str, Any]) -> list[Point]:
    """The best so far, after each candidate; one that is tried again costs again."""
    points, spent = list[Point](), 0.0
    for tried in candidates(lab, method, settings):
        spent += tried.seconds
        best = max([*points[-1:], tried], key=lambda point: point.accuracy)
        points.append(Point(spent, best.accuracy, best.genotype))
    return points


def table(lab: Lab, curves: dict[str, list[Point]], random: list[float]) -> str:
    """What was found, trained once more from other weights and judged by other episodes, in Markdown, with the commands.

    ``random``: accuracies of random cells, none of which was chosen, so that their mean needs no second training.
    """
    text = "| search | CPU seconds | cell found | skips | parameters | accuracy, % |\n| --- | --- | --- | --- | --- | --- |\n"
    for name, points in curves.items():
        last = points[-1]
        run = lab.worth(last.genotype, 1)
        error, skips = 100 * run.summary["val"]["accuracy"]["ci95"], last.genotype.split("-").count("skip")
        row = [name, f"{last.seconds:.0f}", f"`{last.genotype}`", str(skips), f"{run.summary['parameters']:,}"]
        text += f"| {' | '.join(row)} | {run.accuracy:.1f} ± {error:.1f} |\n"
    mean = f"{statistics.mean(random):.1f} ± {statistics.stdev(random):.1f}"
    text += f"| the mean of the {len(random)} cells of random search ± standard deviation | | | | | {mean} |\n"
    return f"{text}\n```\n" + "".join(f"metarun {words}\n" for words in (f"{TRAINING} net.genotype=CELL seed=1", *DARTS.values())) + "```\n"


def draw(curves: dict[str, list[Point]], mean: float) -> None:
    """Accuracy over cost."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, points), colour in zip(curves.items(), COLOURS, strict=True):
        seconds, values = [point.seconds for point in points], [point.accuracy for point in points]
        if len(points) > 1:
            axes.step(seconds, values, where="post", color=colour, label=name)
        else:
            axes.plot(seconds, values, "o", markersize=9, color=colour, label=name)
    axes.axhline(mean, color="#999999", linestyle=":", label=f"mean of {TRIED} random cells")
    axes.set(xscale="log", xlabel="CPU seconds of search", ylabel="accuracy on development tasks, %", title="20-way 1-shot Omniglot")
    axes.set_xticks([3, 5, 10, 20, 40, 60], ["3", "5", "10", "20", "40", "60"], minor=False)
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main()
