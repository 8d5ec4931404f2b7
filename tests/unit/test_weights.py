"""Learners that weigh their training data: against the papers' programs written out by hand in float64, and against finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Identity, double, engine, same, small, vectors
from torch import Tensor, nn
from torch.func import functional_call

from metarun.adaptation import adapt
from metarun.algos.weights.l2rw import L2RW
from metarun.drawing import tensorboard_images
from metarun.errors import UserError
from metarun.experiment import train
from metarun.protocols.weights import auroc
from metarun.run import Run
from metarun.task import Batch, Context, Task, select

WEIGHERS = ("l2rw", "metaweight", "datarater", "ratio", "hard_mining", "random_weights")
SET = ("episode=dataset", "shot=4", "query=2", "episode.clean=2", "episode.corrupt=labels", "episode.rate=0.3")


def built(algo: str, *words: str, index: int = 0) -> tuple[Any, Task]:
    """A small tanh net on toy images in float64, and a task with wrong labels."""
    run = Run(small(f"algo={algo}", "net=mlp", "net.sizes=[6]", "net.activation=tanh", *SET, *words))
    tasks = run.episodes("test").batch([index])
    tasks = tasks._replace(context=tasks.context._replace(shared=tasks.context.shared.double() / 255))
    return run.algorithm.double(), double(select(tasks, 0))


def gradient_of(algorithm: Any, fast: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """∇ of the mean loss, flat, by plain autograd."""
    weights = {name: w.detach().requires_grad_() for name, w in fast.items()}
    loss = nn.functional.cross_entropy(functional_call(algorithm, weights, (x, x)), y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(weights.values()))])


@pytest.mark.parametrize("batch", [0, 5])
def test_l2rw_weighs_by_how_gradients_agree(batch: int) -> None:
    """w_i ∝ max(⟨g_i, g_clean⟩, 0), one gradient at a time."""
    algorithm, task = built("l2rw", f"algo.batch={batch}")
    context = task.context
    states = list(adapt(algorithm, context, 4))
    seen = torch.zeros(len(context.support.y)), torch.zeros(len(context.support.y), dtype=torch.float64)
    for k in range(4):
        fast, places = states[k].fast, algorithm.places(context, k)
        places = torch.arange(len(context.support.y)) if isinstance(places, slice) else places
        clean = algorithm.clean(context, context.examples(places), k)
        towards = gradient_of(algorithm, fast, *clean)
        examples = [context.examples(place[None]) for place in places]
        u = torch.stack([gradient_of(algorithm, fast, *one) @ towards for one in examples]).clamp(min=0)
        found, _ = algorithm.weigh(states[k], context.examples(places), context, k)
        torch.testing.assert_close(found, len(u) * u / u.sum(), rtol=1e-9, atol=1e-12)
        assert 0 < int((u == 0).sum()) < len(u)
        seen[0][places] += 1
        seen[1][places] += found
    torch.testing.assert_close(algorithm.example_weights(states[-1]), torch.where(seen[0] > 0, seen[1] / seen[0], 1.0))


def test_l2rws_weights_are_the_slope_of_the_clean_loss() -> None:
    """By finite differences of the loss after a real step with weights ε."""
    algorithm, task = built("l2rw")
    context, (_, state) = task.context, list(adapt(algorithm, task.context, 1))
    batch, clean = context.examples(), Batch(context.extras["clean_x"], context.extras["clean_y"])
    n, step = len(batch.y), 1e-5
    slopes = torch.stack([
        (algorithm.ahead(step * one, state.fast, batch, clean) - algorithm.ahead(-step * one, state.fast, batch, clean)) / (2 * step)
        for one in torch.eye(n, dtype=torch.float64)
    ])  # fmt: skip
    u = (-slopes).clamp(min=0)
    torch.testing.assert_close(algorithm.weigh(state, batch, context, 1)[0], n * u / u.sum(), rtol=1e-6, atol=1e-8)


def test_the_weighting_nets_gradient_is_that_of_finite_differences() -> None:
    algorithm, task = built("metaweight", "algo.hidden=5", "algo.rate=0.3")
    *_, state = adapt(algorithm, task.context, 2)
    batch, clean = task.context.examples(), algorithm.clean(task.context, task.context.examples(), 0)
    losses, theta = algorithm.losses(state.fast, *batch), state.own.weights
    found = torch.func.grad(algorithm.ahead_by)(theta, losses, state.fast, batch, clean)
    step = 1e-5
    for name, weight in theta.items():
        for i in range(weight.numel()):
            one = torch.zeros(weight.numel(), dtype=torch.float64)
            one[i] = step
            moved = ({**theta, name: weight + sign * one.view(weight.shape)} for sign in (1, -1))
            up, down = (algorithm.ahead_by(where, losses, state.fast, batch, clean) for where in moved)
            assert float(found[name].flatten()[i]) == pytest.approx(float((up - down) / (2 * step)), rel=1e-5, abs=1e-9)
    assert max(float(slope.abs().max()) for slope in found.values()) > 1e-6


@pytest.mark.parametrize("normalised", [False, True])
def test_metaweight_is_the_papers_program(normalised: bool) -> None:
    """Eight steps against torch's SGD and Adam, the virtual step by create_graph."""
    words = ("algo.hidden=7", "algo.rate=0.2", "algo.batch=5", "algo.meta_rate=0.05", "algo.meta_decay=0.01")
    algorithm, task = built("metaweight", *words, f"algo.normalised={str(normalised).lower()}")
    context = task.context
    states = list(adapt(algorithm, context, 8))
    fast = {name: w.clone().requires_grad_() for name, w in states[0].fast.items()}
    vnet = nn.Sequential(nn.Linear(1, 7), nn.ReLU(), nn.Linear(7, 1), nn.Sigmoid()).double()
    vnet.load_state_dict(states[0].own.weights)
    sgd = torch.optim.SGD(fast.values(), 0.2, momentum=0.9)
    adam = torch.optim.Adam(vnet.parameters(), 0.05, weight_decay=0.01)

    def cost(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(algorithm, weights, (x, x)), y, reduction="none")

    def values(costs: Tensor) -> Tensor:
        found = vnet(costs.detach()[:, None])[:, 0]
        return found / found.mean() if normalised else found

    for k, state in enumerate(states):
        for name, w in fast.items():
            torch.testing.assert_close(state.fast[name], w.detach(), rtol=1e-6, atol=1e-9)
        for name, w in vnet.named_parameters():
            torch.testing.assert_close(state.own.weights[name], w.detach(), rtol=1e-6, atol=1e-9)
        x, y = algorithm.examples(context, k)
        costs = cost(fast, x, y)
        virtual = (costs * values(costs)).sum() / len(y)
        grads = torch.autograd.grad(virtual, list(fast.values()), create_graph=True)
        tried = {name: w - 0.2 * g for (name, w), g in zip(fast.items(), grads)}
        adam.zero_grad()
        cost(tried, *algorithm.clean(context, Batch(x, y), k)).mean().backward()
        adam.step()
        sgd.zero_grad()
        costs = cost(fast, x, y)
        (costs * values(costs).detach()).mean().backward()
        sgd.step()
    moved = max(float((states[-1].own.weights[name] - w).abs().max()) for name, w in states[0].own.weights.items())
    assert moved > 0.05


