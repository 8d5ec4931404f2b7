"""The only file that knows the task axis: maps a one-task function over stacked tasks, in chunks, on any device.
Train, validation and test share one adaptation path: begin, then step after step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Annotated, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from metarun.algorithm import Algorithm, State
from metarun.distributed import World
from metarun.episodes import ClassEpisodes, Episodes, to_float
from metarun.nets.base import Net
from metarun.nets.encoded import Encoded
from metarun.precision import BFloat16
from metarun.replay import Replay
from metarun.task import Context, Task, count, select
from metarun.verification import pairs
from metarun.workers import Workers, twin

Precision = Literal["fp32", "bf16"]
FEATURE_BYTES = 2**30  # of the features of a split that evaluation keeps
IMAGES = 512  # whose features are computed at a time
EPISODE_BYTES = 64 * 2**20  # of episodes made at a time in evaluation
CPU_BYTES = 512 * 2**20  # of activations that a core works on at a time
STATE_BYTES = 64 * 2**20  # of the states of all inner steps that a core keeps for the way back


def adapt(algorithm: Algorithm, context: Context, steps: int) -> Iterator[State]:
    """The states of one task after 0, 1, … ``steps`` inner steps."""
    state = algorithm.begin(context)
    yield state
    for k in range(steps):
        state = algorithm.step(state, context, k)
        yield state


def laid_out(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients in memory as their parameters, which a fused optimizer asks for, each its own: autograd gives two that are equal as one."""
    laid: list[Tensor | None] = []
    for g, p in zip(gradients, parameters):
        if g is not None and (g.stride() != p.stride() or any(g is other for other in laid)):
            g = torch.empty_like(p).copy_(g)
        laid.append(g)
    return laid


