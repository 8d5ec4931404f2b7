"""Queries of no class on real Omniglot: trains what docs/predict.md has in its table of unknown queries, tests it, and prints the table.

python scripts/reproduce_unknown.py --omniglot ../shared/omniglot [--runs outputs/unknown] [--write]

Every line is a run of metarun and one evaluation of it; finished ones are not repeated. --write: the table goes to the page.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from reproduce import evaluated, trained  # beside this file

PAGE = Path(__file__).resolve().parents[1] / "docs" / "predict.md"
TABLE = re.compile(r"(<!-- unknown: .*? -->\n).*?(<!-- /unknown -->)", re.DOTALL)
SHORT = "trainer.iterations=400 trainer.val_every=200 trainer.val_episodes=100"
RUNS = {
    "nearest pixels": f"experiment=omniglot_small_protonet algo=nearest {SHORT}",
    "ProtoNet": f"experiment=omniglot_small_protonet {SHORT}",
    "pre-training, new head": f"experiment=omniglot_small_pretrain {SHORT}",
    "MAML": "experiment=omniglot_small_maml net.norm=support trainer.iterations=200 trainer.val_every=100 trainer.val_episodes=100",
}
SHOTS = (1, 5)
ASKED = "episode.unknown=5 shot={shot} trainer.test_episodes=300"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", required=True, help="folder with the two small background sets of Omniglot")
    parser.add_argument("--runs", type=Path, default=Path("outputs/unknown"), help="folder of the runs; finished ones are not repeated")
    parser.add_argument("--write", action="store_true", help="put the table into docs/predict.md")
    options = parser.parse_args()
    text = table({name: results(words, options.runs / name.replace(" ", "-"), options.omniglot) for name, words in RUNS.items()})
    print(text)
    if options.write:
        PAGE.write_text(TABLE.sub(lambda found: found[1] + text + found[2], PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def results(words: str, folder: Path, omniglot: str) -> dict[int, dict[str, Any]]:
    """The test of a run by shots."""
    trained(folder, [*words.split(), f"data.root={omniglot}"])
    return {shot: evaluated(folder, ASKED.format(shot=shot))["test"] for shot in SHOTS}


def table(found: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Accuracy of the known queries, and how well unknown ones are told from them, in Markdown, with the commands."""
    text = "| method | shots | accuracy, known | AUROC by belonging | by largest probability | unknown accepted at 95 % known |\n"
    text += "| --- | ---: |" + " ---: |" * 4 + "\n"
    for name, by_shot in found.items():
        for shot, scores in by_shot.items():
            columns = ("accuracy", "auroc_unknown", "auroc_unknown_softmax", "fpr_unknown")
            text += f"| {name} | {shot} | {' | '.join(with_error(scores[column]) for column in columns)} |\n"
    lines = [f"metarun {words} data.root=OMNIGLOT" for words in RUNS.values()]
    return text + "\n```\n" + "\n".join([*lines, *(f"metarun eval RUN {ASKED.format(shot=shot)}" for shot in SHOTS)]) + "\n```\n"


def with_error(value: dict[str, float]) -> str:
    """Mean and 95 % interval over episodes."""
    return f"{value['mean']:.4f} ± {value['ci95']:.4f}"


if __name__ == "__main__":
    main()
