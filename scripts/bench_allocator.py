"""Time of a MAML step with and without ``metarun.runtime.allocator``, in turn, each in fresh processes; prints the ratio.

python scripts/bench_allocator.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

STEP = """
import sys, time, torch
import metarun.run as run
from metarun.config.compose import compose, resolve
if sys.argv[1] == "default":
    run.keep_freed_memory = lambda: False
words = ["algo=maml", "data.train_classes=100", "net.down=stride", "net.flatten=false", "shot=5", "episode.train.query=5"]
built = run.Run(resolve(compose(words)))
tasks = built.episodes("train").batch(range(16))
seconds = []
for _ in range(6):
    begun = time.perf_counter()
    built.engine.meta_gradient(built.algorithm, tasks, 0.0)
    seconds.append(time.perf_counter() - begun)
print(min(seconds[1:]))
"""


def step_seconds(kind: str) -> float:
    done = subprocess.run([sys.executable, "-c", STEP, kind], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    ratios = []
    for i in range(rounds):
        default, kept = step_seconds("default"), step_seconds("kept")
        ratios.append(default / kept)
        print(f"round {i + 1}: default {1e3 * default:.0f} ms, kept {1e3 * kept:.0f} ms, ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), 16 tasks, 5-way 5-shot, Conv4-64")


if __name__ == "__main__":
    main()
