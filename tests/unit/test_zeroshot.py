"""Zero-shot methods: what an episode shows them, prototypes and relations of attributes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from helpers import classification, in_float64, small
from torch import Tensor
from torch.nn.functional import normalize

import metarun
from metarun import experiment
from metarun.algorithm import Algorithm
from metarun.drawing import figures
from metarun.errors import UserError
from metarun.run import Run
from metarun.task import Task, select

BOTH = ["protonet_zeroshot", "relation_zeroshot"]
WORDS = ["net=mlp", "net.norm=none", "algo.sizes=[6]"]


def made(algo: str, *words: str) -> tuple[Algorithm, Task]:
    algorithm, tasks = in_float64(small(f"algo={algo}", *WORDS, *words), tasks=1)
    return algorithm, select(tasks, 0)


def answers(algorithm: Algorithm, task: Task) -> Tensor:
    return algorithm.predict(algorithm.begin(task.context), task.query.x).detach()


def embedded(algorithm: Algorithm, attributes: Tensor) -> Tensor:
    """Attributes after the hidden layer, of one linear map and one ReLU, and after the map that follows."""
    hidden = algorithm.encoder.linears[0](attributes).relu()
    return algorithm.of_class(hidden)


@pytest.mark.parametrize("shot", [0, 1, 2])
def test_the_support_is_the_attributes_of_the_classes_whatever_shot_is(shot: int) -> None:
    run = Run(small("algo=protonet_zeroshot", f"shot={shot}", "query=3"))
    tasks = run.episodes("val").batch(range(4))
    support, known = tasks.context.support, run.data.splits["val"].attributes
    assert torch.equal(support.x, known[tasks.context.classes])
    assert torch.equal(support.y, torch.arange(3).expand(4, -1))
    assert tasks.query.x.shape == (4, 9, 2, 16, 16)
    assert run.spec["eval"].shot == run.spec["train"].shot == 0


def test_seen_and_unseen_classes_have_nothing_in_common() -> None:
    data = Run(classification("protonet_zeroshot")).data
    rows = [tuple(vector) for split in data.splits.values() for vector in split.attributes.tolist()]
    assert len(set(rows)) == len(rows)


def test_prototypes_lie_on_the_unit_sphere_and_answers_are_distances_to_them() -> None:
    algorithm, task = made("protonet_zeroshot")
    prototypes = normalize(embedded(algorithm, task.context.support.x), dim=-1)
    torch.testing.assert_close(algorithm.begin(task.context).prototypes, prototypes)
    images = algorithm.of_image(algorithm.net(task.query.x))
    torch.testing.assert_close(answers(algorithm, task), -(torch.cdist(images, prototypes) ** 2).detach())


def test_with_unit_images_lie_on_the_sphere_and_scores_on_one_scale() -> None:
    algorithm, task = made("protonet_zeroshot", "algo.unit=true")
    prototypes = algorithm.begin(task.context).prototypes
    images = normalize(algorithm.of_image(algorithm.net(task.query.x)), dim=-1)
    torch.testing.assert_close(answers(algorithm, task), -(5 * torch.cdist(images, prototypes) ** 2).detach())
    before = answers(algorithm, task)
    algorithm.of_image.weight.data.mul_(3)
    algorithm.of_image.bias.data.mul_(3)
    torch.testing.assert_close(answers(algorithm, task), before)


def test_without_hidden_layers_prototypes_are_linear_in_the_attributes() -> None:
    algorithm, task = made("protonet_zeroshot", "algo.sizes=[]")
    torch.testing.assert_close(algorithm.begin(task.context).prototypes, normalize(algorithm.of_class(task.context.support.x), dim=-1))


def test_orthonormal_attributes_make_an_ordinary_classifier() -> None:
    """Each class has a weight vector of its own then: the matching column of the linear map."""
    algorithm, task = made("protonet_zeroshot", "algo.sizes=[]")
    algorithm.of_class.bias.data.zero_()
    context = task.context._replace(support=task.context.support._replace(x=torch.eye(16, dtype=torch.float64)[:3]))
    weights = normalize(algorithm.of_class.weight.T[:3], dim=-1)
    logits = 2 * algorithm.of_image(algorithm.net(task.query.x)) @ weights.T
    expected = logits.softmax(-1)
    torch.testing.assert_close(algorithm.predict(algorithm.begin(context), task.query.x).softmax(-1), expected)


def test_a_relation_is_the_net_of_attributes_and_image_side_by_side() -> None:
    algorithm, task = made("relation_zeroshot", "algo.hidden=5")
    hidden = algorithm.encoder.linears[0](task.context.support.x).relu()
    weight = torch.cat([algorithm.of_class.weight, algorithm.of_image.weight], 1)
    for i, image in enumerate(algorithm.net(task.query.x)):
        for c in range(3):
            first = weight @ torch.cat([hidden[c], image]) + algorithm.of_class.bias
            torch.testing.assert_close(answers(algorithm, task)[i, c], algorithm.score(first.relu())[0].detach())


def test_the_paper_s_loss_is_the_squared_error_of_scores_between_0_and_1() -> None:
    algorithm, task = made("relation_zeroshot", "algo.loss=mse")
    wanted = torch.nn.functional.one_hot(task.query.y, 3)
    loss, metrics = algorithm.objective([algorithm.begin(task.context)], task, 0.0)
    torch.testing.assert_close(loss.detach(), (answers(algorithm, task).sigmoid() - wanted).square().mean())
    assert set(metrics) == {"loss", "accuracy"}


@pytest.mark.parametrize("algo", BOTH)
def test_an_answer_follows_the_attributes(algo: str) -> None:
    algorithm, task = made(algo)
    support = task.context.support
    swapped = task._replace(context=task.context._replace(support=support._replace(x=support.x[[1, 0, 2]])))
    torch.testing.assert_close(answers(algorithm, swapped), answers(algorithm, task)[:, [1, 0, 2]])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algo=protonet", "shot=0"], "shot=0 is not possible: it should be 1 or more, unless algo is a zero-shot method"),
        (["algo=protonet", "episode.eval.shot=0"], "episode.eval.shot=0 is not possible"),
        (["algo=protonet_zeroshot", "net.norm=support"], "net.norm=support needs images of the classes"),
        (["algo=protonet_zeroshot", "data=sinusoid", "net=mlp", "way=1"], "protonet_zeroshot is for classification"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Run(small(*words))


def test_data_without_attributes_or_with_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    values = small("algo=protonet_zeroshot")
    trained = {"problem": {"classes": 40, "outputs": 3, "attributes": 16}, "algorithm": Run(values).algorithm.state_dict()}
    assert Run(values, trained)
    trained["problem"]["attributes"] = 5
    with pytest.raises(UserError, match="the classes of data=patterns have 16 attributes, but this run was trained with 5: give as many"):
        Run(values, trained)
    bare = {"attributes": torch.empty(0, 0)}
    monkeypatch.setattr(helpers, "patterns", lambda *size, real=helpers.patterns: real(*size)._replace(**bare))
    with pytest.raises(
        UserError, match="algo=protonet_zeroshot knows classes by their attributes, and data=patterns has none: use data=glyphs"
    ):
        Run(values)


def test_augmentation_changes_images_alone() -> None:
    plain, augmented = (Run(small("algo=protonet_zeroshot", *words)) for words in ([], ["augment=characters"]))
    before, after = plain.episodes("train").batch([3]), augmented.episodes("train").batch([3])
    assert torch.equal(after.context.support.x, before.context.support.x)
    assert (after.query.x - before.query.x).abs().amax() > 0.05


@pytest.mark.parametrize("algo", BOTH)
def test_a_trained_run_learns_new_classes_from_their_attributes(algo: str, tmp_path: Path) -> None:
    values = small(f"algo={algo}", "net=mlp", "net.norm=running", "trainer.iterations=1")
    experiment.train(values, tmp_path / "run")
    model = metarun.load(tmp_path / "run", device="cpu")
    split = Run(values).data.splits["test"]
    fitted = model.adapt(split.attributes[:4].numpy(), ["a", "b", "c", "d"])
    images = split.images[split.starts[:4]]
    assert set(fitted.predict(images)) <= set("abcd")
    assert fitted.probabilities(images).shape == (4, 4)
    fitted.export(tmp_path / "four.pt2")
    again = torch.export.load(tmp_path / "four.pt2").module()(images.float() / 255)
    torch.testing.assert_close(again, fitted.probabilities(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=rf"attributes have shape \[4, 5\], but algo={algo} takes one vector per class, \[n, 16\]"):
        model.adapt(np.zeros((4, 5)), ["a", "b", "c", "d"])
    with pytest.raises(UserError, match=r"attribute vector 1 of 2, counted from 0, has a number that is not finite"):
        model.adapt(np.stack([np.zeros(16), np.full(16, np.inf)]), ["a", "b"])


def test_pictures_show_queries_alone(tmp_path: Path) -> None:
    words = ["data.train_classes=8", "data.val_classes=8", "data.test_classes=8", "data.drawers=4", "trainer.iterations=1"]
    words += ["augment=characters", "logger.pictures=true", "logger.tensorboard=true"]
    values = small("algo=protonet_zeroshot", "data=glyphs", "net.hidden=8", *words)
    run = Run(values)
    for figure, titles in ((figures.episode(run, "val", 0), ["query"]), (figures.augmentation(run, "train", 0), ["image", "augmented"])):
        assert [axes.get_title(loc="left") for axes in figure.axes] == titles
    experiment.train(values, tmp_path / "run")
    assert len(list((tmp_path / "run" / "tb").rglob("metadata.tsv"))) == 1
    parts = [line.split("\t")[1] for line in next((tmp_path / "run" / "tb").rglob("metadata.tsv")).read_text().splitlines()]
    assert set(parts[1:]) == {"query"}
