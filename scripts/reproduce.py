"""Runs every command behind docs/results.md and writes its tables from what they print; finished runs are not repeated.
A folder whose run had other settings than its command, of which defaults are a part, is refused.

python scripts/reproduce.py --omniglot ../shared/omniglot [--runs outputs/results] [--only PART ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from pages import evaluated, finished, put, table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
# Every run that is trained: its name, and its words.
PROTONET, PRETRAIN, SEMI = "experiment=omniglot_small_protonet", "experiment=omniglot_small_pretrain", "experiment=omniglot_small_semi"
ONESHOT = "experiment=omniglot_oneshot_protonet"
LONGER = "trainer.iterations=3000 trainer.test_episodes=4"  # whose own tests are of no account
MAML = "experiment=omniglot_small_maml"
ADAPT = f"{MAML} trainer.iterations=800 trainer.val_every=800"
SINE = "experiment=sinusoid_maml trainer.iterations=15000 trainer.val_every=5000"
SEVERAL = {"maml": "maml-1shot", "emaml": "several-emaml"}
RUNS = {
    "protonet": PROTONET,
    "maml-1shot": MAML,
    "maml-5shot": "experiment=omniglot_small_maml_5shot",
    "pretrain": PRETRAIN,
    "siamese": "experiment=omniglot_small_siamese",
    "matching": f"{PROTONET} algo=matching",
    "relation": f"{PROTONET} algo=relation net.downs=2 trainer.iterations=300",
    "imp": f"{PROTONET} algo=imp",
    "gnn5": f"{PROTONET} algo=gnn episode.train.way=5 trainer.meta_batch=8",
    "gnn20": f"{PROTONET} algo=gnn way=20 query=5 episode.train.query=2 trainer.iterations=500",
    "baselinepp": f"{PRETRAIN} algo=baselinepp trainer.iterations=1200",
    "nearest": f"{PROTONET} algo=nearest",
    "hausdorff": f"{PROTONET} algo=hausdorff",
    "semi-protonet": f"{SEMI} algo=protonet",
    **{f"semi-{kind}": f"{SEMI} algo=protonet_{kind}" for kind in ("soft", "cluster", "masked")},
    **{f"semi-{kind}-clean": f"{SEMI} algo=protonet_{kind} episode.distractors=0" for kind in ("soft", "cluster", "masked")},
    "oneshot-1": ONESHOT,
    "oneshot-2": f"{ONESHOT} data.split=minimal2",
    "oneshot-1-plain": f"{ONESHOT} augment=none",
    "lake": f"{ONESHOT} data.split=lake {LONGER}",
    "lake-minimal1": f"{ONESHOT} {LONGER}",
    **{
        f"adapt-{algo}": f"{ADAPT} algo={algo}"
        for algo in ("maml", "fomaml", "metasgd", "anil", "boil", "alphamaml", "metacurvature", "r2d2", "lrd2", "metaoptnet", "deml")
    },
    "adapt-reptile": f"{MAML} algo=reptile algo.inner_batch=10 episode.train.shot=10 episode.train.query=1 algo.inner_steps=8 "
    "optim.lr=0.003 trainer.meta_batch=8 trainer.iterations=1600 trainer.val_every=1600",
    "adapt-mamlpp": f"{ADAPT} algo=mamlpp algo.inner_steps=3 algo.test_steps=3",
    "adapt-imaml": f"{MAML} algo=imaml algo.proximal=0.1 algo.inner_steps=4 algo.test_steps=8 algo.cg_steps=2 trainer.meta_batch=8 "
    "trainer.iterations=1600 trainer.val_every=1600",
    "adapt-cavia": f"{ADAPT} algo=cavia",
    "adapt-pretrain": f"{PRETRAIN} net.down=stride net.flatten=false net.norm=batch trainer.iterations=1000",
    "adapt-mtl": f"{ADAPT} algo=mtl init_from=RUN",
    "several-emaml": f"{MAML} algo=emaml algo.members=3",
    "reader": "algo=lstm net.down=stride net.flatten=false episode.train.query=5 optim.lr=0.005 trainer.meta_batch=8 "
    "trainer.iterations=1500 trainer.val_every=250 trainer.val_episodes=50 trainer.test_episodes=600",
    "sinusoid-maml": "experiment=sinusoid_maml",
    "sinusoid-pretrain": "experiment=sinusoid_pretrain",
    "sinusoid-fomaml": f"{SINE} algo=fomaml",
    "sinusoid-reptile": "experiment=sinusoid_maml trainer.iterations=6000 trainer.val_every=6000 algo=reptile algo.inner_lr=0.02 "
    "algo.inner_batch=10 algo.inner_steps=10 episode.train.shot=50 optim.lr=0.003",
    "sinusoid-metasgd": f"{SINE} algo=metasgd algo.test_steps=1",
    "sinusoid-cavia": f"{SINE} algo=cavia algo.inner_lr=1.0 algo.context_size=5",
    "sinusoid-alpaca": "experiment=sinusoid_alpaca",
    "glyphs-untrained": "experiment=glyphs_es trainer.iterations=0",
    "glyphs-es": "experiment=glyphs_es",
}
RUN = {"adapt-mtl": "adapt-pretrain"}  # which one the word RUN of a run's command stands for
# Rows of tables: what a row is called, and by task a run and the words of an evaluation; none: the run's own test.
Row = tuple[str, dict[str, tuple[str, str]]]
TASKS = {"5w1s": "", "5w5s": "shot=5", "20w1s": "way=20", "20w5s": "way=20 shot=5"}


def all_tasks(run: str, words: str = "", tasks: tuple[str, ...] = tuple(TASKS)) -> dict[str, tuple[str, str]]:
    """A run's evaluations at all four tasks, or at those that are named."""
    return {task: (run, f"{words} {TASKS[task]}".strip()) for task in tasks}


