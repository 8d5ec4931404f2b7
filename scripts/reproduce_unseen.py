"""Trains and tests what docs/unseen.md tells of CIFAR-FS classes that only words describe, prints its tables and keeps its picture.

python scripts/reproduce_unseen.py --images FOLDER --vectors FILE [--runs outputs/unseen] [--write]

FOLDER holds CIFAR-FS or CIFAR-100, FILE vectors of words. Finished runs are not repeated. --write puts table and picture into docs. The
penalty of seen classes is the best on development classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pages import PLAIN, finished, put
from PIL import Image
from reproduce_continual import measured, share

DOCS = Path(__file__).resolve().parents[1] / "docs"
BASE = "experiment=cifar_fs_zeroshot"
BODY = f"{BASE} algo=pretrain way=5 shot=1 episode.train.query=1"
MAPS = f"{BASE} init_from=BODY trainer.iterations=300 trainer.val_every=50 optim.lr=0.001"
ROWS = {
    "eszsl": f"{BASE} init_from=BODY algo=eszsl augment=none episode.train.query=10 algo.penalty=10",
    "relation_zeroshot": f"{MAPS} algo=relation_zeroshot",
    "protonet_zeroshot": f"{MAPS} algo.sizes=[] algo.unit=true",
}
ASKED = "way=20 query=20 trainer.test_episodes=20 protocol=[episodes,retrieval,generalized]"
CHANCE, LEAST, AIM = 1 / 20, 2.5, 4.0  # accuracy, and how many times it should be at least and is hoped to be
MEASURES = ("accuracy", "map", "precision_at_10", "class_map")
OF_BOTH = ("unseen", "seen", "harmonic", "ausuc")
SHOWN = "relation_zeroshot"  # whose first images are the picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="the folder of CIFAR-FS")
    parser.add_argument("--vectors", required=True, type=Path, help="vectors of words")
    parser.add_argument("--runs", type=Path, default=Path("outputs/unseen"), help="folder of the runs")
    parser.add_argument("--write", action="store_true", help="put table and picture into docs")
    options = parser.parse_args()
    described = f"data.attributes={options.vectors.resolve()}"
    body = options.runs.resolve() / "body"
    seconds = {"BODY": finished([*BODY.split(), described, f"data.root={options.images}", *PLAIN], body)["wall_s"]}
    found = {}
    for name, words in ROWS.items():
        folder = options.runs / name.replace(" ", "_")
        summary = finished([*words.replace("BODY", str(body)).split(), described, f"data.root={options.images}", *PLAIN], folder)
        seconds[name] = summary["wall_s"]
        development = measured(folder, "protocol=generalized query=20 trainer.val_episodes=20", "val")
        penalty = round(development["penalty_best"]["mean"], 2)
        asked = f"{ASKED} protocol.generalized.penalty={penalty}"
        found[name] = measured(folder, asked) | {"val": summary["val"]["accuracy"], "penalty": penalty}
        if name == SHOWN and options.write:
            measured(folder, f"{asked} logger.pictures=true")
            picture = next(folder.glob("asked/*pictures=true/retrieval.png"))
            with Image.open(picture) as whole:  # as small as a page needs
                whole.thumbnail((600, 1200))
                whole.convert("RGB").quantize(64).save(DOCS / "pictures" / "retrieval.png", optimize=True)
    text = table(found, seconds)
    print(text)
    if options.write:
        put(DOCS / "unseen.md", "unseen", text)


def table(found: dict[str, Any], seconds: dict[str, float]) -> str:
    chance = 100 * next(iter(found.values()))["map_chance"]["mean"]
    text = (
        "The 20 test classes: accuracy over 20 episodes of 20 images of each, mAP over all of their images (± over classes), seed 0; and "
        "the 16 development classes, by which checkpoints and settings were chosen.\n\n"
        "| | development, % | accuracy, % | mAP, % | precision at 10, % | image to classes, mAP, % | training |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    for name, row in found.items():
        cells = [share(row["val"]), *(share(row[measure]) for measure in MEASURES)]
        text += f"| {name} | {' | '.join(cells)} | {seconds[name]:.0f} s |\n"
    text += f"| chance | 6.2 | 5.0 | {chance:.1f} | 5.0 | 18.0 | – |\n| one who knows the classes | 100 | 100 | 100 | 100 | 100 | – |\n\n"
    text += f"All begin with the net of `algo=pretrain` ({seconds['BODY']:.0f} s), which told the 64 training classes apart.\n"
    text += verdict(found)
    text += (
        "\nGeneralised: 84 classes, 64 of them seen in training, in 20 images each that were not; the penalty of seen classes is the best "
        "of development.\n\n| | unseen, % | seen, % | harmonic mean, % | area, % | penalty |\n| --- | --- | --- | --- | --- | --- |\n"
    )
    for name, row in found.items():
        text += f"| {name} | {' | '.join(share(row[measure]) for measure in OF_BOTH)} | {row['penalty']:.2f} |\n"
    lines = [f"metarun {BODY} data.root=FOLDER data.attributes=FILE"]
    for name, words in ROWS.items():
        lines.append(f"metarun {words} data.root=FOLDER data.attributes=FILE")
        lines.append(f"    metarun eval RUN {ASKED} protocol.generalized.penalty={found[name]['penalty']}")
    return text + "\n```\n" + "\n".join(lines) + "\n```\n"


def verdict(found: dict[str, Any]) -> str:
    """How many times chance the row is that is best on development classes."""
    name = max(found, key=lambda name: found[name]["val"]["mean"])
    row = found[name]
    times = row["accuracy"]["mean"] / CHANCE, row["map"]["mean"] / row["map_chance"]["mean"]
    return (
        f"The best on development classes, {name}, has {times[0]:.1f} times the accuracy of chance and {times[1]:.1f} times its mAP "
        f"({LEAST:g} times was asked for, {AIM:g} times hoped for).\n"
    )


if __name__ == "__main__":
    main()
