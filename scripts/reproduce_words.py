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
from pages import finished, put

import metarun
from metarun.config import schema
from metarun.config.stored import read_config
from metarun.protocols.verification import roc

PAGE = Path(__file__).resolve().parents[1] / "docs" / "text-speech.md"
PLAIN = ["device=cpu", "logger=quiet"]
Row = tuple[str, str, list[str]]  # what a row is called, the words of its run, and those of its evaluations

INTENTS = "experiment=text_intents"
SHAPES = ["", "shot=1 trainer.test_episodes=300", "way=20 trainer.test_episodes=100"]  # of the evaluations; the first is the run's own test
TEXT: list[Row] = [
    ("nearest mean of n-grams, nothing learned", f"{INTENTS} algo=protonet ~algo.penalty net.size=0", SHAPES),
    ("r2d2", INTENTS, SHAPES),
]
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
        tables["text"] = table(options.runs, options.intents, TEXT, heads, ["accuracy"]) + out_of_scope(options.runs, options.intents)
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
        folder = runs / re.sub(r"[^\w.]+", "-", words)
        summary = finished([*words.split(), f"data.root={root}", *PLAIN], folder)
        cells = [score(tested(folder, asked, summary)["test"][measure], measure) for asked in evaluations for measure in measures]
        text += f"| {name} | {' | '.join(cells)} | {summary['wall_s']:.0f} s |\n"
        commands += [f"metarun {words} data.root=PATH", *(f"    metarun eval RUN {asked}" for asked in evaluations if asked)]
    return text + "\n```\n" + "\n".join(commands) + "\n```\n"


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


def out_of_scope(runs: Path, root: str, shots: int = 5, queries: int = 15) -> str:
    """How well the largest probability tells requests of the 50 unseen intents from those that are of no intent.

    The learner adapts to the first ``shots`` texts of all 50 intents; AUROC over the next ``queries`` of each against CLINC150's test of
    out-of-scope requests.
    """
    words = TEXT[-1][1]
    folder = runs / re.sub(r"[^\w.]+", "-", words)
    data = schema.validate(read_config(folder)).data.build(0)
    part, model = data.splits["test"], metarun.load(folder)
    rows = [part.images[first : first + shots + queries].numpy() for first in part.starts]
    fitted = model.adapt(np.concatenate([row[:shots] for row in rows]), np.repeat(part.names, shots))
    with zipfile.ZipFile(root) as archive:
        name = next(name for name in archive.namelist() if name.endswith("CLINC150/oos_test.jsonl"))
        outside = [json.loads(line)["text"] for line in archive.read(name).decode().splitlines() if line.strip()]
    inside = fitted.probabilities(np.concatenate([row[shots:] for row in rows])).amax(1).numpy()
    area = roc(inside, fitted.probabilities(outside).amax(1).numpy()).auc
    return (
        f"\nRequests of no intent (`oos_test.jsonl`, {len(outside)}) are told from those of the {len(rows)} unseen intents, {shots} texts "
        f"of each being known, by the largest probability: AUROC {area:.3f} (`r2d2`; chance 0.5).\n"
    )


if __name__ == "__main__":
    main()