PRESETS: list[Row] = [
    ("protonet", {task: ("protonet", TASKS[task]) for task in ("5w1s", "5w5s", "20w1s")}),
    ("maml", {"5w1s": ("maml-1shot", "")}),
    ("maml", {"5w5s": ("maml-5shot", "")}),
    ("pretrain", {task: ("pretrain", TASKS[task]) for task in ("5w1s", "5w5s")}),
]
FEW = "query=5 trainer.test_episodes=100"  # where an episode costs seconds
ALL = "algo.adapt=all algo.test_steps=20"
METRIC: list[Row] = [
    *((name, all_tasks(name)) for name in ("protonet", "matching", "relation", "imp", "siamese")),
    ("gnn", {"5w1s": ("gnn5", ""), "5w5s": ("gnn5", "shot=5"), "20w1s": ("gnn20", ""), "20w5s": ("gnn20", f"shot=5 {FEW}")}),
    ("pretrain", all_tasks("pretrain")),
    ("baseline", all_tasks("pretrain", "algo.test_steps=100 algo.decay=0.001")),
    ("baselinepp", all_tasks("baselinepp")),
    ("finetune", all_tasks("pretrain", f"{ALL} {FEW}")),
    ("nearest", all_tasks("nearest")),
    ("hausdorff", {task: ("hausdorff", f"{words} {FEW}" if words else "") for task, words in TASKS.items()}),
]
FIVE_WAY = ("5w1s", "5w5s")
FIRST = ("maml", "fomaml", "reptile", "metasgd", "mamlpp", "alphamaml", "metacurvature", "imaml", "anil")
SECOND = ("boil", "cavia", "r2d2", "lrd2", "metaoptnet", "deml", "pretrain", "mtl")
# Better than the steps of the training on development tasks; what is adapted at test is no part of the training.
AT_TEST = {"reptile": "algo.inner_lr=0.2 algo.test_steps=20"}
ADAPTIVE: list[Row] = [
    *((name, all_tasks(f"adapt-{name}", AT_TEST.get(name, ""), FIVE_WAY)) for name in FIRST),
    ("nil", all_tasks("adapt-anil", "algo.head_at_test=false", FIVE_WAY)),
    *((name, all_tasks(f"adapt-{name}", tasks=FIVE_WAY)) for name in SECOND),
]
# What the papers have for 5-way 1-shot and 5-shot Omniglot, with other classes, nets and budgets.
PAPERS = {
    "maml": "98.7 / 99.9",
    "fomaml": "98.3 / 99.2",
    "reptile": "97.7 / 99.5",
    "metasgd": "99.5 / 99.9",
    "mamlpp": "99.5 / –",
    "metacurvature": "99.97 / 99.9",
    "imaml": "99.2 / 99.7",
}
VERIFIERS = ("siamese", "protonet", "imp", "relation", "nearest", "hausdorff")
STEPS = (0, 1, 5, 10)


