"""The figures of papers and ours, on the same benchmarks: trains the presets experiment=paper/…, tests them, and writes docs/papers.md.

python scripts/papers.py --omniglot PATH --cifar PATH [--only NAME ...] [--seeds 3]   trains and tests what is not finished, seed by seed
python scripts/papers.py --write                                 keeps what was found in docs/papers.json, writes the page, trains nothing

Both take --runs FOLDER, by default outputs/papers. What docs/papers.json has is finished, wherever it was trained, as long as the preset is
the one it was found with. For runs side by side: OMP_NUM_THREADS=1, and --only with other names in each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pages import evaluated, evaluation, finished, put, read, settings, table

from metarun.config import legacy
from metarun.config.compose import compose, resolve
from metarun.config.stored import read_config

PAGE = Path(__file__).resolve().parents[1] / "docs" / "papers.md"
KEPT = PAGE.with_suffix(".json")
NOT_RUN = "not run yet"
Records = dict[str, dict[str, Any]]  # of trainings, by their place, see ``record``
SETTINGS = ("seed", "data", "algo", "net", "optim", "trainer", "episode", "augment")  # of a configuration, that decide what is found
TOOK = ("iterations", "wall_s", "bn_mode")  # of a summary, what a record keeps beside the tests


class Row(NamedTuple):
    """A line of a table."""

    name: str
    preset: str  # of experiment=paper/…
    paper: dict[str, str]  # by task, as printed there in %; "~": recalled, and not seen again in a source
    trainings: dict[tuple[str, ...], str]  # by the tasks that it answers, of which the first is its own test: words beside the preset's
    asked: str = ""  # words of all its tests; {shot}: that of the task
    why: str = ""  # what is known to differ from the paper, beside the budget
    said: str = ""  # what else tells the row from others
    folder: str = ""  # of its runs, where other words than the preset's train it; "": the preset's name


ALL, FIVE, TWENTY = ("5w1s", "5w5s", "20w1s", "20w5s"), ("5w1s", "5w5s"), ("20w1s", "20w5s")
TASKS = {"5w1s": "way=5 shot=1", "5w5s": "way=5 shot=5", "20w1s": "way=20 shot=1", "20w5s": "way=20 shot=5"}
ONCE = {ALL: ""}


def figures(*values: str) -> dict[str, str]:
    """Of a paper, by task; "" where it has none."""
    return {task: value for task, value in zip(ALL, values) if value}


def by_way(twenty: str) -> dict[tuple[str, ...], str]:
    """A training of one shot for each way; ``twenty``: words of that of 20 ways."""
    return {FIVE: "", TWENTY: f"way=20 {twenty}"}


def queried(row: Row, number: str) -> Row:
    """The runs of a row, asked for as many queries of a class as its paper has: normalised together, few tell more of each other."""
    many = "one query of a class" if number == "1" else "as many queries of a class as shots"
    said = f"the runs of {row.name}, asked as by its authors: {many}"
    return row._replace(name=f"{row.name}_queries", asked=f"query={number} trainer.test_episodes=3000", said=said)


def shuffled(row: Row, tasks: tuple[str, ...], why: str = "") -> Row:
    """A row trained for these tasks with characters of the training and the test shuffled."""
    return row._replace(
        name=f"{row.name}_shuffled", trainings={tasks: SHUFFLED}, said="split at random", folder=f"{row.preset}_shuffled", why=why
    )


STEPS = "algo.inner_steps=5 algo.test_steps=5"  # the paper's, at 20 ways
MAML = {
    FIVE: "",
    TWENTY: f"way=20 {STEPS} episode.train.query=1 trainer.meta_batch=4 trainer.iterations=5000",
}
MAML_FULL = {
    ("5w1s",): "",
    ("5w5s",): "shot=5",
    ("20w1s",): f"way=20 {STEPS} trainer.meta_batch=16",
    ("20w5s",): f"way=20 shot=5 {STEPS} trainer.meta_batch=16",
}
FEW = "episode.train.query=2 episode.eval.query=5 trainer.test_episodes=300"  # where an episode costs seconds
FILTERS = "the paper's net has 96, 192, 384 and 512 filters and joins the maps of two blocks; ours 64 in each"
SHUFFLED = "data.split=random"
MAMLS = [  # whose authors' programs ask few queries of a class, which are normalised together
    (Row("maml", "omniglot_maml", figures("98.7", "99.9", "95.8", "98.9"), MAML,
         why="60000 iterations of 32 tasks in the paper, for each task; for one-shot training at 5 shots see below"), "{shot}"),
    (Row("fomaml", "omniglot_fomaml", figures("98.3", "99.2", "89.4", "97.9"), MAML, why="as of maml"), "{shot}"),
    (Row("reptile", "omniglot_reptile", figures("97.68", "99.48", "89.43", "97.12"),
         by_way("algo.inner_batch=20 algo.inner_steps=10")), "1"),
    (Row("mamlpp", "omniglot_mamlpp", figures("99.47", "~99.93", "97.65", "99.33"), by_way("episode.train.query=1 trainer.meta_batch=4"),
         why="the paper's figures are of five checkpoints that answer together"), "1"),
    (Row("metacurvature", "omniglot_metacurvature", figures("99.97", "99.89", "99.12", "99.65"), by_way("trainer.meta_batch=4")), "{shot}"),
    (Row("imaml", "omniglot_imaml", figures("99.16", "99.67", "94.46", "98.69"),
         by_way("episode.train.query=1 trainer.meta_batch=4"), why="see above"), "{shot}"),
]  # fmt: skip
METASGD = Row("metasgd", "omniglot_metasgd", figures("99.53", "99.93", "95.93", "98.97"), by_way("trainer.meta_batch=4"),
              why="one-shot training for both shots, as in the paper at 5 ways")  # fmt: skip
RELATION = Row("relation", "omniglot_relation", figures("99.6", "99.8", "97.6", "99.1"), ONCE,
               why="its authors split at random, see the next row, and keep the checkpoint that is best on test classes")  # fmt: skip
OMNIGLOT = [
    Row("protonet", "omniglot_protonet", figures("98.8", "99.7", "96.0", "98.9"), ONCE),
    *(each for row, number in MAMLS for each in (row, queried(row, number))),
    METASGD,
    shuffled(METASGD, FIVE),
    Row("r2d2", "omniglot_r2d2", figures("~98.9", "~99.7", "~96.5", "~99"), ONCE, why=FILTERS),
    Row("metaoptnet", "omniglot_metaoptnet", {}, ONCE),
    Row("matching", "omniglot_matching", figures("98.1", "98.9", "93.8", "98.5"), ONCE,
        why="cosines are divided by 0.03, the paper's are not"),
    RELATION,
    shuffled(RELATION, ALL, why="its authors keep the checkpoint that is best on test classes"),
    Row("siamese", "omniglot_siamese", figures("97.3", "98.4", "88.2", "97.0"), ONCE,
        why="the paper's figures are after fine-tuning on the support"),
    Row("anil", "omniglot_anil", figures("", "", "96.2", "98.0"), by_way("episode.train.query=1 trainer.meta_batch=8")),
    Row("nil", "omniglot_anil", figures("", "", "96.7", "98.0"), by_way("episode.train.query=1 trainer.meta_batch=8"),
        asked="algo.head_at_test=false", said="the runs of anil"),
    Row("snail", "omniglot_snail", figures("99.07", "99.78", "97.64", "99.36"),
        {("5w1s",): "", ("5w5s",): "shot=5 trainer.meta_batch=4",
         ("20w1s",): f"way=20 trainer.meta_batch=4 {FEW}",
         ("20w5s",): f"way=20 shot=5 trainer.meta_batch=1 trainer.iterations=1000 {FEW}"}, why="see above"),
    Row("metanet", "omniglot_metanet", figures("98.95", "", "97.0", ""), {("5w1s",): "", ("20w1s",): "way=20 trainer.meta_batch=2"},
        why="development accuracy rises up to the last iteration"),
    Row("gnn", "omniglot_gnn", figures("99.2", "99.7", "97.4", "99.0"),
        {FIVE: SHUFFLED, TWENTY: f"{SHUFFLED} way=20 trainer.meta_batch=1 {FEW}"},
        said="split at random, as by its authors", folder="omniglot_gnn_shuffled"),
    Row("versa", "omniglot_versa", figures("~99.70", "~99.75", "~97.66", "98.77"), ONCE),
    Row("lrd2", "omniglot_lrd2", {}, ONCE),
    Row("cavia", "omniglot_cavia", {}, {FIVE: ""}),
    Row("leo", "omniglot_leo", {}, ONCE),
    Row("protomaml", "omniglot_protomaml", {}, ONCE),
    Row("baseline", "omniglot_baseline", {}, ONCE),
    Row("baselinepp", "omniglot_baselinepp", {}, ONCE),
    Row("nearest", "omniglot", figures("~41.7", "~63.2", "~26.7", "~42.6"), {ALL: "algo=nearest"}, said="pixels, no training",
        folder="omniglot_nearest"),
    Row("protonet_full", "full/omniglot_protonet", figures("98.8", "99.7", "96.0", "98.9"), ONCE, said="the paper's budget, a GPU's work"),
    Row("maml_full", "full/omniglot_maml", figures("98.7", "99.9", "95.8", "98.9"), MAML_FULL, said="the paper's budget, a GPU's work"),
]  # fmt: skip
CIFAR = [
    Row("cifar_protonet", "cifar_fs_protonet", {"5w1s": "55.5", "5w5s": "72.0"}, {FIVE: ""}),
    Row("cifar_maml", "cifar_fs_maml", {"5w1s": "58.9", "5w5s": "71.5"}, {FIVE: ""}, why="one-shot training for both shots, for time"),
    Row("cifar_r2d2", "cifar_fs_r2d2", {"5w1s": "60.0", "5w5s": "76.1"}, {FIVE: ""}),
    Row("cifar_baseline", "cifar_fs_baseline", {}, {FIVE: ""}),
    Row("cifar_nearest", "cifar_fs", {}, {FIVE: "algo=nearest"}, said="pixels, no training", folder="cifar_fs_nearest"),
]
PRESENTED = [Row("mann", "omniglot_mann", {"2nd": "82.8", "5th": "94.9"}, {("2nd", "5th"): ""}, asked="protocol=presentations")]
MEASURES = {"2nd": "presentation_2", "5th": "presentation_5"}  # of other tasks it is the accuracy
CHANCE = {"5w1s": "20", "5w5s": "20", "20w1s": "5", "20w5s": "5"}
TABLES = {"omniglot": (OMNIGLOT, ALL), "presentations": (PRESENTED, ("2nd", "5th")), "cifar_fs": (CIFAR, FIVE)}
ROWS = {row.name: row for rows, _ in TABLES.values() for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", help="folder with the Omniglot archives")
    parser.add_argument("--cifar", help="folder with the images of CIFAR-FS")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="NAME", default=[*ROWS], help=f"rows: {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each, with the seeds from 0 on")
    parser.add_argument("--runs", type=Path, default=Path("outputs/papers"), help="where the runs are kept")
    parser.add_argument("--write", action="store_true", help="write docs/papers.md from finished runs, and train nothing")
    options = parser.parse_args()
    records = kept(options.runs)
    if options.write:
        KEPT.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        for name, (rows, tasks) in TABLES.items():
            put(PAGE, name, written(rows, tasks, records))
        return
    for seed in range(options.seeds):
        for row in map(ROWS.__getitem__, options.only):
            root = options.cifar if "cifar" in row.preset else options.omniglot
            if not root:
                sys.exit(f"where are the images of {row.name}? give --{'cifar' if 'cifar' in row.preset else 'omniglot'} PATH")
            for training in row.trainings:
                spot, tests = place(row, training, seed), [asked(row, training, task) for task in training]
                if not {*map(evaluation, tests)} <= records.get(spot, {}).get("tests", {}).keys():
                    folder = options.runs / spot
                    finished([*words(row, training, seed), f"data.root={root}", "logger=quiet"], folder)
                    for test in tests:
                        evaluated(folder, test)
                    records[spot] = record(folder)
                print(cells(row, training, records), flush=True)


def words(row: Row, training: tuple[str, ...], seed: int = 0) -> list[str]:
    """What trains a row for its tasks."""
    return [f"experiment=paper/{row.preset}", *row.trainings[training].split(), *([f"seed={seed}"] if seed else [])]


def place(row: Row, training: tuple[str, ...], seed: int) -> str:
    """The folder of a training; rows that differ in their tests alone share it."""
    return f"{row.folder or row.preset.replace('/', '_')}-{training[0]}-{seed}"


def seeds(row: Row, training: tuple[str, ...], places: Iterable[str]) -> dict[int, str]:
    """The places of a training among these, by seed."""
    stem = place(row, training, 0)[:-1]
    return {int(spot.removeprefix(stem)): spot for spot in sorted(places) if spot.startswith(stem) and spot.removeprefix(stem).isdecimal()}


def asked(row: Row, training: tuple[str, ...], task: str) -> str:
    """The words of the evaluation of a task; none: it is the run's own test."""
    return " ".join(filter(None, [TASKS.get(task, "") if task != training[0] else "", row.asked.format(shot=task[-2])]))