RATED = ("algo.inner_steps=3", "algo.horizon=6", "algo.rate=0.3", "algo.batch=5")


@pytest.mark.parametrize("rule", ["sgd", "momentum"])
def test_dataraters_meta_gradient_is_the_papers_program(rule: str) -> None:
    """The loop of three steps by hand, by create_graph, from where an earlier meta-update left the learner."""
    algorithm, task = built("datarater", f"algo.rule={rule}", *RATED)
    context = task.context
    with torch.no_grad():
        *_, begun = adapt(algorithm, context, 3)
    state = begun
    for k in range(3, 6):
        state = algorithm.step(state, context, k)
    loss, _ = algorithm.objective([state], task, 0.0)
    eta = [p for p in algorithm.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, eta)

    first, last = algorithm.rater, algorithm.score
    (inside,) = [layer for layer in first.modules() if isinstance(layer, nn.Linear)]
    own = {name: w.detach().clone().requires_grad_() for name, w in begun.fast.items()}
    velocity = {name: torch.zeros_like(w) for name, w in own.items()} if rule == "sgd" else begun.memory
    for k in range(3, 6):
        x, y = algorithm.examples(context, k)
        scores = (torch.tanh(x.flatten(1) @ inside.weight.T + inside.bias) @ last.weight.T)[:, 0]
        shares = scores.exp() / scores.exp().sum()
        costs = nn.functional.cross_entropy(functional_call(algorithm, own, (x, x)), y, reduction="none")
        grads = torch.autograd.grad((shares * costs).sum(), list(own.values()), create_graph=True)
        velocity = {name: (0.9 if rule == "momentum" else 0) * v + g for (name, v), g in zip(velocity.items(), grads)}
        own = {name: w - 0.3 * velocity[name] for name, w in own.items()}
    query = nn.functional.cross_entropy(functional_call(algorithm, own, (task.query.x, task.query.x)), task.query.y)
    torch.testing.assert_close(loss, query, rtol=1e-9, atol=0)
    for here, there in zip(found, torch.autograd.grad(query, eta), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-7, atol=1e-12)
    assert max(float(g.abs().max()) for g in found) > 1e-5


