"""What precision=bf16 costs in accuracy and saves in time: the presets of MAML and ProtoNet on real Omniglot, trained at both precisions.

python scripts/bench_precision.py --omniglot ../shared/omniglot [--write]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_page import ACCURACY, write, written

PRESETS = {"maml": "omniglot_small_maml", "protonet": "omniglot_small_protonet"}
MOST = 0.005  # accuracy that bf16 may cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", type=Path, required=True, help="folder with the Omniglot archives")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the result into docs/benchmarks.*, which `make bench` has made")
    options = parser.parse_args()
    rows, costly = [], []
    for name, preset in PRESETS.items():
        for precision in ("fp32", "bf16"):
            words = [f"experiment={preset}", f"precision={precision}", f"data.root={options.omniglot.resolve()}", f"seed={options.seed}"]
            summary = trained([*words, "device=cpu"])
            row = {"method": name, "precision": precision, "accuracy": summary["test"]["accuracy"], "bn_mode": summary["bn_mode"]}
            rows.append(row | {key: summary[key] for key in ("wall_s", "tasks_per_s", "iterations", "seed")})
            print(row, f"{summary['wall_s']:.0f} s", flush=True)
        if rows[-2]["accuracy"]["mean"] - rows[-1]["accuracy"]["mean"] > MOST:
            costly.append(name)
    if options.write:
        found = written("cpu")
        write(found | {"works": found["works"] | {ACCURACY: {"rows": rows}}})
    if costly:
        sys.exit(f"bf16 costs more than {100 * MOST} points: {', '.join(costly)}")


def trained(words: list[str]) -> dict:
    """The summary of a run from the command line."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "metarun", *words, f"hydra.run.dir={folder}/run", "logger=quiet", "--json"]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