def kept(runs: Path) -> Records:
    """What was found with today's presets, as the finished trainings in ``runs`` have it, and docs/papers.json of the others.

    Raises:
        SystemExit: a folder holds a run with other settings than the preset has.
    """
    before: Records = read(KEPT) if KEPT.is_file() else {}
    here = {file.parent.name for file in runs.glob("*/summary.json")}
    records: Records = {}
    for row, training in [(each, tasks) for each in ROWS.values() for tasks in each.trainings]:
        for seed, spot in seeds(row, training, {*before, *here} - {*records}).items():
            typed = words(row, training, seed)
            if spot in here:
                finished(typed, runs / spot)
                records[spot] = record(runs / spot)
            elif settings((values := resolve(compose(typed))) | legacy.updated(before[spot]["settings"])) == settings(values):
                records[spot] = before[spot]
            else:
                print(f"{spot} was found with other settings than its preset has today, and is left out", file=sys.stderr)
    return records


def record(folder: Path) -> dict[str, Any]:
    """Of a finished training: its settings, what it took, and what each test found, by the name of its file."""
    values, summary = read_config(folder), read(folder / "summary.json")
    values["data"] |= {key: None for key in values["data"] if key == "root"}  # where its data lay is nobody's concern
    tests = {file.name: read(file)["test"] for file in (folder / "summary.json", *sorted(folder.glob("eval-*.json")))}
    return {
        "settings": {key: values[key] for key in SETTINGS},
        **{key: summary[key] for key in TOOK},
        "tests": {name: {key: test[key] for key in ("accuracy", *MEASURES.values()) if key in test} for name, test in tests.items()},
    }


