"""A program for torchrun: each rank checks in float64 that the joined work equals its own on all tasks.
Run by tests/cli/test_torchrun.py."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import TINY
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from metarun.config.compose import compose, resolve
from metarun.data.slots import Slots, slots
from metarun.engine import Engine
from metarun.errors import RunError, UserError
from metarun.protocols.episodes import EVERY
from metarun.run import Run
from metarun.runtime.distributed import World
from metarun.task import Task


class Double:
    """Episodes in float64."""

    def __init__(self, episodes: Any) -> None:
        self.episodes = episodes

    def batch(self, indices: Any) -> Task:
        return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, self.episodes.batch(indices))


def gradient(engine: Engine, run: Run, tasks: int) -> tuple[torch.Tensor, dict[str, float]]:
    run.algorithm.zero_grad()
    metrics, _ = engine.train_on(
        run.algorithm, Double(run.episodes("train")), Slots(list(range(10, 10 + tasks)), [True] * tasks, [0] * tasks, 0), (), 0.0
    )
    return torch.cat([p.grad.flatten() for p in run.algorithm.parameters()]), metrics


def check_engine(world: World) -> None:
    run = Run(resolve(compose([*TINY, "net.norm=support"])))
    run.algorithm.double()
    joined, alone = (Engine(torch.device("cpu"), "fp32", w, map="vmap", chunk="auto") for w in (world, World()))
    for tasks in (5, 2, 1):  # unequal shares, equal ones, none for rank 0
        (mine, metrics), (whole, means) = gradient(joined, run, tasks), gradient(alone, run, tasks)
        assert (mine - whole).norm() < 1e-12 * whole.norm()
        assert all(abs(metrics[name] - means[name]) < 1e-6 for name in means)  # accuracies are float32
        assert metrics.keys() == means.keys()
        assert all(torch.equal(mine, other) for other in world.gather(mine))  # or the ranks would drift apart
    for n in (7, 2, 1):
        steps: list[int] = []
        episodes = Double(run.episodes("val"))
        mine, whole = (e.score(run.algorithm, episodes, n, EVERY, steps.append) for e in (joined, alone))
        assert steps[0] == steps[-1] == n
        for name in ("score", "loss"):
            assert mine[name].shape == (n, 4)
            assert np.allclose(mine[name], whole[name], rtol=1e-12, atol=0)


def check_carried(world: World) -> None:
    """Inner loops that go on, by back-propagation and by evolution strategies: the same states, wherever they are held."""
    few = ["data.size=3", "algo.hidden=4", "algo.inner_steps=2", "algo.horizon=6", "optim.pairs=2", "device=cpu"]
    for gradient in ("backprop", "pes"):
        for places in (3, 1):  # unequal shares, none for rank 0
            run = Run(resolve(compose(["experiment=quadratics_lstm", *few, f"optim.gradient={gradient}"])))
            learner, episodes = run.algorithm.double(), Double(run.episodes("train"))
            optimizer = run.valid.optim.build(learner.groups())
            joined, alone = (Engine(torch.device("cpu"), "fp32", w, map="vmap", chunk="auto") for w in (world, World()))
            mine, whole = (), ()
            for i in range(5):
                found = []
                for how, carried in ((joined, mine), (alone, whole)):
                    learner.zero_grad()
                    turn = slots(i, places, learner.unrolls, learner.inner_steps)
                    metrics, states = optimizer.estimate(how, learner, episodes, turn, carried, 0.0)
                    grads = torch.cat([p.grad.flatten() for p in optimizer.parameters])
                    found.append((grads, metrics["loss"], states))
                (grads, loss, mine), (all_grads, mean, whole) = found
                assert (grads - all_grads).norm() < 1e-9 * all_grads.norm()
                assert abs(loss - mean) < 1e-9 * abs(mean)
                stored, expected = joined.gathered(mine), alone.gathered(whole)
                assert len(stored) == len(expected) > 0
                assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(stored, expected))
                like = tree_map(lambda leaf: leaf[0], whole)
                again = tree_leaves(joined.restored(like, stored))
                assert all(torch.equal(a, b) for a, b in zip(again, tree_leaves(mine)))


def check_world(world: World) -> None:
    used, elsewhere, unused, frozen = (nn.Parameter(torch.ones(2)) for _ in range(4))
    frozen.requires_grad_(False)
    used.grad = torch.full((2,), 1.0 + world.rank)
    if world.rank == 1:
        elsewhere.grad = torch.ones(2)
    world.sum_gradients([used, elsewhere, unused, frozen])
    assert used.grad.tolist() == [3.0, 3.0]
    assert elsewhere.grad.tolist() == [1.0, 1.0]
    assert unused.grad is None
    assert frozen.grad is None
    assert world.sum({"a": 1.0} if world.rank else {}) == {"a": 1.0}
    assert world.any(world.rank == 1)
    assert not world.any(False)
    assert world.broadcast(f"from {world.rank}") == "from 0"
    assert world.concatenate(np.full((world.rank, 2), world.rank)).tolist() == [[1, 1]]
    assert world.together(lambda: world.rank) == world.rank
    failures = ((UserError("no data"), UserError, "no data"), (OSError("bad\ndisk"), RunError, "rank 1 failed: OSError: bad disk"))
    for error, kind, text in failures:
        with pytest.raises(kind, match=text):
            world.together(lambda error=error: fail(error) if world.rank else None)


def fail(error: Exception) -> None:
    raise error


if __name__ == "__main__":
    here = World.join()
    assert here.size == 2
    check_world(here)
    check_engine(here)
    check_carried(here)
    # In one piece: print sends the line's end by itself, and the other rank's line may come between.
    sys.stdout.write(f"rank {here.rank} agrees\n")
    torch.distributed.destroy_process_group()
