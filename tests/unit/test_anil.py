"""ANIL and NIL: a body that stays, MAML on a linear model, features computed once, cosine neighbours without a head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import Identity, engine, in_float64, meta_gradient, regression, relative_error, small

from metarun import inner
from metarun.adaptation import adapt
from metarun.algos.gradient.anil import ANIL
from metarun.algos.gradient.maml import MAML
from metarun.errors import UserError
from metarun.learners import Adapted
from metarun.problem import Classification, EpisodeSpec, Problem
from metarun.protocols.episodes import EVERY
from metarun.run import Run
from metarun.task import Batch, Context, Task, select

F64 = torch.float64
WORDS = ["net=mlp", "net.activation=tanh", "algo.inner_lr=0.3"]


@pytest.mark.parametrize("mode", ["unroll", "mixed", "none"])
def test_on_a_linear_model_it_is_maml(mode: inner.Mode) -> None:
    spec = EpisodeSpec(way=3, shot=2, query=2)
    problem = Problem(Classification(), (4,), 3, 10, spec, spec)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2, 6, 4, generator=generator, dtype=F64), torch.tensor([0, 0, 1, 1, 2, 2]).repeat(2, 1)
    tasks = Task(Context(Batch(x[0], y), torch.arange(3).repeat(2, 1), torch.arange(2), {}), Batch(x[1], y))
    values = {"inner_lr": 0.7, "inner_steps": 3, "test_steps": 3, "first_order": False, "mode": mode}
    torch.manual_seed(0)
    anil = ANIL(Identity(4), problem, head_at_test=True, **values).double()
    maml = MAML(Identity(4), problem, **values).double()
    maml.load_state_dict(anil.state_dict())
    assert relative_error(meta_gradient(anil, tasks, engine()), meta_gradient(maml, tasks, engine())) < 1e-12


def test_features_computed_once_equal_features_computed_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    anil, tasks = in_float64(small("algo=anil", *WORDS))
    once = meta_gradient(anil, tasks, engine())

    def begin(context: Context) -> Adapted:
        return Adapted({"head.weight": anil.head.weight, "head.bias": anil.head.bias}, context.support.x)

    def step(state: Adapted, context: Context, k: int) -> Adapted:
        return state._replace(fast=inner.sgd(state.fast, anil.support_gradient(state.fast, context, "unroll"), anil.inner_lr))

    monkeypatch.setattr(anil, "begin", begin)
    monkeypatch.setattr(anil, "step", step)
    assert relative_error(once, meta_gradient(anil, tasks, engine())) < 1e-12


def test_the_head_moves_and_the_support_passes_the_body_once(monkeypatch: pytest.MonkeyPatch) -> None:
    anil, tasks = in_float64(small("algo=anil", *WORDS), tasks=1)
    passes = []
    anil.net.register_forward_hook(lambda *_: passes.append(1))
    *_, state = adapt(anil, select(tasks, 0).context, 4)
    assert len(passes) == 1
    assert set(state.fast) == {"head.weight", "head.bias"}
    assert not torch.allclose(state.fast["head.weight"], anil.head.weight)


def test_nil_trains_as_anil_does() -> None:
    (anil, tasks), (nil, _) = in_float64(small("algo=anil", *WORDS)), in_float64(small("algo=nil", *WORDS))
    assert torch.equal(meta_gradient(anil, tasks, engine()), meta_gradient(nil, tasks, engine()))


def test_nil_weights_labels_by_cosine_similarity() -> None:
    nil, tasks = in_float64(small("algo=nil", *WORDS), tasks=1)
    nil.eval()
    task = select(tasks, 0)
    x, y = task.context.support
    similarity = F.cosine_similarity(nil.net(task.query.x)[:, None], nil.net(x)[None], dim=-1)
    *_, state = adapt(nil, task.context, 2)
    torch.testing.assert_close(nil.predict(state, task.query.x), similarity @ F.one_hot(y).double() / 2)


def test_nil_takes_any_number_of_classes_at_test_and_anil_does_not() -> None:
    words = [*WORDS, "episode.eval.way=5"]
    run = Run(small("algo=nil", *words))
    assert run.engine.score(run.algorithm, run.episodes("test"), 3, EVERY, lambda done: None)["score"].shape == (3, 4)
    with pytest.raises(UserError, match=r"learns one output per class"):
        Run(small("algo=anil", *words))


def test_nil_keeps_its_head_for_regression() -> None:
    runs = [Run(regression("anil", f"algo.head_at_test={head}", "algo.test_steps=3")) for head in ("false", "true")]
    without, with_head = (run.engine.evaluate(run.algorithm, run.episodes("val").batch([0, 1]), EVERY)["score"] for run in runs)
    assert without.equal(with_head)
    assert not without[:, 0].equal(without[:, -1])