def found(row: Row, training: tuple[str, ...], records: Records) -> list[dict[str, Any]]:
    """The records of a row's trainings, seed by seed."""
    return [records[spot] for spot in seeds(row, training, records).values()]


def accuracies(row: Row, training: tuple[str, ...], task: str, records: Records) -> list[dict[str, float]]:
    """Mean and interval of a task, seed by seed."""
    tests = [each["tests"].get(evaluation(asked(row, training, task))) for each in found(row, training, records)]
    return [test[MEASURES.get(task, "accuracy")] for test in tests if test]


def cell(paper: str, scores: list[dict[str, float]]) -> str:
    """The paper's figure, ours in %, and how far it is above the paper's: of one training with 1.96 standard errors over its episodes, of
    several with their standard deviation."""
    theirs = paper or "–"
    if not scores:
        return f"{theirs} → {NOT_RUN}"
    means = [100 * score["mean"] for score in scores]
    mean, spread = statistics.mean(means), statistics.stdev(means) if len(means) > 1 else 100 * scores[0]["ci95"]
    difference = f" ({mean - float(paper.lstrip('~')):+.2f})".replace("-", "−") if paper else ""
    return f"{theirs} → {mean:.2f} ± {spread:.2f}{difference}"


def cells(row: Row, training: tuple[str, ...], records: Records) -> str:
    """A training's tasks in one line."""
    return "  ".join(f"{task} {cell(row.paper.get(task, ''), accuracies(row, training, task, records))}" for task in training)


