"""Inner loops that are cut and go on in the next meta-update: what is carried is what one long loop has, however it is computed or cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers import Double, engine, interrupt_after, metrics_of, quadratics, relative_error, same
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from metarun.adaptation import adapt
from metarun.algorithm import Algorithm
from metarun.data.slots import slots
from metarun.engine import Engine
from metarun.errors import UserError
from metarun.experiment import train
from metarun.run import Run
from metarun.runtime.distributed import World
from metarun.storage import checkpoint
from metarun.task import Start
from metarun.trainer import Interrupted

BATCH = 4


class Update(NamedTuple):
    """What a meta-update leaves behind."""

    gradient: Tensor
    metrics: dict[str, float]
    carried: Any


def updates(how: Engine, iterations: int, *words: str, rate: float = 0.0) -> list[Update]:
    """Meta-updates of the LSTM optimizer in float64, of which each moves the meta-parameters by ``rate`` times the gradient."""
    run = Run(quadratics(*words))
    learner, episodes = run.algorithm.double(), Double(run.episodes("train"))
    carried: Any = ()
    found = []
    for i in range(iterations):
        learner.zero_grad(set_to_none=True)
        turn = slots(i, BATCH, learner.unrolls, learner.inner_steps)
        metrics, carried = how.train_on(learner, episodes, turn, carried, 0.0)
        gradients = [p.grad for p in learner.parameters() if p.requires_grad]
        found.append(Update(torch.cat([g.flatten() for g in gradients]), metrics, carried))
        with torch.no_grad():
            for p in learner.parameters():
                if p.requires_grad:
                    p.sub_(rate * p.grad)
    return found


def test_the_carried_loop_is_one_long_loop_bit_for_bit() -> None:
    run = Run(quadratics())
    learner, episodes = run.algorithm.double(), Double(run.episodes("train"))
    for i, update in enumerate(updates(engine("loop"), 8)):
        turn = slots(i, BATCH, learner.unrolls, learner.inner_steps)
        tasks = episodes.batch(turn.indices)
        for place, age in enumerate(turn.age):
            task = tree_map(lambda leaf, place=place: leaf[place], tasks)
            *_, uncut = adapt(learner, task.context, (age + 1) * learner.inner_steps)
            assert same(tree_map(lambda leaf, place=place: leaf[place], update.carried), tree_map(torch.detach, uncut))
        assert not any(leaf.requires_grad for leaf in tree_leaves(update.carried))


def test_a_step_hears_how_many_went_before() -> None:
    learner = Counting(Run(quadratics()))
    tasks = Double(Run(quadratics()).episodes("train")).batch(range(2))
    start = Start((torch.tensor([[5.0], [7.0]], dtype=torch.float64),), torch.tensor([False, True]), torch.tensor([4, 0]))
    _, carried = engine().unroll(learner, tasks._replace(start=start), 0.0, 2)
    assert carried[0].tolist() == [[5.0 + 4 + 5], [0.0 + 1]]  # the second begins anew, whatever was carried


class Counting(Algorithm):
    """A state of one number, to which step k adds k."""

    unrolls, inner_steps = 3, 2

    def __init__(self, run: Run) -> None:
        super().__init__(run.algorithm.net, run.problem)
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def begin(self, context: Any) -> Any:
        return (context.support.x.new_zeros(1),)

    def step(self, state: Any, context: Any, k: Any) -> Any:
        return (state[0] + k,)

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return self.scale * state[0] * x[:, :1]


class Growing(Counting):
    """A state with a number more after every step."""

    def step(self, state: Any, context: Any, k: Any) -> Any:
        return (torch.cat([state[0], state[0][:1] + k]),)

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return self.scale * state[0].sum() * x[:, :1]


class Renamed(Counting):
    """A state that is nested otherwise after a step."""

    def step(self, state: Any, context: Any, k: Any) -> Any:
        return {"sum": tree_leaves(state)[0] + k}

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return self.scale * tree_leaves(state)[0] * x[:, :1]


@pytest.mark.parametrize("method", [Growing, Renamed])
@pytest.mark.parametrize("mapping", ["vmap", "loop"])
def test_a_method_whose_state_changes_its_form_is_refused_in_one_line(method: type[Counting], mapping: str) -> None:
    learner, episodes, how = method(Run(quadratics())), Double(Run(quadratics()).episodes("train")), engine(mapping)
    carried = how.train_on(learner, episodes, slots(0, BATCH, 3, 2), (), 0.0)[1]
    with pytest.raises(UserError, match=r"a method with unrolls > 1 keeps the form of its state") as refusal:
        how.train_on(learner, episodes, slots(1, BATCH, 3, 2), carried, 0.0)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("mapping", "chunk"), [("vmap", 1000), ("vmap", 3), ("vmap", 1)])
def test_all_tasks_at_once_or_in_chunks_do_what_a_loop_does(mapping: str, chunk: int) -> None:
    for one, other in zip(updates(engine("loop"), 6, rate=0.01), updates(engine(mapping, chunk), 6, rate=0.01), strict=True):
        assert relative_error(other.gradient, one.gradient) < 1e-9
        assert other.metrics == pytest.approx(one.metrics, rel=1e-9)
        for mine, theirs in zip(tree_leaves(other.carried), tree_leaves(one.carried), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_recordings_and_threads_change_no_bit() -> None:
    plain = updates(engine(chunk=2, record=False), 7, rate=0.01)
    assert same(updates(engine(chunk=2), 7, rate=0.01), plain)
    torch.set_num_threads(2)
    try:
        assert same(updates(engine(chunk=2), 7, rate=0.01), plain)
    finally:
        torch.set_num_threads(1)


class Part(World):
    """A rank whose share stays alone: nothing is added up."""

    def sum_gradients(self, parameters: Any) -> None: ...

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        return values


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_the_shares_of_ranks_add_up(ranks: int) -> None:
    parts = []
    for rank in range(ranks):
        run = Run(quadratics())
        learner, episodes = run.algorithm.double(), Double(run.episodes("train"))
        how, carried, found = Engine(torch.device("cpu"), "fp32", Part(rank, ranks), map="vmap", chunk=20), (), []
        for i in range(5):
            learner.zero_grad(set_to_none=True)
            metrics, carried = how.train_on(learner, episodes, slots(i, BATCH, 3, 2), carried, 0.0)
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.parameters() if p.requires_grad]
            found.append(Update(torch.cat([g.flatten() for g in grads]), metrics, carried))
        parts.append(found)
    for i, whole in enumerate(updates(engine(), 5)):
        assert relative_error(sum(part[i].gradient for part in parts), whole.gradient) < 1e-9
        assert sum(part[i].metrics.get("loss", 0.0) for part in parts) == pytest.approx(whole.metrics["loss"], rel=1e-9)
        leaves = zip(*(tree_leaves(part[i].carried) for part in parts if part[i].carried != ()))
        for mine, theirs in zip(leaves, tree_leaves(whole.carried), strict=True):
            torch.testing.assert_close(torch.cat(mine), theirs, rtol=1e-9, atol=1e-12)


class Pair(World):
    """Rank ``rank`` of two, of whom the other's values are known."""

    def __init__(self, rank: int, others: Any) -> None:
        super().__init__(rank, 2)
        self.others = others

    def gather(self, value: Any) -> list[Any]:
        return [value, self.others] if self.rank == 0 else [self.others, value]


