"""Episodes per second of MetaOptNet's heads on features of 64 numbers: adaptation, 15 queries per class, and the gradient of it all.

python scripts/bench_metaoptnet.py [--way 5] [--shot 1] [--meta-batch 16] [--threads 2]
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from metarun.algos.heads.metaoptnet import MetaOptNet
from metarun.config.compose import compose, resolve
from metarun.config.schema import without_meta
from metarun.engine import Engine
from metarun.nets.base import Net
from metarun.problem import Classification, EpisodeSpec, Problem
from metarun.task import Batch, Context, Task

FEATURES, QUERY, ROUNDS = 64, 15, 30


class Gain(Net):
    """The inputs times one learned number each, so that gradients have to come back to the features and nothing else takes time."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.norm = FEATURES, "none"
        self.gain = nn.Parameter(torch.ones(FEATURES))

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        return x * self.gain


def tasks(way: int, shot: int, count: int) -> Task:
    """Classes around normal centres."""
    centres = torch.randn(count, way, FEATURES)

    def batch(n: int) -> Batch:
        y = torch.arange(way).repeat_interleave(n)
        return Batch(centres[:, y] + torch.randn(count, way * n, FEATURES), y.expand(count, -1))

    return Task(Context(batch(shot), torch.arange(way).expand(count, -1), torch.arange(count), {}), batch(QUERY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", type=int, default=5)
    parser.add_argument("--shot", type=int, default=1)
    parser.add_argument("--meta-batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    spec = EpisodeSpec(way=options.way, shot=options.shot, query=QUERY)
    problem = Problem(Classification(), (FEATURES,), options.way, 1, spec, spec)
    engine = Engine(torch.device("cpu"), "fp32", map="vmap", chunk="auto")
    batch = tasks(options.way, options.shot, options.meta_batch)
    settings = without_meta(resolve(compose(["algo=metaoptnet"]))["algo"])
    for head in ("svm", "ridge"):
        algorithm = MetaOptNet(Gain(), problem, **settings | {"head": head})
        seconds = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            engine.meta_gradient(algorithm, batch, 0.0)
            seconds.append(time.perf_counter() - begun)
        seconds = sorted(seconds[3:])
        best, median = options.meta_batch / seconds[0], options.meta_batch / seconds[len(seconds) // 2]
        print(f"{head}: {median:.0f} episodes/s (best {best:.0f}), {options.way}-way {options.shot}-shot, {options.threads} threads")


if __name__ == "__main__":
    main()
