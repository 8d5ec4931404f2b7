"""Evolution strategies: the gradient that back-propagation finds, within the error of so many perturbations, and keyed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from helpers import Double, Identity, engine, in_float64, meta_gradient, quadratics, relative_error, same, small
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from metarun.algorithm import Algorithm, Metrics
from metarun.data.slots import Slots, slots
from metarun.engine import Engine
from metarun.estimators.evolution import Evolution
from metarun.problem import EpisodeSpec, Problem, Regression
from metarun.run import Run
from metarun.runtime.distributed import World
from metarun.task import Batch, Context, Task

F64 = torch.float64
SIZE = 5  # numbers of the toys below
SIGNS = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0], dtype=F64)


class Vectors:
    """Tasks of one vector c each, standard normal, keyed by their index."""

    def batch(self, indices: Sequence[int]) -> Task:
        keys = torch.tensor([7919 * i + 1 for i in indices])
        c = torch.stack([torch.randn(1, SIZE, generator=torch.Generator().manual_seed(i), dtype=F64) for i in indices])
        both = Batch(c, c[..., :1])
        return Task(Context(both, torch.zeros(len(keys), 1, dtype=torch.int64), keys, {}), both)


class Toy(Algorithm):
    """θ [5], and nothing else."""

    kinds = frozenset({"regression"})

    def __init__(self, *start: float) -> None:
        spec = EpisodeSpec(way=1, shot=1, query=1)
        super().__init__(Identity(SIZE), Problem(Regression(), (SIZE,), 1, 0, spec, spec))
        self.theta = nn.Parameter(torch.tensor(start or [0.3, -1.0, 0.5, 2.0, -0.2], dtype=F64))

    def begin(self, context: Context) -> Any:
        return (self.theta - context.support.x[0],)

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return state[0][:1].expand(x.shape[0], 1)


class Bowl(Toy):
    """Σ_i i (θ_i − c_i)² / 2."""

    def objective(self, states: Any, task: Task, progress: float) -> tuple[Tensor, Metrics]:
        loss = (torch.arange(1, SIZE + 1) * states[-1][0].square()).sum() / 2
        return loss, {"loss": loss}


class Plane(Toy):
    """c · θ, far from zero."""

    def objective(self, states: Any, task: Task, progress: float) -> tuple[Tensor, Metrics]:
        loss = 1000 + task.context.support.x[0] @ self.theta
        return loss, {"loss": loss}


class Even(Toy):
    """‖θ‖² + 3, whose slope at θ = 0 is zero."""

    def objective(self, states: Any, task: Task, progress: float) -> tuple[Tensor, Metrics]:
        loss = self.theta.square().sum() + 3
        return loss, {"loss": loss}


class Balance(Toy):
    """Influence balancing (Tallec & Ollivier 2017; Vicol et al. 2021, section 5): s ← A s + θ (1, 1, −1, −1, −1), loss (s_1 − 1)² / 2.

    θ is the first number of the parameter. Seen over one step it moves s_1 up, in the long run down: a cut gradient has the wrong sign.
    """

    unrolls, inner_steps = 20, 1

    def begin(self, context: Context) -> Any:
        return (torch.zeros(SIZE, dtype=F64),)

    def step(self, state: Any, context: Context, k: Any) -> Any:
        s = state[0]
        return ((s + torch.cat([s[1:], s[:1] * 0])) / 2 + self.theta[0] * SIGNS,)

    def objective(self, states: Any, task: Task, progress: float) -> tuple[Tensor, Metrics]:
        loss = (states[-1][0][0] - 1).square() / 2
        return loss, {"loss": loss}


def whole(iteration: int, tasks: int, learner: Algorithm) -> Slots:
    """A meta-batch whose tasks all began in iteration 0."""
    return Slots(list(range(tasks)), [iteration == 0] * tasks, [iteration] * tasks, learner.inner_steps)


def estimates(evolution: Evolution, learner: Algorithm, tasks: Task) -> dict[str, Tensor]:
    """Of every task its estimate, by parameter."""
    found: dict[str, Tensor] = engine().over(learner, partial(evolution.estimate, True), tasks, 0.0, "estimates")[0]
    return found


def agrees(samples: Tensor, exact: Tensor) -> None:
    """The mean of independent samples [n, …] lies within 4.5 standard errors of what it should be, and these are small enough to tell."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - exact).abs() < 4.5 * error).all(), (samples.mean(0), exact, error)
    assert error.norm() < 0.1 * exact.norm()


