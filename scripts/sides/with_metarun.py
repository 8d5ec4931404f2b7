"""metarun's side of the benchmark."""

from __future__ import annotations

from typing import Any

import torch
from serve import Outcome, Side, serve

from metarun.config.compose import compose, resolve
from metarun.protocols.episodes import EVERY, LAST
from metarun.run import Run
from metarun.task import Batch, Context, Task


def prepare(work: dict[str, Any], data: dict[str, Any]) -> Side:
    """A run as the command line would build it, with the weights and episodes that the other side has."""
    run = Run(resolve(compose([*work["words"], f"device={work['device']}"])))
    algorithm, engine = run.algorithm, run.engine
    if work["kind"] == "sample":
        episodes, first = run.episodes("train"), [0]

        def sample() -> None:
            episodes.batch(range(first[0], first[0] + work["tasks"]))
            first[0] += work["tasks"]

        return Side(sample, dict)
    algorithm.load_state_dict(data["weights"])
    classes, keys = (torch.zeros(work["tasks"], *shape, dtype=torch.int64, device=run.device) for shape in ((work["way"],), ()))
    tasks = Task(Context(Batch(data["xs"], data["ys"]), classes, keys, {}), Batch(data["xq"], data["yq"]))
    if work["kind"] in ("test", "curve"):
        algorithm.eval()

        def test() -> Outcome:
            return engine.evaluate(algorithm, tasks, EVERY if work["kind"] == "curve" else LAST)

        return Side(test, test)
    outer = run.valid.optim.build(algorithm.parameters(), lr=work["outer_lr"], clip_norm=None)

    def gradient() -> Outcome:
        loss = engine.meta_gradient(algorithm, tasks, 0.0)["loss"]
        found = {name: p.grad.clone() for name, p in algorithm.named_parameters() if p.grad is not None}
        algorithm.zero_grad()
        return {"loss": torch.tensor(loss), **found}

    def step() -> None:
        engine.meta_gradient(algorithm, tasks, 0.0)
        outer.step(0.0)

    return Side(step, gradient)


if __name__ == "__main__":
    serve(prepare)