class Engine:
    """Runs an algorithm on stacked tasks.

    Args:
        device: where algorithm and tasks live.
        precision: ``fp32``, or ``bf16`` for convolutions and linear layers in bfloat16 (see ``BFloat16``).
        world: the processes that share the work; None for this one alone.
        map: ``vmap`` (all tasks of a chunk at once) or ``loop`` (one by one, for debugging and operators without batching rule).
        chunk: tasks at a time; ``auto`` picks what fits the memory (``chunk_size``). Results do not depend on it beyond rounding.
        replay: record what a step does and do it again without Python in between, to the same bits (``replay``).
    """

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        world: World | None = None,
        *,
        map: Literal["vmap", "loop"],
        chunk: Annotated[int, Ge(1)] | Literal["auto"],
        replay: bool = True,
    ) -> None:
        self.device, self.precision, self.map, self.chunk = device, precision, map, chunk
        self.replay = Replay(device) if replay and map == "vmap" else None
        self.world = world or World()
        self.workers = Workers()
        self._activations: WeakKeyDictionary[Net, int] = WeakKeyDictionary()
        self._states: WeakKeyDictionary[Algorithm, int] = WeakKeyDictionary()

    def train_on(self, algorithm: Algorithm, episodes: Episodes, indices: range, progress: float) -> dict[str, float]:
        """``meta_gradient`` over the episodes of these indices, each rank doing its share; all ranks end with the same."""
        share = self.world.share(indices)
        sums: dict[str, float] = {}
        if share:
            means = self.meta_gradient(algorithm, episodes.batch(share), progress, len(indices))
            sums = {name: mean * len(share) for name, mean in means.items()}
        self.world.sum_gradients(algorithm.parameters())
        return {name: value / len(indices) for name, value in self.world.sum(sums).items()}

    def meta_gradient(self, algorithm: Algorithm, tasks: Task, progress: float, total: int | None = None) -> dict[str, float]:
        """Add the gradient of the mean objective over tasks to ``.grad``; return the objective's metrics, averaged.

        ``total``: size of the meta-batch that these tasks are a part of.
        """
        here = count(tasks)
        total = total or here
        algorithm.anneal(progress)

        parameters = [p for p in algorithm.parameters() if p.requires_grad]

        def objective(learner: Algorithm, progress: float, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
            steps = adapt(learner, task.context, learner.inner_steps)
            states = list(steps) if learner.every_state else deque(steps, maxlen=1)
            loss, metrics = learner.objective(states, task, progress)
            return loss, {name: value.detach() for name, value in metrics.items()}

        def derive(learner: Algorithm, item: tuple[Task, float]) -> tuple[Sequence[Tensor | None], dict[str, Tensor]]:
            chunk, progress = item
            with self._numbers():
                losses, metrics = self._map(learner, partial(objective, learner, progress), chunk)
                gradients = torch.autograd.grad(losses.sum() / total, parameters, allow_unused=True)
            return laid_out(gradients, parameters), {name: values.sum() for name, values in metrics.items()}

        items = [(chunk, progress) for chunk in self._chunks(algorithm, tasks, train=True)]
        sums: dict[str, Tensor] = {}
        for gradients, metrics in self._each(algorithm, derive, items, ("gradient", total)):
            for parameter, gradient in zip(parameters, gradients):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0) + value
        if not sums:
            return {}
        means = (torch.stack(list(sums.values())) / here).tolist()  # one wait for a GPU, not one for each
        return dict(zip(sums, means))

    @torch.no_grad()
    def evaluate(self, algorithm: Algorithm, tasks: Task, curve: bool) -> dict[str, Tensor]:
        """Adapt to every task and score its queries: ``score`` and ``loss``, each [tasks, steps] on the CPU.

        ``curve``: after 0, 1, … ``test_steps`` steps; otherwise after the last step only. Memory does not grow with tasks or steps.
        A pairwise method's scores of ``pairs`` come along.
        """
        problem = algorithm.problem

        def scores(learner: Algorithm, task: Task) -> dict[str, Tensor]:
            rows = []
            for k, state in enumerate(adapt(learner, task.context, learner.test_steps)):
                if curve or k == learner.test_steps:
                    prediction = learner.predict(state, task.query.x)
                    rows.append((problem.score(prediction, task.query.y), problem.loss(prediction, task.query.y)))
            score, loss = zip(*rows)
            scored = {"score": torch.stack(score), "loss": torch.stack(loss)}
            return scored | pairs(prediction, task.query.y) if learner.pairwise else scored

        def answer(learner: Algorithm, chunk: Task) -> dict[str, Tensor]:
            with self._numbers():
                return self._map(learner, partial(scores, learner), chunk)

        parts = list(self._each(algorithm, answer, self._chunks(algorithm, tasks, train=False), ("scores", curve)))
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}

    def score(
        self, algorithm: Algorithm, episodes: Episodes, n: int, curve: bool, after_block: Callable[[int], None]
    ) -> dict[str, np.ndarray]:
        """``evaluate`` on episodes 0..n-1, made a block at a time so that memory stays flat; ``after_block`` hears how many are done.

        Each rank scores its share, in as many blocks as the others, so that ``after_block`` may be collective.
        Returns what ``evaluate`` does of all n episodes, in float64, the same on every rank.
        """
        was_training = algorithm.training
        algorithm.eval()
        learner, episodes = self.encoded(algorithm, episodes, n)
        size = sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(episodes.batch([0])))
        block = max(1, EPISODE_BYTES // size)
        share, parts = self.world.share(range(n)), []
        for first in range(0, -(-n // self.world.size), block):
            indices = share[first : first + block] or range(1)  # a rank without a share still learns the shapes
            parts.append(self.evaluate(learner, episodes.batch(indices), curve))
            after_block(min(self.world.size * (first + block), n))
        algorithm.train(was_training)
        mine = {name: torch.cat([part[name] for part in parts]).double().numpy()[: len(share)] for name in parts[0]}
        return {name: self.world.concatenate(values) for name, values in mine.items()}

    @torch.no_grad()
    def encoded(self, algorithm: Algorithm, episodes: Episodes, n: int) -> tuple[Algorithm, Episodes]:
        """Algorithm and episodes as they are, or, where that is the same and less work, on features of the images, each computed once."""
        net = algorithm.net
        if not (algorithm.encodes and isinstance(episodes, ClassEpisodes)) or net.norm == "support" or net.transductive:
            return algorithm, episodes
        images = episodes.images
        if len(images) > n * episodes.spec.images or len(images) * net.features * 4 > FEATURE_BYTES:
            return algorithm, episodes

        def encode(net: Net, some: Tensor) -> Tensor:
            with self._numbers():
                return net(to_float(some))

        features = torch.cat(list(self._all(encode, net, images.split(IMAGES))))
        learner = twin(algorithm)
        learner.net = Encoded(net)
        # What a method does with features takes memory, too: the chunks stay as small as with images.
        self._activations[learner.net] = self._activation_bytes(net, to_float(images[:2]))
        return learner, episodes.of_features(features)

    def _chunks(self, algorithm: Algorithm, tasks: Task, train: bool) -> list[Task]:
        size = self.chunk_size(algorithm, tasks, train)
        return [select(tasks, slice(first, first + size)) for first in range(0, count(tasks), size)]

    def _each(self, algorithm: Algorithm, function: Callable[[Algorithm, Any], Any], items: Sequence[Any], name: Hashable) -> Iterator[Any]:
        """``function(algorithm, item)`` of every item, in order; ``name`` says what the function depends on beside these."""
        if not self._vmaps(algorithm):
            return (function(algorithm, item) for item in items)
        return self._all(self.replay.of(algorithm, name, function) if self.replay else function, algorithm, items)

    def _all(self, function: Callable[[Any, Any], Any], module: nn.Module, items: Sequence[Any]) -> Iterator[Any]:
        """``function(module, item)`` of every item, in order; on a CPU, side by side."""
        if self.device.type == "cpu":
            return self.workers.map(function, module, items)
        return (function(module, item) for item in items)

    def _map(self, algorithm: Algorithm, function: Callable[[Task], Any], tasks: Task) -> Any:
        if self._vmaps(algorithm):
            return torch.vmap(function)(tasks)
        results = [function(select(tasks, i)) for i in range(count(tasks))]
        return tree_map(lambda *leaves: torch.stack(leaves), *results)

    def _vmaps(self, algorithm: Algorithm) -> bool:
        return self.map == "vmap" and algorithm.batchable

    def chunk_size(self, algorithm: Algorithm, tasks: Task, train: bool) -> int:
        """Tasks per chunk; ``auto`` depends on shapes alone, so the same run is cut in the same way every time.

        A task's activations are those of its images, those of the support kept for every inner step in training, and what the method
        says of its queries. On a CPU, the states of many inner steps have a budget of their own, so that memory hardly grows with them.
        On a GPU, a sixteenth of its memory: first and second derivatives need several times the activations.
        """
        if self.chunk != "auto":
            return self.chunk
        one = select(tasks, 0)
        queries = one.query.y.shape[0]
        images = one.context.support.y.shape[0] * (1 + algorithm.inner_steps * train) + queries + one.context.unlabelled.shape[0]
        size = images * self._activation_bytes(algorithm.net, one.query.x[:2]) + queries * algorithm.query_bytes
        least, budget = 2, CPU_BYTES
        if self.device.type == "cuda":
            least, budget = 1, torch.cuda.get_device_properties(self.device).total_memory // 16
        chunks = max(least, -(-count(tasks) * size // budget))
        if train and algorithm.inner_steps and (self.device.type == "cpu" or algorithm.saves_memory):
            chunks = max(chunks, -(-count(tasks) * algorithm.inner_steps * self._state_bytes(algorithm, one) // STATE_BYTES))
        chunks += -chunks % least  # so that two cores end together
        return -(-count(tasks) // chunks)

    def _activation_bytes(self, net: Net, x: Tensor) -> int:
        """Bytes of the outputs of all modules of the net, for one of the examples x [n, *input_shape]."""
        if net not in self._activations:
            sizes: list[int] = []
            hooks = [
                module.register_forward_hook(lambda _m, _i, out: sizes.append(out.numel() * out.element_size()))
                for module in net.modules()
                if not list(module.children())
            ]
            with torch.no_grad():
                net(x)
            for hook in hooks:
                hook.remove()
            self._activations[net] = max(1, sum(sizes) // len(x))
        return self._activations[net]

    def _state_bytes(self, algorithm: Algorithm, task: Task) -> int:
        """Bytes of what the way back through an inner step needs of a task's state."""
        if algorithm not in self._states:
            leaves = [leaf for leaf in tree_leaves(algorithm.begin(task.context)) if isinstance(leaf, Tensor) and leaf.requires_grad]
            self._states[algorithm] = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
        return self._states[algorithm]

    def _numbers(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.precision == "fp32" else BFloat16()