class Results:
    """Summaries by run and words; what is not there yet is run first."""

    def __init__(self, runs: Path, omniglot: str) -> None:
        self.runs, self.omniglot = runs, omniglot

    def training(self, name: str) -> dict[str, Any]:
        """The summary of a run, with that of its own test."""
        words = typed(name, self.omniglot)
        if name in RUN:
            self.training(RUN[name])
            words = words.replace("RUN", str(self.runs / RUN[name]))
        return finished(words.split(), self.runs / name)

    def evaluation(self, name: str, words: str, split: Literal["test", "val"] = "test") -> dict[str, Any]:
        """The summary of ``metarun eval`` of a run."""
        self.training(name)
        return evaluated(self.runs / name, words, split)

    def accuracy(self, name: str, words: str) -> str:
        """Mean and interval in %."""
        accuracy = self.evaluation(name, words)["test"]["accuracy"]
        return f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['ci95']:.2f}"


def typed(name: str, omniglot: str) -> str:
    """The words that train a run."""
    return f"{RUNS[name]} data.root={omniglot}" if "omniglot" in RUNS[name] else RUNS[name]


def command(name: str) -> str:
    """What a reader types to train a run."""
    return f"metarun {typed(name, 'PATH')}"


def commands(rows: list[Row]) -> list[str]:
    """What was typed for the rows: every training, and under it the evaluations of its run."""
    evaluations: dict[str, list[str]] = {}
    for _, tasks in rows:
        for name, words in tasks.values():
            evaluations.setdefault(name, []).extend([f"    metarun eval RUN {words}"] if words else [])
    return code([line for name, lines in evaluations.items() for line in (command(name), *dict.fromkeys(lines))])


def code(lines: list[str]) -> list[str]:
    """A block of commands."""
    return ["", "```", *lines, "```", ""]


def family(prefix: str) -> list[str]:
    """The runs whose names begin so."""
    return [name for name in RUNS if name.startswith(prefix)]


def presets(results: Results) -> list[str]:
    """The presets of conf/experiment."""
    rows = []
    for label, tasks in PRESETS:
        for task, (name, words) in tasks.items():
            summary, mode = results.training(name), results.evaluation(name, words)["bn_mode"]
            kind = "transductive" if mode == "batch" else "inductive"
            training = f"`{RUNS[name]}`, {summary['iterations']} iterations"
            rows.append([label, task, results.accuracy(name, words), f"{mode} ({kind})", training, f"{summary['wall_s']:.0f} s"])
    lines = [
        "## Real Omniglot, `data.split=small`",
        "",
        "Train Balinese, Greek, Japanese, Korean, Sanskrit (708 classes with rotations), develop on Early Aramaic (88), test on Latin and",
        "Tagalog (172); test classes are rotated as well. The checkpoint is the best on 200 development episodes; the test is run once.",
        "Accuracy in %, ± is 1.96 standard errors over 1000 test episodes, 15 queries per class, seed 0. The commands of a table are below",
        "it; an indented one evaluates the run above it.",
        "",
    ]
    head = ["method", "task", "accuracy %", "norm", "training", "wall, training and first test"]
    return [*lines, *table(head, rows), *commands(PRESETS)]


