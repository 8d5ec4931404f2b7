"""The only file that knows the task axis: maps a one-task function over stacked tasks, in chunks, on any device.
Train, validation and test share one adaptation path: begin, then step after step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metarun.abilities import OneByOne
from metarun.adaptation import begun, walked
from metarun.algorithm import Algorithm, State
from metarun.data import features
from metarun.data.episodes import Episodes
from metarun.data.slots import Slots
from metarun.errors import UserError
from metarun.inner import Kept
from metarun.kernels import select as kernels
from metarun.kernels.bfloat16 import BFloat16
from metarun.nets.base import Net
from metarun.nets.encoded import Encoded
from metarun.protocols.base import Protocol
from metarun.runtime import memory
from metarun.runtime.distributed import World
from metarun.runtime.execute import Executor
from metarun.runtime.private import tree_leaves, tree_map, tree_structure, tree_unflatten
from metarun.runtime.replica import replica
from metarun.task import AXES, Task, count, own, rows, select, to_float

Module = TypeVar("Module", bound=nn.Module)
Precision = Literal["fp32", "bf16"]
HEADS = 4  # layers as wide as its features that may follow a frozen net
EPISODE_BYTES = 64 * 2**20  # of episodes made at a time in evaluation


def laid_out(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients with the strides of their parameters, as a fused optimizer needs them.

    No two share memory: autograd returns the same tensor for two parameters whose gradients are equal.
    """
    laid: list[Tensor | None] = []
    for g, p in zip(gradients, parameters):
        if g is not None and (g.stride() != p.stride() or any(g is other for other in laid)):
            g = torch.empty_like(p).copy_(g)
        laid.append(g)
    return laid


def objective(
    learner: Algorithm, progress: float, task: Task, *, scanned: bool, kept: Kept = "auto"
) -> tuple[Tensor, dict[str, Tensor], State]:
    """What meta-training descends for one task, its metrics, and with ``unrolls`` > 1 the state to go on from, else ().

    ``scanned`` and ``kept`` as in ``walked``.
    """
    read = (lambda state: state) if learner.every_state else None
    steps = learner.steps(task.context, True)
    first, ahead = begun(learner, task.context, task.start)
    last, later = walked(learner, task.context, first, steps, ahead, read, scanned=scanned, kept=kept)
    states = [first, *(rows(later, k) for k in range(steps))] if read else [last]
    loss, metrics = _numbers(learner.objective(states, task, progress), type(learner).__name__)
    carried = tree_map(torch.detach, last) if learner.unrolls > 1 else ()
    return loss, {name: value.detach() for name, value in metrics.items()}, carried


def _numbers(found: Any, learner: str) -> tuple[Tensor, dict[str, Tensor]]:
    """What an objective has returned: a loss and metrics, tensors [] each; of more the gradient would be that of their sum.

    Raises:
        UserError: it is something else.
    """
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
        raise UserError(f"{learner}.objective returned a {type(found).__name__}: return the loss, a tensor [], and a dictionary of metrics")
    loss, metrics = found
    for name, value in {"the loss": loss, **{f"the metric {name}": value for name, value in metrics.items()}}.items():
        if not isinstance(value, Tensor) or value.dim():
            what = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise UserError(f"{learner}.objective returned {what} as {name}: return one number for a task, a tensor [], such as the mean")
    return loss, metrics