@pytest.mark.parametrize("split", [0, 1, 2])
def test_what_ranks_carry_is_gathered_and_shared_out_again(split: int) -> None:
    """Also where a rank had nothing to do."""
    whole = {"a": torch.arange(12.0).view(4, 3), "b": torch.arange(4)}
    first, second = ({name: leaf[part] for name, leaf in whole.items()} for part in (slice(split), slice(split, 4)))
    mine = Engine(torch.device("cpu"), "fp32", Pair(0, tree_leaves(second)), map="vmap", chunk=1)
    leaves = mine.gathered(first if split else ())
    assert same(leaves, tree_leaves(whole))
    for rank, share in ((0, slice(0, 2)), (1, slice(2, 4))):
        how = Engine(torch.device("cpu"), "fp32", World(rank, 2), map="vmap", chunk=1)
        assert same(how.restored(tree_map(lambda leaf: leaf[0], whole), leaves), {name: leaf[share] for name, leaf in whole.items()})
    assert mine.restored(whole, []) == ()


GRADIENTS = pytest.mark.parametrize("gradient", ["backprop", "es", "pes"])


def left_behind(folder: Path) -> Any:
    """All numbers of a finished run, what is carried included."""
    states = [checkpoint.load(folder / "checkpoints" / f"{name}.pt") for name in ("last", "best")]
    return [[state[key] for key in ("algorithm", "outer", "carried")] for state in states], metrics_of(folder)


def cut(values: dict[str, Any], folder: Path, after: int, resume: bool = False) -> None:
    """Start or resume a run, and press Ctrl-C in its so many-th step."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(after, patch)
        with pytest.raises(Interrupted):
            train(values, folder, resume=resume)


@pytest.mark.parametrize("gradient", ["backprop", *(pytest.param(name, marks=pytest.mark.slow) for name in ("es", "pes"))])
@pytest.mark.slow
def test_a_run_cut_at_any_iteration_is_resumed_bit_for_bit(gradient: str, tmp_path: Path) -> None:
    values = quadratics(f"optim.gradient={gradient}", "optim.pairs=2")
    train(values, tmp_path / "straight")
    expected = left_behind(tmp_path / "straight")
    for after in range(1, values["trainer"]["iterations"] + 1):
        cut(values, tmp_path / f"cut{after}", after)
        train(values, tmp_path / f"cut{after}", resume=True)
        assert same(left_behind(tmp_path / f"cut{after}"), expected), f"cut in iteration {after}"


def test_a_checkpoint_that_carries_nothing_begins_anew_and_stays_exact(tmp_path: Path) -> None:
    """As one of before, or one that was saved when another rank was lost."""
    values, last = quadratics(), "checkpoints/last.pt"
    once, twice = tmp_path / "once", tmp_path / "twice"
    for folder in (once, twice):
        cut(values, folder, 2)
        state = checkpoint.load(folder / last)
        assert {len(leaf) for leaf in state["carried"]} == {BATCH}
        del state["carried"], state["progress"]["since"]
        checkpoint.save(folder / last, state)
    train(values, once, resume=True)
    cut(values, twice, 2, resume=True)  # in the middle of what was begun anew
    assert checkpoint.load(twice / last)["progress"]["since"] == 2
    train(values, twice, resume=True)
    assert same(left_behind(twice), left_behind(once))
    train(values, tmp_path / "straight")
    assert not same(left_behind(once)[0], left_behind(tmp_path / "straight")[0])
