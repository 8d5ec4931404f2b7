"""What an inner step costs in a long loop against a short one, and against learn2learn: all of it in turn, each in a process of its own.

python scripts/bench_steps.py [--rounds 5] [--threads 2] [--only train] [--peer]

Second-order MAML, Conv4-64 with strides, 5-way 1-shot 5-query: a meta-gradient of 8 tasks, a test of 16. Ratios are medians over rounds;
memory is the peak of the process above that before its first round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack, closing
from typing import NamedTuple

import torch
from bench import Answer, Process, Work, ask_on, interpreter, maml, prepare

from metarun.runtime.recording import EAGER

STEPS = (1, 5, 10, 20, 50, 100)
PEER_STEPS = (1, 5, 10, 20)  # longer ones take learn2learn seconds each, and as long per step


class Line(NamedTuple):
    """A loop to be measured."""

    kind: str  # unroll | mixed | test | curve | baseline (the curve of a head that is fitted to features)
    steps: int
    library: str = "metarun"

    def work(self) -> Work:
        if self.kind == "baseline":
            return Work(str(self), ["algo=baseline", f"algo.test_steps={self.steps}"], 16, None, None, "curve")
        train = self.kind in ("unroll", "mixed")
        words = maml(5, 1, 5, self.steps if train else 1, "algo.inner_lr=0.01", f"algo.test_steps={self.steps}")
        if self.kind == "mixed":
            words.append("algo.mode=mixed")
        return Work(str(self), words, 8 if train else 16, None, None, "train" if train else self.kind)


BARS = [  # a line, what its time per step is compared with, and the most it may be
    (Line("unroll", 50), Line("unroll", 5), 1.2),
    (Line("unroll", 100), Line("unroll", 5), 1.2),
    (Line("mixed", 20), Line("unroll", 20), 1.3),
    (Line("mixed", 50), Line("unroll", 50), 1.3),
    (Line("test", 100), Line("test", 10), 1.2),
    (Line("curve", 100), Line("curve", 10), 1.2),
    (Line("baseline", 100), Line("baseline", 5), 1.5 * 5 / 100),  # all 100 steps take 1.5 times as long as 5
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every process")
    parser.add_argument("--only", choices=["train", "test"], help="training steps alone, or tests alone")
    parser.add_argument("--peer", action="store_true", help="learn2learn, too (`make peers`)")
    options = parser.parse_args()
    options.device = "cpu"
    if options.peer and not interpreter("learn2learn"):
        sys.exit("learn2learn is not there; build it with: make peers")
    lines = {Line("unroll", steps) for steps in STEPS} | {line for bar in BARS for line in bar[:2]} | {Line("mixed", 1)}
    if options.peer:
        lines |= {Line("unroll", steps, "learn2learn") for steps in PEER_STEPS}
    if options.only:
        lines = {line for line in lines if (line.kind in ("unroll", "mixed")) == (options.only == "train")}
    seconds, memory = measure(sorted(lines), options)
    print(f"{'':28} ms    ms per step    MB more")
    for line in sorted(lines):
        ms = 1e3 * statistics.median(seconds[line])
        print(f"{line.library:12} {line.kind:7} {line.steps:4} {ms:8.0f} {ms / line.steps:10.2f} {memory[line]:10.0f}")
    for line, other, bar in BARS:
        if line in lines and other in lines:
            ratio = statistics.median(a / line.steps / (b / other.steps) for a, b in zip(seconds[line], seconds[other]))
            print(f"{line.kind} {line.steps} / {other.kind} {other.steps}, time per step: {ratio:.3f} (at most {bar:.3g})")
    for steps in PEER_STEPS if options.peer and options.only != "test" else ():
        ratio = statistics.median(b / a for a, b in zip(seconds[Line("unroll", steps)], seconds[Line("unroll", steps, "learn2learn")]))
        print(f"learn2learn / metarun, {steps} steps: {ratio:.2f}")


def take_turn(side: Process, library: str, turn: int) -> Answer:
    """What a side answers to its turn: three calls at least and half a second of them, as the first finds the caches of another process;
    in turn 0, which is not counted, as many as metarun needs to record."""
    if turn:
        return side.ask("round", seconds=0.5, least=3)
    return side.ask("round", seconds=0.01, least=EAGER + 2 if library == "metarun" else 1)


def measure(lines: list[Line], options: argparse.Namespace) -> tuple[dict[Line, list[float]], dict[Line, float]]:
    """Seconds of every round, and megabytes."""
    seconds: dict[Line, list[float]] = {line: [] for line in lines}
    memory: dict[Line, float] = {}
    with ExitStack() as stack:
        sides = {line: stack.enter_context(closing(Process(line.library))) for line in lines}
        for line, side in sides.items():
            work = line.work()
            with tempfile.TemporaryDirectory() as folder:
                ask_on(side, *prepare(work, work.tasks, options, torch.float32), folder)
        for turn in range(1 + options.rounds):
            for line, side in sides.items():  # the first round records
                answer = take_turn(side, line.library, turn)
                before = memory.get(line, answer["before_mb"])
                memory[line] = answer["peak_mb"] if turn == options.rounds else before
                if turn:
                    seconds[line].append(statistics.median(answer["seconds"]))
                if turn == options.rounds:
                    memory[line] -= before
    return seconds, memory


if __name__ == "__main__":
    main()