@torch.no_grad()
@pytest.mark.parametrize("persistent", [False, True])
def test_it_agrees_with_the_gradient_of_a_quadratic(persistent: bool) -> None:
    learner, tasks = Bowl(), Vectors().batch([0] * 4000)
    tasks = tasks._replace(context=tasks.context._replace(key=torch.arange(4000)))  # one task, other perturbations
    exact = torch.arange(1, SIZE + 1) * (learner.theta - tasks.context.support.x[0, 0])
    agrees(estimates(Evolution(0.1, 2, persistent=persistent), learner, tasks)["theta"], exact)


@torch.no_grad()
def test_on_a_plane_nothing_but_the_slope_is_left_and_at_a_minimum_nothing() -> None:
    tasks, evolution = Vectors().batch(range(6)), Evolution(0.1, 1, persistent=False)
    learner = Plane()
    noise = torch.vmap(lambda key: evolution.noise(keyed(key), {"theta": learner.theta}, 0)["theta"])(tasks.context.key)
    slopes = (noise * tasks.context.support.x[:, 0]).sum(1, keepdim=True)
    torch.testing.assert_close(estimates(evolution, learner, tasks)["theta"], noise * slopes / 0.01, rtol=1e-9, atol=1e-10)
    assert torch.equal(estimates(evolution, Even(0.0, 0.0, 0.0, 0.0, 0.0), tasks)["theta"], torch.zeros(6, SIZE, dtype=F64))


def keyed(key: Tensor, start: Any = ()) -> Task:
    """A task of which nothing is known but its key, and where it goes on."""
    nothing = Batch(torch.zeros(0), torch.zeros(0))
    return Task(Context(nothing, torch.zeros(0), key, {}), nothing, start)


def test_perturbations_of_parameters_pairs_and_meta_updates_have_nothing_in_common() -> None:
    evolution, parameters = Evolution(1.0, 3, persistent=True), {name: torch.zeros(200) for name in "abcd"}
    found = []
    for k in range(0, 12, 2):
        start = slots(k // 2, 1, 8, 2).tasks(Vectors(), range(1), (), 8).start
        task = keyed(torch.tensor(5), tree_map(lambda leaf: leaf[0], start))
        assert int(task.start.k) == k  # type: ignore[union-attr]
        found += [value for pair in range(3) for value in evolution.noise(task, parameters, pair).values()]
    numbers = torch.stack(found)  # [6 * 3 * 4, 200]
    correlations = torch.corrcoef(numbers) - torch.eye(len(numbers))
    assert correlations.abs().max() < 0.4  # 5.6 standard errors: of 2556 pairs none is alike
    assert abs(float(numbers.mean())) < 0.04
    assert float(numbers.std()) == pytest.approx(1, abs=0.03)


@torch.no_grad()
def test_persistent_ones_see_the_whole_of_a_loop_that_is_cut_and_others_do_not() -> None:
    learner, n = Balance(0.5, 0.0, 0.0, 0.0, 0.0), 4000
    state, influence = torch.zeros(SIZE, dtype=F64), torch.zeros(SIZE, dtype=F64)
    carried: dict[bool, Any] = {False: (), True: ()}
    for iteration in range(learner.unrolls):
        state, influence = (((s + torch.cat([s[1:], s[:1] * 0])) / 2 + by * SIGNS) for s, by in ((state, 0.5), (influence, 1.0)))
        for persistent in (False, True):
            tasks = whole(iteration, n, learner).tasks(Vectors(), range(n), carried[persistent], learner.unrolls)
            evolution = Evolution(0.1, 1, persistent=persistent)
            found, _, carried[persistent] = engine(record=False).over(learner, partial(evolution.estimate, True), tasks, 0.0, "estimates")
            [(plus, minus, _)] = carried[persistent]
            assert torch.equal(plus[0], minus[0]) is not persistent  # states that come apart are noise to a gradient of one part
            if iteration in (0, 3, 19):
                slope = influence[0] if persistent else SIGNS[0]
                agrees(found["theta"][:, 0], (state[0] - 1) * slope)
    assert influence[0] < -1.5  # after twenty steps the true gradient has the other sign than the cut one


def test_back_propagation_through_the_cut_loop_is_what_others_estimate() -> None:
    """The cut gradient that the test above reckons with is that of ``Engine.unroll``."""
    learner, carried = Balance(0.5, 0.0, 0.0, 0.0, 0.0), ()
    state = torch.zeros(SIZE, dtype=F64)
    for iteration in range(3):
        state = (state + torch.cat([state[1:], state[:1] * 0])) / 2 + 0.5 * SIGNS
        learner.zero_grad()
        _, carried = engine().train_on(learner, Vectors(), whole(iteration, 2, learner), carried, 0.0)  # type: ignore[arg-type]
        assert learner.theta.grad is not None
        torch.testing.assert_close(learner.theta.grad[0], state[0] - 1)


def trained(how: Engine, gradient: str, iterations: int = 5) -> list[Any]:
    """Gradients, metrics and carried states of the LSTM optimizer on quadratic functions, in float64, whose parameters move."""
    run = Run(quadratics())
    learner, episodes = run.algorithm.double(), Double(run.episodes("train"))
    evolution, carried, found = Evolution(0.1, 2, persistent=gradient == "pes"), (), []
    for i in range(iterations):
        learner.zero_grad(set_to_none=True)
        turn = slots(i, 4, learner.unrolls, learner.inner_steps)
        metrics, carried = evolution.train_on(how, learner, episodes, turn, carried, 0.0)  # type: ignore[arg-type]
        learned = [p for p in learner.parameters() if p.requires_grad]
        found.append((torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learned]), metrics, carried))
        with torch.no_grad():
            for p in learned:
                if p.grad is not None and how.world.size == 1:
                    p.sub_(0.01 * p.grad)
    return found