class Engine:
    """Runs an algorithm on stacked tasks.

    Args:
        device: where algorithm and tasks live.
        precision: ``fp32``, or ``bf16`` for convolutions and linear layers in bfloat16 (see ``BFloat16``).
        world: the processes that share the work; None for this one alone.
        map: ``vmap`` (all tasks of a chunk at once) or ``loop`` (one by one, for debugging and operators without batching rule).
        chunk: tasks at a time; ``auto`` picks what fits the memory (``chunk_size``). Results do not depend on it beyond rounding.
        record: record what a step does and repeat it without Python in between, to the same bits (``runtime.recording``).
        threads: ``auto``: chunks side by side on the cores of a CPU; or 1.
        remat: what of a long inner loop is kept for the way back, the rest being computed again: ``all``, nothing again; ``states``, what
            fits into 64 MiB for each chunk, states before all else; a number n, the state before every n-th step; ``auto``, what fits
            into 512 MiB. Results do not depend on it beyond rounding.
        kernels: ``auto``, or ``torch`` for plain operations of torch in place of whatever is faster (``kernels.select``).
    """

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        world: World | None = None,
        *,
        map: Literal["vmap", "loop"],
        chunk: Annotated[int, Ge(1)] | Literal["auto"],
        record: bool = True,
        threads: Literal["auto", 1] = "auto",
        kernels: kernels.Choice = "auto",
        remat: Annotated[int, Ge(1)] | Literal["auto", "all", "states"] = "auto",
    ) -> None:
        self.remat: Kept = remat
        self.device, self.precision, self.map, self.chunk, self.kernels = device, precision, map, chunk, kernels
        self.world = world or World()
        self.executor = Executor(device, record=record, threads=threads)
        self._activations: WeakKeyDictionary[Net, int] = WeakKeyDictionary()
        self._known: WeakKeyDictionary[Episodes, Episodes] = WeakKeyDictionary()  # by the same ones with images, those with features

    def train_on(
        self, algorithm: Algorithm, episodes: Episodes, slots: Slots, carried: State, progress: float
    ) -> tuple[dict[str, float], State]:
        """``meta_gradient`` over the episodes in these places of a meta-batch, each rank doing its share; all ranks end with the same.

        Args:
            carried: the states that this rank's share returned in the last meta-update, stacked; () for none.

        Returns:
            the objective's metrics, averaged over all ranks, and the states to carry on with.
        """
        share = self.world.share(range(len(slots.indices)))
        sums: dict[str, float] = {}
        if share:
            tasks = slots.tasks(episodes, share, carried, algorithm.unrolls)
            means, carried = self.unroll(algorithm, tasks, progress, len(slots.indices))
            sums = {name: mean * len(share) for name, mean in means.items()}
        self.world.sum_gradients(algorithm.parameters())
        return {name: value / len(slots.indices) for name, value in self.world.sum(sums).items()}, carried

    def meta_gradient(self, algorithm: Algorithm, tasks: Task, progress: float) -> dict[str, float]:
        """Add the gradient of the mean objective over tasks to ``.grad``; return the objective's metrics, averaged."""
        return self.unroll(algorithm, tasks, progress, count(tasks))[0]

    def unroll(self, algorithm: Algorithm, tasks: Task, progress: float, total: int) -> tuple[dict[str, float], State]:
        """``meta_gradient``, and with ``unrolls`` > 1 the last states without their graph, stacked; else ().

        ``total``: size of the meta-batch that these tasks are a part of.
        """
        here = count(tasks)
        kept = algorithm.footprint(select(tasks, 0), True).kept if self.remat == "auto" else self.remat
        algorithm.anneal(progress)
        parameters = [p for p in algorithm.parameters() if p.requires_grad]

        def one(learner: Algorithm, progress: float, task: Task) -> tuple[Tensor, dict[str, Tensor], State]:
            return objective(learner, progress, task, scanned=self.scans(learner), kept=kept)

        def derive(learner: Algorithm, item: tuple[Task, float]) -> tuple[Sequence[Tensor | None], dict[str, Tensor], State]:
            chunk, progress = item
            with self._arithmetic():
                losses, metrics, states = self._map(learner, partial(one, learner, progress), chunk)
                gradients = torch.autograd.grad(losses.sum() / total, parameters, allow_unused=True)
            return laid_out(gradients, parameters), {name: values.sum() for name, values in metrics.items()}, states

        items = [(chunk, progress) for chunk in self._chunks(algorithm, tasks, train=True)]
        sums: dict[str, Tensor] = {}
        carried: list[State] = []
        for gradients, metrics, states in self._each(algorithm, derive, items, ("gradient", total, kept)):
            for parameter, gradient in zip(parameters, gradients):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0) + value
            carried.append(states)
        means = (torch.stack(list(sums.values())) / here).tolist() if sums else []  # one wait for a GPU, not one for each
        return dict(zip(sums, means)), tree_map(lambda *leaves: torch.cat(leaves), *carried)

    def gathered(self, carried: State) -> list[Tensor]:
        """The leaves of the states that all ranks carry, [meta_batch, …] on the CPU, for a checkpoint; every rank calls it."""
        parts = self.world.gather([leaf.cpu() for leaf in tree_leaves(carried)])
        return [torch.cat(leaves) for leaves in zip(*filter(None, parts))]  # a rank without a share has none

    @torch.no_grad()
    def restored(self, like: State, leaves: list[Tensor]) -> State:
        """This rank's share of the states whose ``gathered`` leaves a checkpoint holds, in the form of ``like``; () where it holds none."""
        if not leaves:
            return ()
        form = tree_structure(like)
        share = self.world.share(range(len(leaves[0])))
        return tree_unflatten([leaf[share.start : share.stop].to(self.device) for leaf in leaves], form)

    @torch.no_grad()
    def evaluate(self, algorithm: Algorithm, tasks: Task, asked: Protocol) -> dict[str, Tensor]:
        """What comes of asking so of every task, [tasks, …] on the CPU; memory does not grow with their number."""

        def measure(learner: Algorithm, task: Task, _: float) -> dict[str, Tensor]:
            return asked.measure(learner, task, scanned=self.scans(learner))

        return tree_map(Tensor.cpu, self.over(algorithm, measure, tasks, 0.0, ("measure", asked)))

    def score(
        self, algorithm: Algorithm, episodes: Episodes, n: int, asked: Protocol, after_block: Callable[[int], None]
    ) -> dict[str, np.ndarray]:
        """``evaluate`` on episodes 0..n-1, made a block at a time so that memory stays flat; ``after_block`` hears how many are done.

        Each rank scores its share, in as many blocks as the others, so that ``after_block`` may be collective.
        Returns what ``evaluate`` does of all n episodes, in float64, the same on every rank.
        """
        was_training = algorithm.training
        algorithm.eval()
        learner, episodes = self.encoded(algorithm, episodes, n)
        block = max(1, EPISODE_BYTES // memory.size(own(episodes.batch([0]))))
        share, parts = self.world.share(range(n)), []
        for first in range(0, -(-n // self.world.size), block):
            indices = share[first : first + block] or range(1)  # a rank without a share still learns the shapes
            parts.append(self.evaluate(learner, episodes.batch(indices), asked))
            after_block(min(self.world.size * (first + block), n))
        algorithm.train(was_training)
        mine = {name: torch.cat([part[name] for part in parts]).double().numpy()[: len(share)] for name in parts[0]}
        return {name: self.world.concatenate(values) for name, values in mine.items()}

    @torch.no_grad()
    def encoded(self, algorithm: Algorithm, episodes: Episodes, n: int) -> tuple[Algorithm, Episodes]:
        """Algorithm and episodes as they are, or, where that is the same and less work, on features of the images, each computed once."""
        net = algorithm.net
        episodes = self.known(net, episodes)
        if net.frozen or not algorithm.encodes:
            return algorithm, episodes
        found = features.of_images(episodes, net, n, self._encode(algorithm, lambda learner, x: learner.features_of(x)))
        if found is None:
            return algorithm, episodes
        learner = replica(algorithm)
        learner.net = Encoded(net)
        # What a method does with features takes memory, too: the chunks stay as small as with images.
        self._activations[learner.net] = self._activation_bytes(algorithm)
        return learner, found

    @torch.no_grad()
    def known(self, net: Net, episodes: Episodes) -> Episodes:
        """Episodes as they are, or of features of the net's frozen ``stem``, which it takes as well: computed once for all runs."""
        if net.stem is None:
            return episodes
        if episodes not in self._known:
            encode = self._encode(net.stem, lambda stem, x: stem(x))
            found = features.of_frozen(episodes, net.stem, encode, f"{self.device.type} {self.precision}")
            if found is None:
                return episodes
            self._known[episodes] = found
        return self._known[episodes]

    def _encode(self, module: Module, encode: Callable[[Module, Tensor], Tensor]) -> features.Encode:
        def of_stored(module: Module, images: Tensor) -> Tensor:
            with self._arithmetic():
                return encode(module, to_float(images.to(self.device)))

        return partial(self.executor.map, of_stored, module)

    def over(
        self, algorithm: Algorithm, function: Callable[[Algorithm, Task, float], Any], tasks: Task, number: float, name: Hashable
    ) -> Any:
        """``function(learner, task, number)`` of every one of the stacked tasks, its tensors stacked.

        Args:
            function: for one task; nested tensors come of it.
            number: one for all, such as the progress.
            name: says all that the function depends on beside these.
        """

        def answer(learner: Algorithm, item: tuple[Task, float]) -> Any:
            chunk, number = item
            with self._arithmetic():
                return self._map(learner, lambda task: function(learner, task, number), chunk)

        items = [(chunk, number) for chunk in self._chunks(algorithm, tasks, train=torch.is_grad_enabled())]
        return tree_map(lambda *leaves: torch.cat(leaves), *self._each(algorithm, answer, items, name))

    def _chunks(self, algorithm: Algorithm, tasks: Task, train: bool) -> list[Task]:
        size = self.chunk_size(algorithm, tasks, train)
        return [select(tasks, slice(first, first + size)) for first in range(0, count(tasks), size)]

    def _each(self, algorithm: Algorithm, function: Callable[[Algorithm, Any], Any], items: Sequence[Any], name: Hashable) -> Iterator[Any]:
        """``function(algorithm, item)`` of every item, in order; ``name`` says what the function depends on beside these."""
        with sdpa_kernel(SDPBackend.MATH):  # other attention of torch has no second derivative, nor a rule for vmap; for all threads
            if self.scans(algorithm):
                yield from self.executor.map(function, algorithm, items, name)
            else:
                yield from (function(algorithm, item) for item in items)

    def _map(self, algorithm: Algorithm, function: Callable[[Task], Any], tasks: Task) -> Any:
        if self.scans(algorithm):
            return torch.vmap(function, in_dims=(AXES,))(tasks)
        results = [function(select(tasks, i)) for i in range(count(tasks))]
        return tree_map(lambda *leaves: torch.stack(leaves), *results)

    def scans(self, algorithm: Algorithm) -> bool:
        """Whether tasks go through torch.vmap, and inner loops are scans."""
        parts = (algorithm.problem.simulator, *algorithm.modules())
        return self.map == "vmap" and not any(isinstance(part, OneByOne) for part in parts)

    def chunk_size(self, algorithm: Algorithm, tasks: Task, train: bool) -> int:
        """Tasks per chunk; with ``auto`` by ``memory.chunk_size``.

        What one task takes is the method's to say (``Algorithm.footprint``), and how many inner steps are kept ``memory.kept_steps``.
        """
        if self.chunk != "auto":
            return self.chunk
        one = select(tasks, 0)
        held = algorithm.footprint(one, train)
        kept = memory.kept_steps(algorithm.steps(one.context, train), self.device, states_alone=held.kept == "states")
        stem = algorithm.net.stem
        encoded = stem is not None and one.query.x.shape[1:] == (stem.features,)
        each = HEADS * 4 * algorithm.net.features if encoded else self._activation_bytes(algorithm)
        size = (held.examples + held.repeated * kept) * each + held.bytes
        return memory.chunk_size(count(tasks), size, self.device)

    def _activation_bytes(self, algorithm: Algorithm) -> int:
        net = algorithm.net
        if net not in self._activations:
            dtype = next((p.dtype for p in net.parameters()), torch.float32)
            examples = torch.zeros(2, *algorithm.problem.input_shape, dtype=dtype, device=self.device)
            with kernels.using(self.kernels):
                self._activations[net] = memory.activations(net, examples)
        return self._activations[net]

    def _arithmetic(self) -> ExitStack:
        """The kernels and the precision of this engine, for the thread that enters it."""
        stack = ExitStack()
        stack.enter_context(kernels.using(self.kernels))
        if self.precision == "bf16":
            stack.enter_context(BFloat16())
        return stack
