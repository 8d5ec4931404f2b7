"""Trains and tests what docs/text-speech.md tells of texts, spoken digits, speakers and faces, and prints its tables.

python scripts/reproduce_words.py --intents intents.zip --speech fsdd.zip --faces FOLDER [--runs outputs/words] [--write]

Finished runs are not repeated. --write puts the tables into the page. A table whose data are not named is left as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from pages import PLAIN, finished, put

import metarun
from metarun.comparison.paired import pair
from metarun.comparison.runs import FinishedRun, read
from metarun.config import schema
from metarun.config.stored import read_config
from metarun.protocols.verification import roc

PAGE = Path(__file__).resolve().parents[1] / "docs" / "text-speech.md"
Row = tuple[str, str, list[str]]  # what a row is called, the words of its run, and those of its evaluations

INTENTS, SENTENCES = "experiment=text_intents", "experiment=text_sentences"
TRANSFORMER = f"{INTENTS} net=texttransformer net.words=16 algo.penalty=0.1 trainer.iterations=100 trainer.meta_batch=1"
SHAPES = ["", "shot=1 trainer.test_episodes=300", "way=20 trainer.test_episodes=100"]  # of the evaluations; the first is the run's own test
TEXT: list[Row] = [
    ("nearest mean of n-grams, nothing learned", f"{INTENTS} algo=protonet ~algo.penalty net.size=0", SHAPES),
    ("r2d2 on n-grams", INTENTS, SHAPES),
    ("r2d2 on texttransformer", TRANSFORMER, SHAPES),
    ("nearest mean of MiniLM, nothing learned here", f"{SENTENCES} algo=protonet net.project=false", SHAPES),
    ("protonet on MiniLM", f"{SENTENCES} algo=protonet", SHAPES),
    ("r2d2 on MiniLM", SENTENCES, SHAPES),
]
LEARNERS = [
    ("r2d2 on n-grams", "nearest mean of n-grams, nothing learned"),
    ("r2d2 on MiniLM", "nearest mean of MiniLM, nothing learned here"),
]  # rows of TEXT, each with that of the same features as they are
DIGITS = "experiment=speech_digits"
SPEECH: list[Row] = [
    ("nearest mean of spectrograms, nothing learned", f"{DIGITS} algo=protonet net=mlp net.sizes=[] ~net.hidden", ["", "shot=1"]),
    ("r2d2", DIGITS, ["", "shot=1"]),
]
SPEAKERS: list[Row] = [
    ("nearest mean of spectrograms, nothing learned", "experiment=speech_speakers net=mlp net.sizes=[] ~net.hidden", [""]),
    ("protonet", "experiment=speech_speakers", [""]),
    ("siamese", "experiment=speech_speakers algo=siamese", [""]),
]
FROZEN = "net=package ~net.hidden data.size=112 augment=none"
FACES: list[Row] = [
    ("nearest mean of pixels, nothing learned", "experiment=faces_protonet net=mlp net.sizes=[] ~net.hidden ~net.mirror", ["way=10"]),
    ("nearest mean of ImageNet's features, nothing learned", f"experiment=faces_protonet {FROZEN}", ["way=10"]),
    ("siamese on ImageNet's features", f"experiment=faces_siamese {FROZEN}", ["way=10"]),
    ("wccn on ImageNet's features", f"experiment=faces_protonet algo=wccn {FROZEN} episode.train.query=9", ["way=10"]),
    ("protonet", "experiment=faces_protonet", ["way=10"]),
    ("siamese", "experiment=faces_siamese", ["way=10"]),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intents", help="the archive with CLINC150")
    parser.add_argument("--speech", help="the archive or folder of spoken digits")
    parser.add_argument("--faces", help="the folder with the archive of ORL")
    parser.add_argument("--runs", type=Path, default=Path("outputs/words"), help="folder of the runs")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/text-speech.md")
    options = parser.parse_args()
    tables = {}
    if options.intents:
        heads = ["5-way 5-shot", "5-way 1-shot", "20-way 5-shot"]
        tables["text"] = table(options.runs, options.intents, TEXT, heads, ["accuracy"]) + gain(options.runs, heads)
        tables["text"] += out_of_scope(options.runs, options.intents)
    if options.speech:
        tables["speech"] = table(options.runs, options.speech, SPEECH, ["5-way 5-shot", "5-way 1-shot"], ["accuracy"])
        tables["speakers"] = table(options.runs, options.speech, SPEAKERS, ["2-way 5-shot"], ["accuracy", "auc", "eer"])
    if options.faces:
        tables["faces"] = table(options.runs, options.faces, FACES, ["10-way 1-shot"], ["accuracy", "auc", "eer"])
    for name, text in tables.items():
        print(f"\n{text}")
        if options.write:
            put(PAGE, name, text)


def table(runs: Path, root: str, rows: list[Row], heads: list[str], measures: list[str]) -> str:
    """The rows' scores in Markdown with 1.96 standard errors, and the commands."""
    columns = [head if measure == "accuracy" else measure.upper() for head in heads for measure in measures]
    text = f"| | {' | '.join(columns)} | training |\n| --- |{' --- |' * (len(columns) + 1)}\n"
    commands = []
    for name, words, evaluations in rows:
        folder = runs / named(words)
        summary = finished([*words.split(), f"data.root={root}", *PLAIN], folder)
        cells = [score(tested(folder, asked, summary)["test"][measure], measure) for asked in evaluations for measure in measures]
        text += f"| {name} | {' | '.join(cells)} | {summary['wall_s']:.0f} s |\n"
        commands += [f"metarun {words} data.root=PATH", *(f"    metarun eval RUN {asked}" for asked in evaluations if asked)]
    return text + "\n```\n" + "\n".join(commands) + "\n```\n"


