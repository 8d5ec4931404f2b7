"""The tables of docs/imagined-data.md: imagined, adversarial and augmented data against what they are built on, episode by episode.

python scripts/reproduce_imagined.py --omniglot ../shared/omniglot --cifar ../shared/cifar_fs [--runs FOLDER] [--only TABLE] [--write]

Every line is a run of metarun, of one thread; finished ones are not repeated. --write: the tables go to docs/imagined-data.md.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import ONE_THREAD, finished, put

PAGE = Path(__file__).resolve().parents[1] / "docs" / "imagined-data.md"
FEW = "net.hidden=32 trainer.iterations=200 trainer.val_every=200 trainer.val_episodes=200 trainer.test_episodes=600"
OMNIGLOT = f"experiment=omniglot_small_protonet {FEW}"
PHOTOS = f"data=cifar_fs net.norm=running episode.train.way=20 episode.train.query=5 optim.lr=0.002 trainer.meta_batch=2 {FEW}"
ONESHOT = f"experiment=omniglot_oneshot_protonet {FEW}"
SLIGHT = "algo.copies=3 algo.operations=[rotate,scale,shear,shift] algo.gate=straight algo.probability=0.1 algo.strength=0.1"
WHOLE = (
    "episode=dataset data=omniglot data.split=minimal1 data.rotate_test=false data.within_alphabet=true way=10 shot=5 query=10 "
    "net.hidden=16 net.down=stride net.flatten=false net.norm=batch algo=learned_augment algo@algo.member=hyperparameters "
    "algo.member.rate=0.1 algo.member.inner_steps=40 algo.member.test_steps=40 trainer.meta_batch=2 "
    "trainer.iterations=40 trainer.val_every=40 trainer.val_episodes=20 trainer.test_episodes=100 optim.lr=0.03"
)


def member(name: str, algo: str) -> str:
    """A method around another one."""
    return f"algo={algo} algo@algo.member={name}"


# By table and by name: a run's words; and below, what each is compared with.
RUNS = {
    "omniglot": {
        "protonet": OMNIGLOT,
        "imaginary, protonet": f"{OMNIGLOT} {member('protonet', 'imaginary')}",
        "metagan, protonet": f"{OMNIGLOT} {member('protonet', 'metagan')} algo.weight=0.005",
        "r2d2": f"{OMNIGLOT} algo=r2d2",
        "imaginary, r2d2": f"{OMNIGLOT} {member('r2d2', 'imaginary')}",
    },
    "cifar": {
        "protonet": f"{PHOTOS} algo=protonet",
        "imaginary, protonet": f"{PHOTOS} {member('protonet', 'imaginary')}",
    },
    "augment": {
        "augment=none": f"{ONESHOT} augment=none",
        "augment=characters": ONESHOT,
        "learned": f"{ONESHOT} augment=none {member('protonet', 'learned_augment')} {SLIGHT}",
    },
    "whole": {
        "none": f"{WHOLE} algo.copies=0",
        "as it begins": f"{WHOLE} algo.keep=false algo.policy_lr=1e-9",
        "learned": f"{WHOLE} algo.keep=false",
    },
}
BASE = {
    "omniglot": {"imaginary, protonet": "protonet", "metagan, protonet": "protonet", "imaginary, r2d2": "r2d2"},
    "cifar": {"imaginary, protonet": "protonet"},
    "augment": {
        "augment=characters": "augment=none",
        "learned": "augment=none",
    },
    "whole": {"as it begins": "none", "learned": "none"},
}
SHOWN = {
    "omniglot": "Omniglot, split `small`, 5-way 1-shot",
    "cifar": "CIFAR-FS, 5-way 1-shot",
    "augment": "Omniglot, trained on `minimal1`, within-alphabet 20-way 1-shot on alphabets of `minimal2`",
    "whole": "Omniglot, `minimal1`, nets trained from random weights on 10 characters x 5 drawings of alphabets of `minimal2`",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", required=True, help="folder of the Omniglot archives")
    parser.add_argument("--cifar", required=True, help="folder of CIFAR-FS")
    parser.add_argument("--runs", type=Path, default=Path("outputs/imagined"), help="folder of the runs")
    parser.add_argument("--only", choices=RUNS, help="one of the tables")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/imagined-data.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for table in [options.only] if options.only else RUNS:
        root = options.cifar if table == "cifar" else options.omniglot
        folders = {name: options.runs / table / re.sub(r"\W+", "-", name) for name in RUNS[table]}
        found = {}
        for name, words in RUNS[table].items():
            found[name] = finished([*words.split(), f"data.root={root}", *ONE_THREAD], folders[name])
            print(table, name, row(table, found, folders, name), f"{found[name]['wall_s']:.0f} s", flush=True)
        text = page(table, found, folders)
        print(text)
        if options.write:
            put(PAGE, table, text)


def row(table: str, found: dict[str, dict[str, Any]], folders: dict[str, Path], name: str) -> list[str]:
    """Accuracy in per cent, and by how much it differs from that of the base on the same episodes."""
    accuracy = found[name]["test"]["accuracy"]
    base = BASE[table].get(name)
    if base is None:
        return [percent(accuracy), "–"]
    if found[name]["episodes_sha256"] != found[base]["episodes_sha256"]:
        sys.exit(f"{folders[name]} and {folders[base]} were tested on other episodes")
    difference = np.load(folders[name] / "test_scores.npy").astype(float) - np.load(folders[base] / "test_scores.npy")
    ci95 = 1.96 * difference.std() / math.sqrt(len(difference))
    return [percent(accuracy), f"{100 * difference.mean():+.2f} ± {100 * ci95:.2f} of {base}"]


def percent(score: dict[str, float]) -> str:
    """A fraction with its interval, in per cent."""
    return f"{100 * score['mean']:.2f} ± {100 * score['ci95']:.2f}"


def page(table: str, found: dict[str, dict[str, Any]], folders: dict[str, Path]) -> str:
    """One row a run, in Markdown, the policies that were learned, and the commands."""
    first = next(iter(found.values()))
    text = f"{SHOWN[table]}, {first['test']['accuracy']['n']} episodes, seed {first['seed']}, norm {first['bn_mode']}; chance "
    text += f"{100 / first['way']:.0f} %.\n\n| | accuracy, % | difference, episode by episode |\n| --- | --- | --- |\n"
    for name in found:
        text += f"| {name} | {' | '.join(row(table, found, folders, name))} |\n"
    for name, summary in found.items():
        if name == "learned" and "augmentation" in summary["found"]:
            text += policy(summary["found"]["augmentation"])
    return text + "\n```\n" + "".join(f"metarun {words} data.root=PATH\n" for words in RUNS[table].values()) + "```\n"


def policy(rows: dict[str, dict[str, float]]) -> str:
    """A learned policy in Markdown."""
    columns = next(iter(rows.values()))
    text = f"\nThe policy that was learned:\n\n| | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}\n"
    return text + "".join(f"| {name} | {' | '.join(f'{number:.3g}' for number in row.values())} |\n" for name, row in rows.items())


if __name__ == "__main__":
    main()