def metric(results: Results) -> list[str]:
    """The metric-based methods and the baselines."""
    rows = [[label, *(results.accuracy(*tasks[task]) for task in TASKS)] for label, tasks in METRIC]
    lines = [
        "## Metric-based methods and baselines, Omniglot `small`",
        "",
        "The same split, episodes and seed; Conv4-64 with pooling and `net.norm=running` (inductive) throughout, but for `relation`, whose",
        "maps are larger (`net.downs=2`), and `nearest` and `hausdorff`, which have no net and learn nothing. Trained once, at 20-way",
        "1-shot, pre-training on all classes, and evaluated at all four; `gnn` has a net for every way. 1000 test episodes with 15 queries",
        "per class, but 5 queries for `gnn` at 20-way, and 100 episodes of 5 where ± is large: there an episode costs seconds.",
        "",
    ]
    return [*lines, *table(["method", *TASKS], rows), *commands(METRIC)]


def adaptive(results: Results) -> list[str]:
    """The gradient-based methods and the solved heads."""
    rows = []
    for label, tasks in ADAPTIVE:
        iterations = results.training(tasks["5w1s"][0])["iterations"]
        rows.append([label, *(results.accuracy(*tasks[task]) for task in FIVE_WAY), f"{iterations}", PAPERS.get(label, "–")])
    lines = [
        "## Gradient-based methods and solved heads, Omniglot `small`",
        "",
        "The same split, episodes and seed; Conv4-64 with strides and the mean over space, `net.norm=batch` throughout (transductive:",
        "queries are normalised together). Trained once, at 5-way 1-shot with 5 queries per class, 16 tasks in an iteration (`reptile`:",
        "8 tasks of 10 shots, no query; `imaml`: 8 tasks; `pretrain`: batches of 64 classes), and evaluated at one and at five shots.",
        "`nil` is `anil` without its head at test; `mtl` begins with the net of `pretrain`, the row above it. Settings were chosen on",
        "development tasks; mostly none but the defaults were tried. The budget is small: MAML gains 2.0 points more with three times",
        "the iterations (first table). The papers' figures are for 1200 training characters with rotations, and many times the budget.",
        "",
    ]
    head = ["method", *FIVE_WAY, "iterations", "its paper, 5w1s / 5w5s"]
    return [*lines, *table(head, rows), *commands(ADAPTIVE)]


def verification(results: Results) -> list[str]:
    """The same one or not, of the same runs."""
    rows = []
    for name in VERIFIERS:
        test = results.training(name)["test"]
        values = [test[metric] for metric in ("auc", "eer", "tar_at_far_0.01")]
        rows.append([name, *(f"{value['mean']:.4f} ± {value['ci95']:.4f}" for value in values)])
    lines = [
        "## Verification, Omniglot `small`",
        "",
        "Are query and support of one class, on the alphabets of the test, by one threshold for all of the 1000 episodes 5-way 1-shot of",
        "the runs above: area below the ROC curve, equal error rate, true-accept rate at 1 % false accepts.",
        "",
    ]
    return [*lines, *table(["method", "AUC", "EER", "TAR at FAR 1 %"], rows), ""]


def semi(results: Results) -> list[str]:
    """Unlabelled images."""
    rows = []
    for kind in ("protonet", "soft", "cluster", "masked"):
        clean = "semi-protonet" if kind == "protonet" else f"semi-{kind}-clean"
        rows.append([kind if kind == "protonet" else f"protonet_{kind}", *(results.accuracy(name, "") for name in (clean, f"semi-{kind}"))])
    lines = [
        "## Unlabelled images, Omniglot `small`",
        "",
        "5-way 1-shot, 5 unlabelled images of every class, without and with those of 5 other classes (distractors), in training as",
        "in the test; `protonet` does not look at them. Conv4-64 with strides, `net.norm=running` (inductive), 400 iterations, 600 test",
        "episodes with 10 queries per class, seed 0. ± is 1.96 standard errors.",
        "",
    ]
    return [*lines, *table(["method", "no distractors", "distractors"], rows), *code(list(map(command, family("semi-"))))]


