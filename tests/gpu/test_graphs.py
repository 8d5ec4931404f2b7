"""On a GPU a step is a CUDA graph from its third time on: the same gradients as without, for every algorithm that can be recorded."""

from __future__ import annotations

import pytest
import torch
from helpers import LEARNERS, Builder, engine, in_float64, meta_gradient, moved, relative_error

from metarun.replay import EAGER

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")


@pytest.mark.parametrize(("algo", "problem"), LEARNERS)
def test_a_graph_gives_the_gradients_of_the_step(algo: str, problem: Builder) -> None:
    algorithm, tasks = in_float64(problem(algo))
    algorithm, tasks = algorithm.to("cuda"), moved(tasks, "cuda")
    expected = meta_gradient(algorithm, tasks, engine(device="cuda", replay=False))
    how = engine(device="cuda")
    for _ in range(EAGER + 2):
        found = meta_gradient(algorithm, tasks, how)
        assert relative_error(found, expected) < 1e-9
    assert how.replay
    (entry,) = how.replay.entries[algorithm].values()
    print(f"{algo}: {'graph' if entry.program else entry.why_not}")
