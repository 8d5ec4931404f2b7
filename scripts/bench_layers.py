"""What every layer of speed gains: a step with everything beside the same step without one layer, in turn, each in a process of its own.

make bench-layers                                   all works, about 10 minutes on a quiet machine
python scripts/bench_layers.py --quick              two works, few and short turns, about 2 minutes
python scripts/bench_layers.py --works W1 --layers direct loops

A gain is the time without the layer over that with everything in the same round, as median (least to greatest) over the rounds: 1 is none.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from typing import Any, NamedTuple

import torch
from bench import WORKS, Process, Work, ask_on, prepare

from metarun.runtime.recording import EAGER

WORTH = 1.15  # what a layer is to gain on some work
GLYPHS = ["data=glyphs", "data.size=84", "data.train_classes=20", "data.val_classes=5", "data.test_classes=5", "data.drawers=2"]
RESNET = ["algo=maml", "net=resnet12", *GLYPHS, "way=2", "shot=1", "query=1", "algo.inner_steps=1"]
STEPS = {name: WORKS[name] for name in ("W1", "W2", "W3", "W4", "W5", "W6")}
STEPS["R12"] = Work("second-order MAML step of ResNet-12 on 84x84, 2-way 1-shot 1-query, 1 inner step, 2 tasks", RESNET, 2, None, None)
QUICK = ["W1", "W6"]


class Layer(NamedTuple):
    """How a layer is switched off: settings of a run, and names for METARUN_WITHOUT; and what it does."""

    what: str
    words: tuple[str, ...] = ()
    without: str = ""


LAYERS = {
    "recording": Layer("a step's operations repeated without Python in between", ("engine.record=false",)),
    "threads": Layer("chunks of tasks side by side on the cores", ("engine.threads=1",)),
    "direct": Layer("direct convolution, in place of im2col and matrix products or torch's convolution", without="direct"),
    "loops": Layer("norm, max-pooling and ReLU as one operation; im2col and col2im as loops", without="loops"),
    "trilinear": Layer("derivatives of a convolution as convolutions (and with it direct convolution)", without="trilinear"),
    "folding": Layer("a first layer and its norm as one linear map of patches", without="folding"),
    "all": Layer("all of them: plain torch, one thread", ("engine.kernels=torch", "engine.record=false", "engine.threads=1")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="*", choices=STEPS, metavar="W", help="all by default")
    parser.add_argument("--layers", nargs="*", choices=LAYERS, default=[*LAYERS], metavar="LAYER", help="all by default")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn, at least one repetition")
    parser.add_argument("--episodes", type=int, default=60, help="of W5")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every side")
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK)} alone, 3 rounds of 0.2 s")
    options = parser.parse_args()
    options.device = "cpu"
    if options.quick:
        options.rounds, options.seconds = 3, 0.2
    gains = {}
    for name in options.works or (QUICK if options.quick else STEPS):
        gains[name] = measure(STEPS[name], options)
        print(f"{name}: {STEPS[name].title}; with everything {1e3 * gains[name].pop('time'):.0f} ms", flush=True)
        for layer, ratios in gains[name].items():
            print(f"  {layer:10} {shown(ratios)}  {LAYERS[layer].what}", flush=True)
    print(f"\n{'':10} " + " ".join(f"{name:>18}" for name in gains))
    for layer in options.layers:
        print(f"{layer:10} " + " ".join(f"{shown(found[layer]):>18}" for found in gains.values()))
    idle = [layer for layer in options.layers if all(statistics.median(found[layer]) < WORTH for found in gains.values())]
    print(f"gain less than {WORTH} on every work: {', '.join(idle) or 'none'}")


def measure(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """For every layer the gain in each round, and ``time``: the median seconds with everything."""
    tasks = options.episodes if work.kind == "test" else work.tasks
    sides = {name: Process("metarun", METARUN_WITHOUT=LAYERS[name].without) for name in options.layers}
    sides = {"": Process("metarun"), **sides}
    try:
        told, data = prepare(work, tasks, options)
        with tempfile.TemporaryDirectory() as folder:
            for name, side in sides.items():
                more = LAYERS[name].words if name else ()
                ask_on(side, {**told, "words": [*told["words"], *more]}, data, folder)
        for side in sides.values():  # compile, and record
            side.ask("round", seconds=0.0, least=EAGER + 1)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, side in sides.items():
                seconds[name].append(statistics.median(side.ask("round", seconds=options.seconds)["seconds"]))
    finally:
        for side in sides.values():
            side.close()
    return {name: ratios(seconds[name], seconds[""]) for name in options.layers} | {"time": statistics.median(seconds[""])}


def ratios(without: list[float], everything: list[float]) -> list[float]:
    """The gain of every round."""
    return [one / other for one, other in zip(without, everything, strict=True)]


def shown(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    torch.set_num_threads(1)  # this process only prepares
    main()
