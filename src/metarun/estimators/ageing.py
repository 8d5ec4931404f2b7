"""Regularised, or ageing, evolution of a method's discrete parts, in place of a meta-gradient: tournaments, and the oldest die.
Real, Aggarwal, Huang, Le 2019, arXiv:1802.01548; of programs Real, Liang, So, Le 2020, arXiv:2003.03384."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metarun import inner
from metarun.abilities import Evolvable, Word
from metarun.algorithm import Algorithm
from metarun.data.episodes import Episodes
from metarun.data.slots import Slots
from metarun.engine import Engine, objective
from metarun.errors import UserError
from metarun.runtime.private import tree_map
from metarun.task import Task, own

WORST = 1e30  # the value of a candidate whose loss is no number


class AgeingEvolution:
    """A population, all of it tried on the same training tasks: episodes 0, 1, … of one meta-batch.

        the first are the method's seeds, and mutations of them until there are P;
        then, C at a time: the best of S members, drawn without replacement, has a child with one change, and the oldest C die

    The method is the best candidate so far, seeds included, so that no search ends with a worse one on its tasks.

    Deviations: (1) C children at a time, as of so many workers in the paper. (2) Of equal values the later one counts as the best, so that
    a search drifts among rules of one value.

    Args:
        population: P.
        sample: S, 1 to P.
        children: C, 1 to P.
    """

    def __init__(self, population: int, sample: int, children: int) -> None:
        self.population, self.sample, self.children = population, sample, children
        self.members: list[Word] = []  # oldest first
        self.values: list[float] = []
        self.best: Word = {}
        self.least = WORST
        self.tried = 0

    @torch.no_grad()
    def train_on(
        self, engine: Engine, algorithm: Algorithm, episodes: Episodes, slots: Slots, progress: float
    ) -> tuple[dict[str, float], Any]:
        """Try further candidates, and let the method be the best so far; returns as ``Engine.train_on`` does.

        Raises:
            UserError: this method is not one for a search, or cuts its tasks.
        """
        if not isinstance(algorithm, Evolvable):
            raise UserError("optim=ageing searches programs, and this method has none: choose optim=adam, or algo=symbolic_optimizer")
        if algorithm.unrolls > 1:
            steps = algorithm.unrolls * algorithm.inner_steps
            raise UserError(f"optim=ageing tries candidates on whole tasks: choose algo.inner_steps={steps}, as many as algo.horizon")
        total = len(slots.indices)
        share = engine.world.share(range(total))
        key = inner.fold_in(episodes.batch([0]).context.key[0], self.tried).cpu()
        words = self.proposed(algorithm, key)
        tasks = episodes.batch(share) if share else None
        sums = self.judged(engine, algorithm, tasks, words, progress) if tasks else [0.0] * len(words)
        sums = list(engine.world.sum({str(i): value for i, value in enumerate(sums)}).values())
        for word, value in zip(words, sums):
            value = min(value / total, WORST) if value == value else WORST
            self.members, self.values = [*self.members, word], [*self.values, value]
            if value <= self.least:
                self.best, self.least = word, value
        self.members, self.values = self.members[-self.population :], self.values[-self.population :]
        self.tried += len(words)
        algorithm.adopt(self.best)
        return {"loss": self.least, "tried": float(self.tried)}, ()

    def proposed(self, algorithm: Evolvable, key: Tensor) -> list[Word]:
        """The next candidates, drawn by a key [] int64."""
        if not self.members:
            seeds = algorithm.seeds()
            keys = [inner.fold_in(key, i) for i in range(self.population - len(seeds))]
            return seeds + [algorithm.child(seeds[i % len(seeds)], one) for i, one in enumerate(keys)]
        found = []
        for i in range(self.children):
            mine = inner.fold_in(key, i)
            drawn = inner.uniform(mine, (len(self.members),)).argsort()[: self.sample].tolist()
            parent = min(drawn, key=lambda place: (self.values[place], -place))
            found.append(algorithm.child(self.members[parent], inner.fold_in(mine, 0)))
        return found

    def judged(self, engine: Engine, algorithm: Algorithm, tasks: Task, words: Sequence[Word], progress: float) -> list[float]:
        """The sum of the objective over stacked tasks, of every candidate: every task tries each of them."""
        n, many = tasks.query.y.shape[0], len(words)
        device = tasks.context.key.device
        brought = {name: torch.stack([word[name] for word in words]).to(device) for name in words[0]}
        both = tree_map(lambda leaf: leaf.repeat_interleave(many, 0), own(tasks))
        extras = both.context.extras | {name: values.repeat(n, *[1] * (values.dim() - 1)) for name, values in brought.items()}
        both = both._replace(context=both.context._replace(extras=extras, shared=tasks.context.shared))
        scanned = engine.scans(algorithm)

        def loss(learner: Algorithm, task: Task, progress: float) -> Tensor:
            return objective(learner, progress, task, scanned=scanned)[0]

        losses = engine.over(algorithm, loss, both, progress, ("ageing",))
        return losses.view(n, many).double().sum(0).tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"members": self.members, "values": self.values, "best": self.best, "least": self.least, "tried": self.tried}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("members", "values", "best", "least", "tried"):
            setattr(self, name, state[name])
