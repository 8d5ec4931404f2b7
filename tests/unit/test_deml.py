"""DEML: without concepts a plain meta-learner, without tasks plain pre-training, and otherwise their weighted sum."""

from __future__ import annotations

import pytest
import torch
from helpers import engine, in_float64, meta_gradient, relative_error, slopes, small

from metarun.algos.gradient.deml import DEML
from metarun.task import Task

WORDS = ["net=mlp", "net.activation=tanh", "net.sizes=[8]"]


def deml(task: float, concept: float, *words: str) -> tuple[DEML, Task]:
    return in_float64(
        small("algo=deml", *WORDS, "algo.inner_lr=0.25", f"algo.task_weight={task}", f"algo.concept_weight={concept}", *words)
    )


def gradients(task: float, concept: float) -> dict[str, torch.Tensor]:
    model, tasks = deml(task, concept)
    meta_gradient(model, tasks, engine())
    return {name: weight.grad for name, weight in model.named_parameters()}


def test_without_concepts_it_is_anil() -> None:
    found = gradients(1, 0)
    anil, tasks = in_float64(small("algo=anil", *WORDS, "algo.inner_lr=0.25"))
    meta_gradient(anil, tasks, engine())
    assert not found["discriminator.weight"].any()
    for name, weight in anil.named_parameters():
        assert relative_error(found[name], weight.grad) < 1e-12


def test_without_tasks_it_is_pre_training() -> None:
    found = gradients(0, 1)
    pretrain, tasks = in_float64(small("algo=pretrain", *WORDS))
    model, _ = deml(0, 1)
    pretrain.head.load_state_dict(model.discriminator.state_dict())
    meta_gradient(pretrain, tasks, engine())
    for name, weight in pretrain.named_parameters():
        assert relative_error(found[name.replace("head.", "discriminator.")], weight.grad) < 1e-12
    assert not any(found[name].any() for name in ("head.weight", "head.bias", "rates.0", "rates.1"))


def test_with_both_the_gradient_is_the_weighted_sum() -> None:
    plain, joint, both = gradients(1, 0), gradients(0, 1), gradients(0.5, 2)
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, 0.5 * plain[name] + 2 * joint[name], rtol=1e-9, atol=1e-12)
    assert plain["rates.0"].any()


def test_the_meta_gradient_agrees_with_finite_differences() -> None:
    by_gradient, by_differences = slopes(*deml(1, 0))
    assert by_gradient == pytest.approx(by_differences, rel=1e-5)


def test_both_losses_are_logged() -> None:
    model, tasks = deml(1, 1)
    metrics = engine().meta_gradient(model, tasks, 0.0)
    assert metrics["concept_loss"] == pytest.approx(torch.tensor(40.0).log().item(), rel=0.2)  # of 40 classes, none known yet