def test_equal_scores_are_plain_training_and_nothing_but_the_rater_learns() -> None:
    (algorithm, task), (plain, _) = built("datarater", *RATED), built("supervised", "algo.rule=momentum", *RATED[2:])
    learns = {name.partition(".")[0] for name, p in algorithm.named_parameters() if p.requires_grad}
    assert learns == {"rater", "score"}
    *_, uneven = adapt(algorithm, task.context, 4)
    nn.init.zeros_(algorithm.score.weight)
    (*_, rated), (*_, theirs) = adapt(algorithm, task.context, 4), adapt(plain, task.context, 4)
    for name, w in theirs.fast.items():
        torch.testing.assert_close(rated.fast[name], w, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(uneven.fast[name], w, rtol=1e-6)


def test_the_rater_sees_the_picture_alone_and_weights_have_the_mean_one() -> None:
    algorithm, task = built("datarater", *RATED)
    state, batch = algorithm.begin(task.context), task.context.examples()
    found, _ = algorithm.weigh(state, batch, task.context, 0)
    relabelled, _ = algorithm.weigh(state, batch._replace(y=(batch.y + 1) % 3), task.context, 0)
    assert same(found, relabelled)
    assert found.mean().item() == pytest.approx(1)
    assert found.std().item() > 1e-3
    some, _ = algorithm.weigh(state, Batch(batch.x[:5], batch.y[:5]), task.context, 0)
    torch.testing.assert_close(some / some[0], found[:5] / found[0], rtol=1e-9, atol=1e-12)


def test_a_life_is_whole_meta_updates() -> None:
    with pytest.raises(UserError, match=r"algo.horizon=5 is no multiple of algo.inner_steps=2"):
        built("datarater", "algo.inner_steps=2", "algo.horizon=5")


def test_datarater_tells_the_noise_of_other_characters(tmp_path: Path) -> None:
    words = ("data=glyphs", "data.train_classes=12", "data.val_classes=5", "data.test_classes=6", "data.drawers=15", "data.size=12")
    more = ("episode=dataset", "shot=10", "query=5", "episode.clean=0", "episode.corrupt=noise", "episode.rate=0.4", "net=mlp")
    brief = ("trainer.iterations=60", "trainer.val_every=60", "trainer.meta_batch=4", "optim.lr=0.01", "algo.rule=sgd", "algo.rate=0.3")

    def values(*extra: str) -> dict[str, Any]:
        found = small("algo=datarater", *words, *more, *brief, *extra)
        settings = {"inner_steps": 2, "horizon": 20, "test_steps": 20}
        return found | {"net": found["net"] | {"sizes": [32]}, "algo": found["algo"] | settings}

    run = Run(values("protocol=weights"))
    (asked,) = run.protocols
    untrained = run.engine.score(run.algorithm, run.episodes("test"), 6, asked, lambda done: None)
    before = np.mean([auroc(w, c > 0) for w, c in zip(untrained["weights"], untrained["corrupt"])])
    after = train(values(), tmp_path)["test"]["weights_auroc"]["mean"]
    assert after > max(0.95, before + 0.1)


def test_the_noise_of_a_split_is_its_own() -> None:
    run = Run(small("algo=ratio", "episode=dataset", "shot=4", "query=2", "episode.clean=2", "episode.corrupt=noise", "episode.rate=0.3"))
    noise = {split: run.episodes(split).images[-2:].flatten().double() for split in ("train", "val", "test")}
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        assert abs(float(torch.corrcoef(torch.stack([noise[one], noise[other]]))[0, 1])) < 0.3


def test_tensorboard_gets_the_images_of_a_training_set() -> None:
    shown: list[tuple[int, ...]] = []

    class Sink:
        def embedding(self, tag: str, features: Tensor, head: list[str], rows: list[list[str]], images: Tensor, step: int) -> None:
            shown.extend((tuple(features.shape), tuple(images.shape)))

    run = Run(small("algo=ratio", "net=mlp", *SET))
    tensorboard_images._embed(run, Sink(), "test", 0)
    assert shown == [(12 + 6, run.algorithm.net.features), (12 + 6, *run.problem.input_shape)]


def weigher(cls: Any, **settings: Any) -> tuple[Any, Any]:
    """A linear learner on plain vectors, whose gradients are known, and a task."""
    problem, task = vectors(3, 2, 2)
    return cls(Identity(3), problem, rule="sgd", rate=0.1, test_steps=3, **settings).double(), task


def context_of(x: Tensor, y: list[int], clean_x: Tensor, clean_y: list[int]) -> Context:
    extras = {"clean_x": clean_x, "clean_y": torch.tensor(clean_y)}
    return Context(Batch(x, torch.tensor(y)), torch.arange(2), torch.tensor(7), extras)


def test_the_same_example_weighs_and_the_opposite_one_does_not() -> None:
    algorithm, _ = weigher(L2RW)
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    context = context_of(torch.cat([x, x]), [0, 1], x, [0])
    found, _ = algorithm.weigh(algorithm.begin(context), context.support, context, 0)
    assert found.tolist() == pytest.approx([2.0, 0.0])
    against = context_of(torch.cat([x, x]), [1, 1], x, [0])
    found, _ = algorithm.weigh(algorithm.begin(against), against.support, against, 0)
    assert found.tolist() == [0.0, 0.0]  # 0/0 is 0, so such a step leaves the net as it is
    before = algorithm.begin(against)
    assert same(algorithm.step(before, against, 0).fast, before.fast)


def test_equal_examples_weigh_alike() -> None:
    algorithm, _ = weigher(L2RW)
    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    context = context_of(x.expand(4, 3), [1] * 4, x, [1])
    assert algorithm.weigh(algorithm.begin(context), context.support, context, 0)[0].tolist() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize(("normalised", "weight"), [("true", 1.0), ("false", 0.5)])
def test_a_constant_weighting_net_is_plain_training(normalised: str, weight: float) -> None:
    """V = 1/2 everywhere and never learned: SGD, at half the rate if weights are not normalised."""
    plain, _ = built("supervised", "algo.rule=sgd", "algo.rate=0.1", "algo.batch=5")
    words = ("algo.rule=sgd", f"algo.rate={0.1 / weight}", "algo.batch=5", "algo.meta_rate=1e-30", "algo.meta_decay=0")
    algorithm, task = built("metaweight", *words, f"algo.normalised={normalised}")
    begun = algorithm.begin(task.context)
    still = begun.own._replace(weights={name: torch.zeros_like(w) for name, w in begun.own.weights.items()})
    state, (*_, theirs) = begun._replace(own=still), adapt(plain, task.context, 5)
    for k in range(5):
        state = algorithm.step(state, task.context, k)
    for name, w in theirs.fast.items():
        torch.testing.assert_close(state.fast[name], w, rtol=1e-9, atol=1e-12)
    assert bool((state.visits > 0).all())
    torch.testing.assert_close(algorithm.example_weights(state), torch.full((12,), weight, dtype=torch.float64))


def test_ratio_weighs_classes_alike_and_is_plain_where_they_are() -> None:
    words = ("episode.corrupt=imbalance", "episode.rate=0.25")
    algorithm, task = built("ratio", *words)
    y = task.context.support.y
    assert torch.bincount(y).tolist() == [4, 2, 1]
    *_, state = adapt(algorithm, task.context, 2)
    found = algorithm.example_weights(state)
    assert [float(found[y == c].sum()) for c in range(3)] == pytest.approx([7 / 3] * 3)
    even = ("episode.corrupt=none", "episode.rate=0.0", "algo.rate=0.1")
    (balanced, task), (plain, _) = built("ratio", *even), built("supervised", "algo.rule=momentum", *even)
    (*_, a), (*_, b) = (adapt(each, task.context, 5) for each in (balanced, plain))
    for name, w in b.fast.items():
        torch.testing.assert_close(a.fast[name], w, rtol=1e-9, atol=1e-12)


def test_hard_mining_takes_the_hardest_of_every_class() -> None:
    algorithm, task = built("hard_mining", "episode.corrupt=imbalance", "episode.rate=0.5")
    y = task.context.support.y
    assert torch.bincount(y).tolist() == [4, 3, 2]
    state = algorithm.begin(task.context)
    batch = task.context.examples()
    found, _ = algorithm.weigh(state, batch, task.context, 0)
    losses = algorithm.losses(state.fast, *batch)
    for c in range(3):
        chosen = (found > 0) & (y == c)
        assert int(chosen.sum()) == 2
        assert losses[chosen].min() >= losses[(y == c) & ~chosen].max() if c < 2 else True
    assert float(found.mean()) == pytest.approx(1)


def test_random_weights_are_rectified_normal_and_keyed() -> None:
    algorithm, task = built("random_weights", "algo.batch=6")
    state = algorithm.begin(task.context)
    batch = algorithm.examples(task.context, 0)
    drawn = [algorithm.weigh(state, batch, task.context, k)[0] for k in range(200)]
    assert same(drawn[3], algorithm.weigh(state, batch, task.context, torch.tensor(3))[0])
    assert not torch.equal(drawn[3], drawn[4])
    everything = torch.cat(drawn)
    assert float((everything == 0).double().mean()) == pytest.approx(0.5, abs=0.06)
    assert all(float(weights.mean()) == pytest.approx(float((weights > 0).any())) for weights in drawn)


@pytest.mark.parametrize("algo", WEIGHERS)
@pytest.mark.slow
def test_weights_are_the_same_however_tasks_are_mapped_and_recorded(algo: str) -> None:
    run = Run(small(f"algo={algo}", "net.hidden=4", *SET, "algo.batch=5", "protocol=weights"))
    (asked,) = run.protocols
    algorithm = run.algorithm.double().eval()
    tasks = double(run.episodes("test").batch(range(3)))
    tasks = tasks._replace(context=tasks.context._replace(shared=tasks.context.shared.double() / 255))
    found = [how.evaluate(algorithm, tasks, asked) for how in (engine(), engine("loop"), engine(chunk=2), engine(record=False))]
    for other in found[1:]:
        torch.testing.assert_close(other["weights"], found[0]["weights"], rtol=1e-9, atol=1e-9)
    assert torch.equal(found[0]["corrupt"], tasks.corrupt)


@pytest.mark.parametrize(("corrupt", "rate"), [("labels", 0.3), ("noise", 0.3)])
def test_episodes_say_which_examples_are_corrupt_but_not_to_the_learner(corrupt: str, rate: float) -> None:
    words = ("episode=dataset", "shot=4", "query=2", "episode.clean=2")
    spoilt = (f"episode.corrupt={corrupt}", f"episode.rate={rate}")
    right, wrong = (Run(small("algo=ratio", *words, *more)).episodes("test").batch(range(20)) for more in ((), spoilt))
    assert right.corrupt == ()
    assert torch.equal(wrong.corrupt.sum(1), torch.full((20,), round(rate * 12)))
    before, after = ((each.context.support.y if corrupt == "labels" else each.context.support.x) for each in (right, wrong))
    assert torch.equal(before != after, wrong.corrupt)
    assert set(wrong.context.extras) == {"clean_x", "clean_y"}


def test_the_area_is_that_of_all_pairs() -> None:
    weights, corrupt = np.array([0.9, 0.5, 0.5, 0.1, 0.7]), np.array([False, False, True, True, False])
    pairs = [(good > bad) + (good == bad) / 2 for good in weights[~corrupt] for bad in weights[corrupt]]
    assert auroc(weights, corrupt) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(np.array([np.nan, 1.0]), np.array([True, False])))


