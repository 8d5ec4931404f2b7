"""Peak memory of a meta-training step at 5 and at 100 inner steps, each in a fresh process; prints what the step took, and the ratio.

python scripts/bench_imaml_memory.py [--algo imaml]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

# The peak so far holds what importing and building took; the step's own is what it adds to that.
STEP = """
import sys
from metarun.config.compose import compose, resolve
from metarun.run import Run
from metarun.runtime.memory import resident_peak
algo, steps = sys.argv[1:]
words = [f"algo={algo}", f"algo.inner_steps={steps}", "data.train_classes=100", "net.down=stride", "net.flatten=false", "engine.chunk=16"]
run = Run(resolve(compose(words)))
tasks = run.episodes("train").batch(range(16))
before = resident_peak()
run.engine.meta_gradient(run.algorithm, tasks, 0.0)
print(before, resident_peak())
"""


def step_megabytes(algo: str, steps: int) -> float:
    """What one step adds to the process, in MB."""
    done = subprocess.run([sys.executable, "-c", STEP, algo, str(steps)], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    print(f"{algo}, {steps} inner steps: {after:.0f} MB, of which the step {after - before:.0f} MB")
    return after - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="imaml")
    algo = parser.parse_args().algo
    few, many = (step_megabytes(algo, steps) for steps in (5, 100))
    print(f"ratio {many / few:.2f}")


if __name__ == "__main__":
    main()
