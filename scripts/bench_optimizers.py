"""Unrolled steps of learned optimizers a second, beside a Python loop that does the same work; and memory over the horizon.

python scripts/bench_optimizers.py [--rounds 7] [--write]

The loop is what users of higher or learn2learn write: a functional net, torch.autograd.grad for the slope, torch's own cells or modules for
the rule, one task after the other, the sum of the losses back through all steps. Before anything is timed both must find the same
meta-gradient. Both take turns in one process with one thread; a round is one meta-update. Peak memory is that of a process of its own for
each horizon. --write: the table goes to docs/optimizers.md. Ends with an error if the first speed-up is below 5, or memory
grows.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pages import PLAIN, put
from torch import Tensor
from torch.func import functional_call

from metarun.algos.optimizers.mlp_optimizer import DECAYS, SQUARES, WARM, by_size
from metarun.config.compose import compose, resolve
from metarun.data.slots import slots
from metarun.run import Run
from metarun.runtime.recording import EAGER
from metarun.task import Task, select

PAGE = Path(__file__).resolve().parents[1] / "docs" / "optimizers.md"
FASTER = 5.0  # on the first work, of small steps, which is most of what learned optimizers are trained on; the second is as it is
GROWTH = 1.1  # of the peak memory from the shortest to the longest horizon, at most
HORIZONS = (20, 100, 500)
WORKS = {
    "quadratics, LSTM 20-20, 128 tasks of 20 steps": "experiment=quadratics_lstm",
    "glyphs, MLP 144-32-10, MLP optimizer, 4 tasks of 20 steps": "experiment=glyphs_optimizer algo.inner_steps=20 trainer.meta_batch=4",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="meta-updates of each side that are timed")
    parser.add_argument("--write", action="store_true", help="put the table into docs/optimizers.md")
    parser.add_argument("--horizon", type=int, help=argparse.SUPPRESS)  # of a process whose memory is measured
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.horizon:
        print(peak(options.horizon))
        return
    text = "| work | metarun | Python loop | |\n| --- | --- | --- | --- |\n"
    slow = []
    for name, words in WORKS.items():
        ours, theirs = rates(words, options.rounds)
        text += f"| {name} | {ours:,.0f} steps/s | {theirs:,.0f} steps/s | {ours / theirs:.1f}× |\n"
        slow += [name] if ours < FASTER * theirs else []
    peaks = [float(subprocess.run([sys.executable, __file__, "--horizon", str(h)], capture_output=True, text=True, check=True).stdout)
             for h in HORIZONS]  # fmt: skip
    text += f"\n| horizon, in unrolls of 20 steps | {' | '.join(f'{h:,}' for h in HORIZONS)} |\n| ---{' | ---' * len(HORIZONS)} |\n"
    text += f"| peak memory of the process, first row | {' | '.join(f'{mb:.0f} MB' for mb in peaks)} |\n"
    print(text)
    if options.write:
        put(PAGE, "speed", text)
    if next(iter(WORKS)) in slow or peaks[-1] > GROWTH * peaks[0]:
        sys.exit(f"too slow: {slow}; peaks {peaks}")


def update(run: Run) -> Callable[[int], None]:
    """What one meta-update of metarun's does, all but the optimizer's step; the tasks of a meta-update all begin there."""
    learner, episodes = run.algorithm, run.episodes("train")
    learner.unrolls = 1
    size = run.valid.trainer.values["meta_batch"]

    def once(i: int) -> None:
        learner.zero_grad(set_to_none=True)
        run.engine.train_on(learner, episodes, slots(i, size, 1, learner.inner_steps), (), 0.0)

    return once


def loop(run: Run) -> Callable[[int], None]:
    """The same by a Python loop over tasks and steps."""
    learner: Any = run.algorithm
    episodes, size = run.episodes("train"), run.valid.trainer.values["meta_batch"]
    rule = lstm(learner) if hasattr(learner, "cells") else perceptron(learner)

    def train(task: Task) -> Tensor:
        fast, memory, total = learner.weights(task.context.key), None, torch.zeros(())
        for k in range(learner.inner_steps):
            x, y = learner.examples(task.context, k)
            leaves = {name: w.detach().requires_grad_() for name, w in fast.items()}
            slope = torch.autograd.grad(learner.problem.loss(functional_call(learner, leaves, (x, x)), y), list(leaves.values()))
            fast, memory = rule(fast, slope, memory, k)
            total = total + learner.problem.loss(functional_call(learner, fast, (task.query.x, x)), task.query.y)
        return total

    def once(i: int) -> None:
        learner.zero_grad(set_to_none=True)
        tasks = episodes.batch(range(i * size, (i + 1) * size))
        for j in range(size):
            (train(select(tasks, j)) / size).backward()

    return once


def lstm(learner: Any) -> Callable[..., Any]:
    """The LSTM optimizer with torch's cells, which share the learner's weights."""

    def rule(fast: dict[str, Tensor], slope: tuple[Tensor, ...], memory: Any, k: int) -> Any:
        x = torch.cat([g.flatten() for g in slope])[:, None]
        memory = memory or [(x.new_zeros(len(x), learner.hidden),) * 2 for _ in learner.cells]
        states = []
        for cell, (h, c) in zip(learner.cells, memory):
            weight, bias, wide = cell.gates.weight, cell.gates.bias, x.shape[1]
            read, forget, write, new = range(4)
            order = [part for gate in (read, forget, new, write) for part in range(gate * learner.hidden, (gate + 1) * learner.hidden)]
            ordered = weight[order]  # torch has input, forget, cell, output
            x, c = torch.lstm_cell(x, (h, c), ordered[:, :wide], ordered[:, wide:], bias[order], torch.zeros_like(bias))
            states.append((x, c))
        steps = (learner.scale * learner.update(x).squeeze(-1)).split([w.numel() for w in fast.values()])
        return {name: w + step.view(w.shape) for (name, w), step in zip(fast.items(), steps)}, states

    return rule


def perceptron(learner: Any) -> Callable[..., Any]:
    """The MLP optimizer, tensor by tensor."""

    def rule(fast: dict[str, Tensor], slope: tuple[Tensor, ...], memory: Any, k: int) -> Any:
        memory = memory or [([torch.zeros_like(g) for _ in DECAYS], torch.zeros_like(g)) for g in slope]
        moved, kept = {}, []
        for (name, w), g, (means, square) in zip(fast.items(), slope, memory):
            means = [decay * m + (1 - decay) * g for decay, m in zip(DECAYS, means)]
            square = SQUARES * square + (1 - SQUARES) * g * g
            slopes = [g, *(m / (1 - decay ** (k + 1)) for decay, m in zip(DECAYS, means))]
            size = square / (1 - SQUARES ** (k + 1)) + 1e-16
            root, common, left = size.rsqrt(), size.mean().rsqrt(), 1 - k / learner.horizon
            seen = [*(v * root for v in slopes), *(v * common for v in slopes), size.sqrt() * common, by_size(w.flatten()).view(w.shape)]
            clock = [torch.full_like(w, time) for time in (1 - left, WARM**k)]
            direction, grown, forgotten = learner.mlp(torch.stack([*seen, *clock], -1)).unbind(-1)
            step = (direction + means[0] * (root * common).sqrt()) * grown.exp() + learner.decay * forgotten.exp() * w
            moved[name] = w - learner.scale * left * step
            kept.append((means, square))
        return moved, kept

    return rule


def rates(words: str, rounds: int) -> tuple[float, float]:
    """Unrolled steps a second of metarun and of the loop, medians over rounds in turns."""
    run = Run(resolve(compose([*words.split(), *PLAIN])))
    sides = [update(run), loop(run)]
    found = []
    for side in sides:
        side(0)
        found.append(torch.cat([p.grad.flatten() for p in run.algorithm.parameters() if p.grad is not None]))
    apart = float((found[0] - found[1]).norm() / found[1].norm())
    if apart > 1e-3:
        sys.exit(f"{words}: the two sides differ by {apart:.1e} of the meta-gradient")
    for i in range(EAGER + 2):  # compiles and records
        sides[0](i)
    seconds: list[list[float]] = [[], []]
    for i in range(rounds):
        for side, taken in zip(sides, seconds):
            began = time.perf_counter()
            side(i)
            taken.append(time.perf_counter() - began)
    steps = run.valid.trainer.values["meta_batch"] * run.algorithm.inner_steps
    print(f"{words}: meta-gradients differ by {apart:.0e}; seconds {[[round(s, 4) for s in side] for side in seconds]}", flush=True)
    ours, theirs = (steps / statistics.median(taken) for taken in seconds)
    return ours, theirs


def peak(horizon: int) -> float:
    """Peak memory, MB, of a process that meta-trains over more than one horizon of so many steps."""
    run = Run(resolve(compose([*next(iter(WORKS.values())).split(), *PLAIN, f"algo.horizon={horizon}"])))
    learner, episodes, carried = run.algorithm, run.episodes("train"), ()
    for i in range(horizon // learner.inner_steps + 2):
        learner.zero_grad(set_to_none=True)
        places = slots(i, run.valid.trainer.values["meta_batch"], learner.unrolls, learner.inner_steps)
        _, carried = run.engine.train_on(learner, episodes, places, carried, 0.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
