"""MAML as learn2learn's users write it, on the net, weights, episodes and schedule that metarun's words say.
Prints iteration and development accuracy at every validation."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from native import learner

from metarun import run as metarun_run
from metarun.config.compose import compose, resolve
from metarun.run import Run
from metarun.runtime.learn2learn import library
from metarun.task import Task, count, select


def main() -> None:
    metarun_run.keep_freed_memory = lambda: False  # metarun's setting, not the library's
    run = Run(resolve(compose(sys.argv[1:])))
    algo, net, trainer, optim = (getattr(run.valid, part).values for part in ("algo", "net", "trainer", "optim"))
    work = {"algo": "maml", "net": "conv4", "down": net["down"], "flatten": net["flatten"], "way": run.spec["train"].way}
    maml = library().algorithms.MAML(learner(work, run.algorithm.state_dict()), lr=algo["inner_lr"], first_order=algo["first_order"])
    optimizer = torch.optim.Adam(maml.parameters(), lr=optim["lr"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trainer["iterations"])
    episodes, validation = run.episodes("train"), run.episodes("val").batch(range(trainer["val_episodes"]))

    def logits(task: Task, steps: int) -> torch.Tensor:
        """Of the queries, after adaptation."""
        fast, (x, y) = maml.clone(), task.context.support
        for _ in range(steps):
            fast.adapt(F.cross_entropy(fast(x), y))
        return fast(task.query.x)

    for iteration in range(trainer["iterations"]):
        optimizer.zero_grad()
        size = trainer["meta_batch"]
        tasks = episodes.batch(range(iteration * size, (iteration + 1) * size))
        for i in range(size):
            task = select(tasks, i)
            (F.cross_entropy(logits(task, algo["inner_steps"]), task.query.y) / size).backward()
        torch.nn.utils.clip_grad_norm_(maml.parameters(), optim["clip_norm"])
        optimizer.step()
        schedule.step()
        if (iteration + 1) % trainer["val_every"] == 0:
            tests = [select(validation, i) for i in range(count(validation))]
            scores = [(logits(task, algo["test_steps"]).argmax(1) == task.query.y).float().mean() for task in tests]
            print(iteration + 1, float(torch.stack(scores).mean()), flush=True)


if __name__ == "__main__":
    main()