def named(words: str) -> str:
    """The folder of the run of these words."""
    return re.sub(r"[^\w.]+", "-", words)


def score(value: dict[str, float], measure: str) -> str:
    """An accuracy in %, other measures as they are."""
    if measure == "accuracy":
        return f"{100 * value['mean']:.1f} ± {100 * value['ci95']:.1f} %"
    return f"{value['mean']:.3f} ± {value['ci95']:.3f}"


def tested(folder: Path, words: str, summary: dict[str, Any]) -> dict[str, Any]:
    """The summary of an evaluation under these words, which is kept in the run's folder."""
    if not words:
        return summary
    kept = folder / f"eval-{words.replace(' ', '-')}.json"
    if not kept.is_file():
        kept.write_text(json.dumps(metarun.evaluate(folder, words)), encoding="utf-8")
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def gain(runs: Path, heads: list[str]) -> str:
    """What ``LEARNERS`` add to the same features compared as they are, on the same episodes."""
    text = ""
    for learner, rival in LEARNERS:
        first, second = (runs / named(words_of(row)) for row in (learner, rival))
        found = []
        for head, asked in zip(heads, SHAPES, strict=True):
            sha = tested(first, asked, json.loads((first / "summary.json").read_text(encoding="utf-8")))["episodes_sha256"]
            one, other = (next(run for run in all_of(folder) if run.summary["episodes_sha256"] == sha) for folder in (first, second))
            found.append(f"{100 * pair([one], [other]).difference:+.2f} ± {100 * pair([one], [other]).ci95:.2f} ({head})")
        text += f"\n{learner} against {rival}, on the same episodes: {', '.join(found)}.\n"
    return text


def all_of(folder: Path) -> list[FinishedRun]:
    """A run and the evaluations of it."""
    return [run for run in map(read, [folder, *sorted(folder.glob("eval/*"))]) if run]


def words_of(row: str) -> str:
    """The words of the run in a row of ``TEXT``."""
    return next(words for name, words, _ in TEXT if name == row)


def out_of_scope(runs: Path, root: str, shots: int = 5, queries: int = 15) -> str:
    """How well the largest probability tells requests of the 50 unseen intents from those that are of no intent.

    The ``LEARNERS`` adapt to the first ``shots`` texts of all 50 intents; AUROC over the next ``queries`` of each against CLINC150's test
    of out-of-scope requests.
    """
    with zipfile.ZipFile(root) as archive:
        name = next(name for name in archive.namelist() if name.endswith("CLINC150/oos_test.jsonl"))
        outside = [json.loads(line)["text"] for line in archive.read(name).decode().splitlines() if line.strip()]
    found = []
    for learner, _ in LEARNERS:
        folder = runs / named(words_of(learner))
        part = schema.validate(read_config(folder)).data.build(0).splits["test"]
        rows = [part.images[first : first + shots + queries].numpy() for first in part.starts]
        fitted = metarun.load(folder).adapt(np.concatenate([row[:shots] for row in rows]), np.repeat(part.names, shots))
        inside = fitted.probabilities(np.concatenate([row[shots:] for row in rows])).amax(1).numpy()
        found.append(f"{roc(inside, fitted.probabilities(outside).amax(1).numpy()).auc:.3f} ({learner})")
    return (
        f"\nRequests of no intent (`oos_test.jsonl`, {len(outside)}) are told from those of the {len(rows)} unseen intents, {shots} texts "
        f"of each being known, by the largest probability: AUROC {', '.join(found)}; chance 0.5.\n"
    )


if __name__ == "__main__":
    main()