def oneshot(results: Results) -> list[str]:
    """Cross-tests of the recipe for Lake's challenge."""
    rows = []
    for name in family("oneshot-"):
        summary = results.training(name)
        errors = [
            f"{100 * (1 - part['accuracy']['mean']):.1f} ± {100 * part['accuracy']['ci95']:.1f}"
            for part in (summary["val"], summary["test"])
        ]
        rows.append([f"`{RUNS[name]}`", *errors, f"{summary['iterations']}"])
    lines = [
        "## Lake's one-shot challenge, cross-tests of the recipe",
        "",
        "Error in % of 20-way 1-shot classification. ProtoNet, Conv4-64, `net.norm=running` (inductive), trained on the characters of one",
        "minimal set of five alphabets with rotations as classes; the checkpoint is the best on 200 development episodes of",
        "held-out characters of the same alphabets (rotated, too). Cross-test: 1000 episodes, each within one alphabet of the other",
        "set that the first lacks and that has 20 characters, upright, 5 queries per class. Recipes are chosen by it, so it is no",
        "test of them. Seed 0, ± is 1.96 standard errors. The official runs are not in these data.",
        "",
    ]
    head = ["run", "held-out characters", "cross-test, within an alphabet", "iterations"]
    return [*lines, *table(head, rows), *code(list(map(command, family("oneshot-"))))]


LAKES = {"lake": "the 25 alphabets of training of the background set", "lake-minimal1": "the 5 alphabets of minimal set 1"}
ANSWERS = {
    "ProtoNet": "",
    "features over 9 views": "algo.views=9",
    "answers matched to classes (transductive)": "algo.matching=true",
    "both (transductive)": "algo.views=9 algo.matching=true",
}


def lake(results: Results) -> list[str]:
    """Lake's challenge, with what helps after training."""
    rows, typed = [], []
    for name, source in LAKES.items():
        typed.append(command(name))
        for label, words in ANSWERS.items():
            test = f"query=1 trainer.val_episodes=1000 trainer.test_episodes=1000 {words}".strip()
            scores = [results.evaluation(name, test, split)[split]["accuracy"] for split in ("val", "test")]
            rows.append([label, source, *(f"{100 * (1 - score['mean']):.1f} ± {100 * score['ci95']:.1f}" for score in scores)])
            typed.extend(f"    metarun eval RUN {words}" for words in (f"--split val {test}", test))
    lines = [
        "## Lake's one-shot challenge, answers after training",
        "",
        "Error in % of 20-way 1-shot classification, one query of every class, as in the challenge's runs (which are not in these data).",
        "Trained as the recipe of the next table, with rotations as classes; the checkpoint is the best on 200 development episodes.",
        "Development: 1000 episodes of characters held out (five alphabets of the background set, rotated; or a fifth of each of five).",
        "Test: 1000 episodes, each within one alphabet that training lacks, upright: of the evaluation set, or of the other minimal set.",
        "Views are the image and eight of it moved and turned a little, of support and query alike. Matching gives every class equally",
        "many of the 20 queries, as is true of the challenge; it is transductive, and off by default. Seed 0, ± is 1.96 standard errors.",
        "",
    ]
    head = ["answers", "trained on", "development", "test, within an alphabet"]
    return [*lines, *table(head, rows), *code(typed)]


def several(results: Results) -> list[str]:
    """An ensemble beside one of its members."""
    rows = []
    for algo, name in SEVERAL.items():
        summary = results.training(name)
        loss = summary["test"]["loss"]
        answers = [results.accuracy(name, ""), f"{loss['mean']:.4f} ± {loss['ci95']:.4f}"]
        rows.append([algo, *answers, f"{summary['parameters']:,}", f"{summary['wall_s']:.0f} s"])
    lines = [
        "## Ensembles, Omniglot `small`",
        "",
        "MAML alone and three of it that answer together, each trained as the first table's, on the same tasks; 1000 test episodes",
        "5-way 1-shot with 15 queries per class, seed 0, `net.norm=batch` (transductive). NLL is −log probability of the right class, of",
        "the ensemble that of the members' mean. ± is 1.96 standard errors.",
        "",
    ]
    head = ["method", "accuracy %", "NLL", "meta-parameters", "wall"]
    return [*lines, *table(head, rows), *code(list(map(command, SEVERAL.values())))]


