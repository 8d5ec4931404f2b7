"""Runs every command behind docs/results.md and writes the page from what they print; finished runs are not repeated.

python scripts/reproduce.py --omniglot ../shared/omniglot [--runs outputs/results]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
# name, training command, then evaluations of the trained run: what they are called, and their words
OMNIGLOT: list[tuple[str, str, dict[str, str]]] = [
    ("protonet", "experiment=omniglot_small_protonet", {"5w1s": "", "5w5s": "shot=5", "20w1s": "way=20"}),
    ("maml-1shot", "experiment=omniglot_small_maml", {"5w1s": ""}),
    ("maml-5shot", "experiment=omniglot_small_maml_5shot", {"5w5s": ""}),
    ("pretrain", "experiment=omniglot_small_pretrain", {"5w1s": "", "5w5s": "shot=5"}),
]
SINUSOID = [
    ("maml", "experiment=sinusoid_maml"),
    ("pretrain", "experiment=sinusoid_pretrain"),
]
STEPS = (0, 1, 5, 10)

Summary = dict[str, Any]


def run(words: list[str]) -> Summary:
    """One metarun command; its summary is the last line of stdout."""
    print("metarun", *words, flush=True)
    done = subprocess.run([sys.executable, "-m", "metarun", *words, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def trained(folder: Path, words: list[str]) -> Summary:
    """The summary of a training run, from its folder where it is finished already."""
    summary = folder / "summary.json"
    if summary.is_file():
        return json.loads(summary.read_text(encoding="utf-8"))
    if (folder / "checkpoints" / "last.pt").is_file():
        return run(["resume", str(folder)])
    return run([*words, f"hydra.run.dir={folder}"])


def evaluated(folder: Path, words: str) -> Summary:
    """The summary of ``metarun eval`` under these words, from the run's folder where it was done already."""
    if not words:
        return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    kept = folder / f"eval-{words.replace(' ', '-')}.json"
    if not kept.is_file():
        kept.write_text(json.dumps(run(["eval", str(folder), *words.split()])), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def omniglot(runs: Path, root: str) -> list[str]:
    """The Omniglot table."""
    lines = [
        "## Real Omniglot, `data.split=small`",
        "",
        "Train Balinese, Greek, Japanese, Korean, Sanskrit (708 classes with rotations), develop on Early Aramaic (88), test on Latin and",
        "Tagalog (172); test classes are rotated as well. The checkpoint is the best on 200 development episodes; the test is run once.",
        "Accuracy in %, ± is 1.96 standard errors over 1000 test episodes, 15 queries per class, seed 0.",
        "",
        "| method | task | accuracy % | norm | training | wall, training and first test |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    commands = []
    for name, words, evaluations in OMNIGLOT:
        folder = runs / name
        summary = trained(folder, [*words.split(), f"data.root={root}"])
        commands.append(f"metarun {words} data.root=PATH")
        for task, changed in evaluations.items():
            result = evaluated(folder, changed)
            accuracy = result["test"]["accuracy"]
            kind = "transductive" if result["bn_mode"] == "batch" else "inductive"
            cells = [
                summary["algo"],
                task,
                f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['ci95']:.2f}",
                f"{result['bn_mode']} ({kind})",
                f"`{words}`, {summary['iterations']} iterations",
                f"{summary['wall_s']:.0f} s",
            ]
            lines.append(f"| {' | '.join(cells)} |")
            if changed:
                commands.append(f"metarun eval RUN {changed}")
    return [*lines, "", "```", *commands, "```", ""]


def sinusoid(runs: Path) -> list[str]:
    """The sinusoid table."""
    lines = [
        "## Sine waves, K = 10",
        "",
        "Mean squared error after gradient steps on 10 support points, on 50 query points; 1000 test tasks, ± 1.96 standard errors over",
        "tasks, seed 0, no norm; MLP 40-40. One inner step in training, step size 0.01.",
        "",
        "| method | " + " | ".join(f"{k} steps" for k in STEPS) + " | wall |",
        "| --- " * (len(STEPS) + 2) + "|",
    ]
    for name, words in SINUSOID:
        summary = trained(runs / f"sinusoid-{name}", words.split())
        curve = {point["step"]: point for point in summary["test"]["curve"]}
        cells = [f"{curve[k]['mean']:.3f} ± {curve[k]['ci95']:.3f}" for k in STEPS]
        lines.append(f"| {name} | {' | '.join(cells)} | {summary['wall_s']:.0f} s |")
    return [*lines, "", "```", *(f"metarun {words}" for _, words in SINUSOID), "```", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", required=True, help="folder with the Omniglot archives")
    parser.add_argument("--runs", type=Path, default=Path("outputs/results"), help="where the runs are kept")
    options = parser.parse_args()
    sections = [*omniglot(options.runs, options.omniglot), *sinusoid(options.runs)]
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU"
    head = [
        "# Results",
        "",
        "Every figure here was printed by the command beside it; this page is written by",
        "`python scripts/reproduce.py --omniglot PATH` and by nobody's hand.",
        f"Machine: {machine}. Wall times are those of this machine, and larger where it has other work to do.",
        "",
    ]
    PAGE.write_text("\n".join([*head, *sections]), encoding="utf-8")
    print(f"wrote {PAGE.name}")


if __name__ == "__main__":
    main()