def line(row: Row, tasks: tuple[str, ...], records: Records) -> list[str]:
    """A row of a table, as text of its cells."""
    scores = {task: accuracies(row, training, task, records) for training in row.trainings for task in training}
    found_here = {task: cell(row.paper.get(task, ""), each) for task, each in scores.items()}
    summaries = [found(row, training, records) for training in row.trainings]
    done = [each for each in summaries if each]
    budget = "; ".join(f"{each[0]['iterations']}, {statistics.mean(s['wall_s'] for s in each) / 60:.0f} min" for each in done)
    number = "/".join(dict.fromkeys(str(len(each)) for each in done))
    name = f"{row.name} ({row.said})" if row.said else row.name
    mode = done[0][0]["bn_mode"] if done else "–"
    return [name, *(found_here.get(task, "–") for task in tasks), mode, budget or "–", number or "–", row.why or "–"]


def written(rows: list[Row], tasks: tuple[str, ...], records: Records) -> str:
    """The rows in Markdown, chance beneath them, and the commands of their trainings and tests."""
    lines = [line(row, tasks, records) for row in rows]
    if set(tasks) <= CHANCE.keys():
        lines.append(["chance", *(CHANCE[task] for task in tasks), *["–"] * 4])
    text = "\n".join(table(["method", *tasks, "norm", "iterations, wall", "seeds", "what is known to differ from the paper"], lines))
    commands: dict[str, list[str]] = {}
    for row in rows:
        for training in row.trainings:
            tests = commands.setdefault(f"metarun {' '.join(words(row, training))} data.root=PATH", [])
            tests += [f"    metarun eval RUN {test}" for task in training if (test := asked(row, training, task))]
    return (
        text + "\n\n```\n" + "".join(f"{line}\n" for typed, tests in commands.items() for line in (typed, *dict.fromkeys(tests))) + "```\n"
    )


if __name__ == "__main__":
    main()
