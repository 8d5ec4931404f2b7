"""Pre-training against independent forms: joint cross-entropy, chance before fine-tuning, logistic regression on frozen features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import engine, in_float64, regression, small

from metarun.adaptation import adapt
from metarun.algos.gradient.pretrain import CosineHead
from metarun.protocols.episodes import EVERY
from metarun.run import Run
from metarun.task import select


def test_training_is_one_classification_of_all_training_classes() -> None:
    pretrain, tasks = in_float64(small("algo=pretrain", "net.hidden=8", "net.norm=batch"), tasks=2)
    assert pretrain.head.out_features == 40
    expected = []
    for i in range(2):
        (x, y), query = tasks.context.support, tasks.query
        joint = torch.cat([x[i], query.x[i]])
        labels = tasks.context.classes[i][torch.cat([y[i], query.y[i]])]
        expected.append(F.cross_entropy(pretrain.head(pretrain.net(joint)), labels))
    metrics = engine().meta_gradient(pretrain, tasks, 0.0)
    assert metrics["loss"] == pytest.approx(float(sum(expected).detach() / 2), rel=1e-9)


@pytest.mark.parametrize("adapt_what", ["head", "all"])
def test_without_fine_tuning_it_is_exactly_at_chance(adapt_what: str) -> None:
    pretrain, tasks = in_float64(small("algo=pretrain", "net.hidden=8", f"algo.adapt={adapt_what}"), tasks=5)
    scores = engine().evaluate(pretrain, tasks, EVERY)
    torch.testing.assert_close(scores["score"][:, 0], torch.full((5,), 1 / 3))
    torch.testing.assert_close(scores["loss"][:, 0], torch.full((5,), float(np.log(3)), dtype=torch.float64))


def test_fine_tuning_the_head_is_logistic_regression_on_frozen_features() -> None:
    pretrain, tasks = in_float64(small("algo=pretrain", "net.hidden=8", "net.norm=none", "algo.inner_lr=0.3"), tasks=1)
    task, steps = select(tasks, 0), 7
    *_, state = adapt(pretrain, task.context, steps)
    features = pretrain.net(task.context.support.x).detach().numpy()
    targets = np.eye(3)[task.context.support.y.numpy()]
    weight, bias = np.zeros((3, features.shape[1])), np.zeros(3)
    for _ in range(steps):
        scores = np.exp(features @ weight.T + bias)
        residual = (scores / scores.sum(1, keepdims=True) - targets) / len(features)
        weight, bias = weight - 0.3 * residual.T @ features, bias - 0.3 * residual.sum(0)
    answers = pretrain.predict(state, task.query.x).detach().numpy()
    np.testing.assert_allclose(answers, pretrain.net(task.query.x).detach().numpy() @ weight.T + bias, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("adapt_what", "moves"), [("head", False), ("all", True)])
def test_the_body_moves_only_when_all_is_adapted(adapt_what: str, moves: bool) -> None:
    pretrain, tasks = in_float64(small("algo=pretrain", "net.hidden=8", f"algo.adapt={adapt_what}"), tasks=1)
    *_, state = adapt(pretrain, select(tasks, 0).context, 2)
    body = {name: weight for name, weight in state.fast.items() if name.startswith("net.")}
    assert bool(body) == moves
    assert any(not torch.equal(weight, pretrain.get_parameter(name)) for name, weight in body.items()) == moves


def test_regression_keeps_the_trained_head() -> None:
    pretrain, tasks = in_float64(regression("pretrain"), tasks=1)
    state = pretrain.begin(select(tasks, 0).context)
    x = tasks.query.x[0]
    torch.testing.assert_close(pretrain.predict(state, x), pretrain(x, x))


def test_the_new_cosine_head_is_the_nearest_class_mean_by_cosine() -> None:
    plusplus, tasks = in_float64(small("algo=baselinepp", "net.hidden=8", "net.norm=none", "algo.scale=3"), tasks=1)
    task = select(tasks, 0)
    (x, y), query = task.context.support, task.query.x
    means = torch.stack([F.normalize(plusplus.net(x)[y == c], dim=-1).mean(0) for c in range(3)])
    answers = plusplus.predict(plusplus.begin(task.context), query)
    torch.testing.assert_close(answers, 3 * F.cosine_similarity(plusplus.net(query)[:, None], means, dim=-1))


def test_baselinepp_trains_a_cosine_head_of_all_classes_whose_lengths_are_learned() -> None:
    plusplus, tasks = in_float64(small("algo=baselinepp", "net.hidden=8", "net.norm=none", "algo.scale=3"), tasks=1)
    assert plusplus.head.weight.shape == (40, plusplus.net.features)
    x = tasks.query.x[0]
    cosines = F.cosine_similarity(plusplus.net(x)[:, None], plusplus.head.weight, dim=-1)
    torch.testing.assert_close(plusplus(x, x), 3 * plusplus.head.weight.norm(dim=-1) * cosines)


def test_the_length_of_a_feature_does_not_matter_to_a_cosine_head() -> None:
    head, x = CosineHead(5, 4, scale=3.0), torch.randn(6, 5)
    torch.testing.assert_close(head(x * torch.rand(6, 1).add(0.1)), head(x))


def test_training_begins_with_small_logits_whatever_the_scale() -> None:
    """As small as those of a linear head on features of length one."""
    x = F.normalize(torch.randn(50, 5), dim=-1)
    for scale in (1.0, 100.0):
        torch.manual_seed(0)
        head = CosineHead(5, 4, scale)
        torch.manual_seed(0)
        linear = torch.nn.Linear(5, 4, bias=False)
        torch.testing.assert_close(head(x), linear(x))


def test_scale_is_an_inverse_temperature() -> None:
    answers = []
    for scale in (1, 5):
        plusplus, tasks = in_float64(small("algo=baselinepp", "net.hidden=8", "net.norm=none", f"algo.scale={scale}"), tasks=1)
        task = select(tasks, 0)
        answers.append(plusplus.predict(plusplus.begin(task.context), task.query.x))
    torch.testing.assert_close(answers[1], 5 * answers[0])


def test_weight_decay_shrinks_what_is_fine_tuned() -> None:
    lr, decay = 0.3, 0.2
    words = ["net.hidden=8", "net.norm=none", f"algo.inner_lr={lr}"]
    (plain, tasks), (decayed, _) = (in_float64(small("algo=baselinepp", *words, f"algo.decay={d}"), tasks=1) for d in (0.0, decay))
    context = select(tasks, 0).context
    state = plain.begin(context)
    stepped, shrunk = plain.step(state, context, 0).fast, decayed.step(state, context, 0).fast
    torch.testing.assert_close(shrunk["head.weight"], stepped["head.weight"] - lr * decay * state.fast["head.weight"])


def test_run_folders_from_before_the_cosine_head_still_load() -> None:
    values = small("algo=pretrain", "net.hidden=8")
    values["algo"] = {key: value for key, value in values["algo"].items() if key not in ("head", "scale", "decay")}
    assert Run(values).algorithm.decay == 0
