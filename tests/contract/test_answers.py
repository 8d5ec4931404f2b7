"""What an answer may depend on: the support set and the one query, nothing else unless declared.
The declarations (transductive, label_dependent, ordered) are checked in both directions, so that they stay honest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    CLASSIFIERS,
    LEARNING_CLASSIFIERS,
    PROBLEMS,
    Builder,
    accepts,
    by_family,
    classification,
    engine,
    in_float64,
    meta_gradient,
    relative_error,
    small,
    suits,
    with_nets,
)
from torch import Tensor
from torch.utils._pytree import tree_leaves

from metarun.algorithm import Algorithm
from metarun.contract import checks
from metarun.contract.measures import answers
from metarun.protocols.episodes import EVERY
from metarun.run import Run
from metarun.task import Batch, Task, select


def one_task(values: dict[str, Any]) -> tuple[Algorithm, Task]:
    algorithm, tasks = in_float64(values, tasks=1)
    return algorithm, select(tasks, 0)


@pytest.mark.parametrize(("algo", "net", "norm"), with_nets(CLASSIFIERS))
def test_an_answer_depends_on_other_queries_if_and_only_if_the_net_is_transductive(algo: str, net: str, norm: str) -> None:
    algorithm, task = one_task(small(f"algo={algo}", f"net={net}", f"net.norm={norm}"))
    if not algorithm.learns:
        algorithm.calibrate([task])  # without, a method that is solved for answers with zeros
    x = task.query.x
    among_others = torch.cat([x[:1], 1 - x[1:]])
    pairs = zip(answers(algorithm, task.context, x), answers(algorithm, task.context, among_others))
    change = max(float((a[0] - b[0]).abs().max()) for a, b in pairs)
    assert change > 1e-6 if algorithm.net.transductive else change < 1e-9


@pytest.mark.parametrize("algo", CLASSIFIERS)
def test_a_norm_by_the_support_is_refused_if_and_only_if_the_support_has_no_images(algo: str) -> None:
    support = select(Run(classification(algo)).episodes("train").batch([0]), 0).context.support
    assert accepts(classification(algo, "net.norm=support")) == (support.x.dim() == 4) == suits(algo, "support")


@pytest.mark.parametrize(("algo", "problem"), PROBLEMS)
def test_a_query_alone_gets_the_same_answer_unless_transductive(algo: str, problem: Builder) -> None:
    algorithm, task = one_task(problem(algo))
    if algorithm.net.transductive:
        norm = next(norm for norm in ("support", "running") if suits(algo, norm))
        algorithm, task = one_task(problem(algo, f"net.norm={norm}"))
    for together, alone in zip(answers(algorithm, task.context, task.query.x), answers(algorithm, task.context, task.query.x[:1])):
        torch.testing.assert_close(alone[0], together[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("algo", "problem"), PROBLEMS)
def test_query_labels_never_change_an_answer(algo: str, problem: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, tasks = in_float64(problem(algo))
    answers, seen = algorithm.answers, []

    def watched(state: Any, x: Tensor) -> Callable[[Any], Any]:
        answer = answers(state, x)
        return lambda state: seen.append(answer(state)) or seen[-1]

    monkeypatch.setattr(algorithm, "answers", watched)
    other = tasks._replace(query=Batch(tasks.query.x, tasks.query.y.flip(1)))
    for part in (tasks, other):
        score = engine("loop").evaluate(algorithm, part, EVERY)["loss"]
    before, after = tree_leaves(seen[: len(seen) // 2]), tree_leaves(seen[len(seen) // 2 :])
    assert len(before) >= score.numel()
    assert all(torch.equal(a, b) for a, b in zip(before, after))


@pytest.mark.parametrize("algo", CLASSIFIERS)
def test_permuting_labels_permutes_answers_if_and_only_if_classes_have_no_order(algo: str) -> None:
    checks.labels(classification(algo))


@pytest.mark.parametrize("algo", CLASSIFIERS)
def test_a_logit_depends_on_the_support_of_its_own_class_alone_if_and_only_if_declared_pairwise(algo: str) -> None:
    algorithm, task = one_task(classification(algo, "net.norm=group"))
    x, y = task.context.support
    other = task.context._replace(support=Batch(torch.cat([1 - x[y == 0], x[y != 0]]), y))
    pairs = zip(answers(algorithm, task.context, task.query.x), answers(algorithm, other, task.query.x))
    change = max(float((after[:, 1:] - before[:, 1:]).abs().max()) for before, after in pairs)
    assert change < 1e-9 if algorithm.pairwise else change > 1e-6


@pytest.mark.parametrize("norm", ["running", "group", "support", "batch"])
@pytest.mark.parametrize("algo", by_family(CLASSIFIERS))
def test_images_encoded_once_for_all_episodes_get_the_same_scores(algo: str, norm: str) -> None:
    values = classification(algo, f"net.norm={norm}", "episode.unlabelled=2") if suits(algo, norm) else classification(algo)
    run = Run(values)
    run.algorithm.eval()
    episodes, many, few = run.episodes("test"), 100, 1
    learner, encoded = run.engine.encoded(run.algorithm, episodes, many)
    alone = run.algorithm.net.norm in ("running", "group")  # an image's features do not depend on the others
    assert (learner is not run.algorithm) == (encoded is not episodes) == (run.algorithm.encodes and alone)
    assert run.engine.encoded(run.algorithm, episodes, few) == (run.algorithm, episodes), "more work than it saves"
    plain, quick = (run.engine.evaluate(a, e.batch(range(4)), EVERY)["loss"] for a, e in ((run.algorithm, episodes), (learner, encoded)))
    torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("algo", "problem"), PROBLEMS)
def test_the_order_of_the_support_matters_if_and_only_if_declared(algo: str, problem: Builder) -> None:
    checks.order(problem(algo))


@torch.no_grad()
@pytest.mark.parametrize("algo", by_family(CLASSIFIERS))
def test_a_support_may_have_another_number_of_images_of_each_class(algo: str) -> None:
    algorithm, tasks = in_float64(classification(algo, "shot=3", "episode.uneven=true"))
    y = tasks.context.support.y
    assert y.shape[1] == 3 * (1 if algorithm.reads == "attributes" else 3)
    assert algorithm.reads == "attributes" or any((y == c).sum() != 3 * len(y) for c in range(3))
    loop, mapped = (engine(how).evaluate(algorithm.eval(), tasks, EVERY) for how in ("loop", "vmap"))
    assert all(values.isfinite().all() for values in loop.values())
    for name, values in mapped.items():
        torch.testing.assert_close(values, loop[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("algo", by_family(LEARNING_CLASSIFIERS))
def test_vmap_and_loop_agree_on_uneven_supports(algo: str) -> None:
    algorithm, tasks = in_float64(classification(algo, "shot=3", "episode.uneven=true"), tasks=2)
    loop = meta_gradient(algorithm, tasks, engine("loop"))
    assert loop.isfinite().all()
    assert relative_error(meta_gradient(algorithm, tasks, engine("vmap")), loop) < 1e-9