@pytest.mark.parametrize("algo", ["l2rw", "metaweight"])
def test_a_run_tells_wrong_labels_by_their_weights(algo: str, tmp_path: Path) -> None:
    words = ("data=glyphs", "data.train_classes=3", "data.val_classes=3", "data.test_classes=6", "data.drawers=60", "data.size=16")
    more = ("data.variation=0.5", "net=mlp", "shot=40", "query=10", "episode.clean=10", "episode.corrupt=labels", "episode.rate=0.4")
    values = small(
        f"algo={algo}", "algo.rule=sgd", "algo.rate=0.3", "episode=dataset", *words, *more, "trainer.val_episodes=0", "logger.pictures=true"
    )
    settings = {"test_steps": 200} | ({"hidden": 100, "meta_rate": 0.005} if algo == "metaweight" else {})
    values |= {"net": values["net"] | {"sizes": [32]}, "algo": values["algo"] | settings}
    summary = train(values, tmp_path)
    test = summary["test"]
    assert "weights" in summary["protocol"]
    assert test["weights_auroc"]["mean"] > 0.85
    assert test["weight_clean"]["mean"] > 1.5 * test["weight_corrupt"]["mean"]
    assert (tmp_path / "weights.png").is_file()


def test_without_clean_examples_the_minibatch_judges() -> None:
    algorithm, task = built("l2rw", "episode.clean=0")
    batch = task.context.examples()
    assert algorithm.clean(task.context, batch, 0) is batch
    state = algorithm.begin(task.context)
    towards = gradient_of(algorithm, state.fast, *batch)
    u = torch.stack([gradient_of(algorithm, state.fast, x[None], y[None]) @ towards for x, y in zip(*batch)]).clamp(min=0)
    torch.testing.assert_close(algorithm.weigh(state, batch, task.context, 0)[0], len(u) * u / u.sum(), rtol=1e-9, atol=1e-12)


def test_weights_are_asked_of_those_who_have_some() -> None:
    with pytest.raises(
        UserError, match=r"protocol=weights is not possible with algo=supervised: it needs weights of its training examples"
    ):
        Run(small("algo=supervised", *SET, "protocol=weights"))
    with pytest.raises(UserError, match=r"protocol=weights is not possible with algo=l2rw: .*episode.corrupt=labels or noise"):
        Run(small("algo=l2rw", "episode=dataset", "shot=4", "query=2", "episode.clean=2", "protocol=weights"))


def test_only_a_rater_has_anything_to_learn_across_tasks() -> None:
    assert [algo for algo in WEIGHERS if built(algo)[0].learns] == ["datarater"]