def reader(results: Results) -> list[str]:
    """Black-box methods."""
    summary = results.training("reader")
    loss, (untrained, *_) = summary["test"]["loss"], summary["test"]["curve"]
    row = ["lstm", results.accuracy("reader", ""), f"{loss['mean']:.4f} ± {loss['ci95']:.4f}", f"{100 * untrained['mean']:.2f}"]
    lines = [
        "## Black-box methods, glyphs",
        "",
        "5-way 1-shot on `data=glyphs`, the default; 600 test episodes with 15 queries per class, seed 0, `net.norm=batch` (transductive);",
        "chance is 20 %, an NLL of 1.6094. ± is 1.96 standard errors.",
        "",
    ]
    head = ["method", "accuracy %", "NLL", "accuracy % before any example"]
    return [*lines, *table(head, [row]), *code([command("reader")])]


def sinusoid(results: Results) -> list[str]:
    """The sinusoid table."""
    rows = []
    for name in family("sinusoid-"):
        summary = results.training(name)
        curve = {point["step"]: f"{point['mean']:.3g} ± {point['ci95']:.2g}" for point in summary["test"]["curve"]}
        cells = [curve.get(k, "–") for k in STEPS]
        rows.append([name.removeprefix("sinusoid-"), *cells, f"{summary['iterations']}", f"{summary['wall_s']:.0f} s"])
    lines = [
        "## Sine waves, K = 10",
        "",
        "Mean squared error after gradient steps on 10 support points, on 50 query points; 1000 test tasks, ± 1.96 standard errors over",
        "tasks, seed 0, no norm; MLP 40-40 (`alpaca`: 128-128-32, tanh). One inner step of size 0.01 in training, unless the command says",
        "otherwise. `metasgd` is trained for one step as in its paper, and its learned rates diverge when they are used again; `alpaca`",
        "solves for its last layer and takes no steps; its error band is drawn in [the gallery](gallery.md).",
        "",
    ]
    head = ["method", *(f"{k} steps" for k in STEPS), "iterations", "wall"]
    return [*lines, *table(head, rows), *code(list(map(command, family("sinusoid-"))))]


def evolution(results: Results) -> list[str]:
    """Evolution strategies in place of back-propagation."""
    rows = [[f"`{RUNS[name]}`", results.accuracy(name, ""), f"{results.training(name)['iterations']}"] for name in family("glyphs-")]
    lines = [
        "## Without derivatives",
        "",
        "ProtoNet on glyphs, 5-way 1-shot, its meta-gradient estimated by evolution strategies (`optim.gradient=es`): 8 tasks in an",
        "iteration, 8 antithetic pairs of perturbations for each. Conv4-8 with strides, 1,864 parameters, `net.norm=batch` (transductive);",
        "the size of the perturbations was chosen among 0.05, 0.1 and 0.2 on development tasks. Accuracy in %, ± is 1.96 standard errors",
        "over 1000 test episodes, 15 queries per class, seed 0.",
        "",
    ]
    return [*lines, *table(["run", "accuracy %", "iterations"], rows), *code(list(map(command, family("glyphs-"))))]


PARTS = {
    part.__name__: part for part in (presets, metric, adaptive, verification, semi, lake, oneshot, several, reader, sinusoid, evolution)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", required=True, help="folder with the Omniglot archives")
    parser.add_argument("--runs", type=Path, default=Path("outputs/results"), help="where the runs are kept")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    options = parser.parse_args()
    results = Results(options.runs, options.omniglot)
    for name in options.only:
        put(PAGE, name, "\n".join(PARTS[name](results)) + "\n")
        print(f"wrote {name} of {PAGE.name}")


if __name__ == "__main__":
    main()