@pytest.mark.parametrize("gradient", ["es", "pes"])
def test_the_same_twice_and_recordings_change_no_bit(gradient: str) -> None:
    first = trained(engine(), gradient)
    assert float(first[-1][0].norm()) > 0
    assert same(trained(engine(), gradient), first)
    assert same(trained(engine(record=False), gradient), first)


@pytest.mark.parametrize("gradient", ["es", "pes"])
@pytest.mark.parametrize(("mapping", "chunk"), [("loop", 1), ("vmap", 3), ("vmap", 1)])
@pytest.mark.slow
def test_chunks_and_loops_change_nothing(gradient: str, mapping: str, chunk: int) -> None:
    for (mine, metrics, carried), (theirs, means, states) in zip(trained(engine(mapping, chunk), gradient), trained(engine(), gradient)):
        assert relative_error(mine, theirs) < 1e-8
        assert metrics == pytest.approx(means, rel=1e-8)
        for one, other in zip(tree_leaves(carried), tree_leaves(states), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


class Part(World):
    """A rank whose share stays alone: nothing is added up."""

    def sum_gradients(self, parameters: Any) -> None: ...

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        return values


@pytest.mark.parametrize("gradient", ["es", "pes"])
def test_the_shares_of_ranks_add_up(gradient: str) -> None:
    alone = trained(Engine(torch.device("cpu"), "fp32", Part(0, 1), map="vmap", chunk=20), gradient, 1)
    shares = [trained(Engine(torch.device("cpu"), "fp32", Part(rank, 3), map="vmap", chunk=20), gradient, 1) for rank in range(3)]
    assert relative_error(sum(share[0][0] for share in shares), alone[0][0]) < 1e-9
    assert sum(share[0][1]["loss"] for share in shares) == pytest.approx(alone[0][1]["loss"], rel=1e-9)


@pytest.mark.parametrize("algo", ["protonet", "maml", "r2d2"])
def test_methods_of_every_kind_get_the_gradient_of_back_propagation(algo: str) -> None:
    """Along that gradient g an estimate has the mean ‖g‖² and the standard deviation √2 ‖g‖², pair by pair."""
    learner, tasks = in_float64(small(f"algo={algo}", "net=mlp", "net.activation=tanh", "net.sizes=[6]"), tasks=1)
    g = meta_gradient(learner, tasks, engine())
    copies = 600
    many = tree_map(lambda leaf: leaf.expand(copies, *leaf.shape[1:]), tasks)
    many = many._replace(context=many.context._replace(key=torch.arange(copies)))
    with torch.no_grad():
        found = estimates(Evolution(1e-3, 1, persistent=False), learner, many)
    order = [name for name, p in learner.named_parameters() if p.requires_grad]
    flat = torch.cat([found[name].reshape(copies, -1) for name in order], 1)
    agrees(flat @ g / (g @ g), torch.ones((), dtype=F64))
