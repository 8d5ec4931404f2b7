"""What TorchScript's interpreter gains in a recorded step: the same operators called by it and by Python, in turn, in one process.

python scripts/bench_script.py [--rounds 30] [--write]

Of each work the recorded meta-gradient of one chunk of tasks, with kernels and on one thread; a ratio is the median over rounds.
``--write`` puts the table into docs/speed.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import WORKS, maml
from pages import put

from metarun.config.compose import compose, resolve
from metarun.run import Run
from metarun.runtime.allocator import keep_freed_memory
from metarun.runtime.program import Program
from metarun.runtime.recording import EAGER

PAGE = Path(__file__).resolve().parents[1] / "docs" / "speed.md"
CASES = {  # words, and how many tasks
    "MAML on sine waves, 1 step": (["experiment=sinusoid_maml"], 25),
    "Bayesian MAML on sine waves": (["experiment=bmaml_sinusoid"], 10),
    "ALPaCA on sine waves": (["experiment=sinusoid_alpaca"], 25),
    "MAML, Conv4-64, 5-way 1-shot 1-query": (maml(5, 1, 1, 1), 4),
    "ProtoNet, Conv4-64, 20-way 1-shot 5-query": (WORKS["W6"].words, 4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--write", action="store_true", help="put the table into docs/speed.md")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    head = ["a recorded step", "operators", "calls from Python", "ms", "ms, every operator from Python", "times as fast"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name, (words, tasks) in CASES.items():
        program, inputs = recorded([*words, "device=cpu", "engine.threads=1"], tasks)
        plain = Program(program.operations, program.inputs, program.result, script=False)
        ours, others = zip(*([seconds(each, inputs) for each in (program, plain)] for _ in range(options.rounds)))
        ratio = statistics.median(other / own for own, other in zip(ours, others))
        times = " | ".join(f"{1e3 * statistics.median(row):.2f}" for row in (ours, others))
        lines.append(f"| {name} | {len(program.operations)} | {len(program.lines) - 2} | {times} | {ratio:.2f} |")
        print(lines[-1], flush=True)
    text = "\n".join([*lines, ""])
    if options.write:
        put(PAGE, "script", text)


def recorded(words: list[str], count: int) -> tuple[Program, list[torch.Tensor]]:
    """The program of a meta-gradient of so many tasks, and what it is called with."""
    run = Run(resolve(compose(words)))
    tasks = run.episodes("train").batch(range(count))
    for _ in range(EAGER + 3):
        run.engine.meta_gradient(run.algorithm, tasks, 0.0)
    assert run.engine.executor.recordings
    entry = next(entry for entry in run.engine.executor.recordings.entries[run.algorithm].values() if entry.program or entry.why_not)
    program, seen = entry.program, list[Any]()
    assert isinstance(program, Program), entry.why_not
    entry.program = lambda inputs: seen.append(inputs) or program(inputs)  # type: ignore[assignment]
    run.engine.meta_gradient(run.algorithm, tasks, 0.0)
    return program, seen[0]


def seconds(program: Callable[[list[torch.Tensor]], Any], inputs: list[torch.Tensor]) -> float:
    """Of one call, the best of three."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        program(inputs)
        taken.append(time.perf_counter() - start)
    return min(taken)


if __name__ == "__main__":
    main()
