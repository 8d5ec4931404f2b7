"""The procedural glyphs: the same for everybody, varied like handwriting, neither trivial nor hopeless."""

import inspect

import numpy as np
import pytest
import torch
import yaml

from metarun.data.glyphs import Glyphs, draw
from metarun.errors import UserError
from metarun.problem import EpisodeSpec

torch.set_num_threads(1)

SMALL = {"train_classes": 100, "val_classes": 30, "test_classes": 30, "drawers": 6, "size": 28, "variation": 1.0}


@pytest.fixture(scope="module")
def glyphs():
    return Glyphs(0, **SMALL)


def test_shapes(glyphs):
    assert glyphs.input_shape == (1, 28, 28)
    assert glyphs.classes == 100
    for split, classes in (("train", 100), ("val", 30), ("test", 30)):
        data = glyphs.splits[split]
        assert data.images.shape == (classes * 6, 1, 28, 28)
        assert data.images.dtype == torch.uint8
        assert len(set(data.names)) == data.classes == classes
        assert (data.starts == np.arange(classes) * 6).all()
        assert (data.counts == 6).all()
        assert data.attributes.shape == (classes, glyphs.attributes) == (classes, 64)
        assert len(data.attributes.unique(dim=0)) == classes


def test_the_same_for_every_seed_and_number_of_classes(glyphs):
    again = Glyphs(7, **{**SMALL, "val_classes": 10, "drawers": 3})
    for split, classes in (("train", 100), ("val", 10)):
        drawings = glyphs.splits[split].images.unflatten(0, (-1, 6))
        assert torch.equal(again.splits[split].images, drawings[:classes, :3].flatten(0, 1))


def test_attributes_are_points_along_the_strokes_of_the_character(glyphs):
    """Where they are, a drawing by a hand that varies nothing has ink; most of its ink is near them."""
    data = glyphs.splits["val"]
    plain = torch.from_numpy(draw("val", 30, 1, 28, 0.0)).float() / 255
    for image, known in zip(plain[:, 0], data.attributes.reshape(30, 4, 8, 2)):
        points = known[known.abs().sum((1, 2)) > 0].flatten(0, 1)
        assert 0.8 < points.abs().max() <= 1
        at = (0.5 + 0.3 * points) * 28 - 0.5
        column, row = at.round().long().T
        assert image[row, column].min() > 0.2
        ink = (image > 0.5).nonzero().flip(1).float()
        assert (torch.cdist(ink, at).amin(1) < 4).float().mean() > 0.9


def test_no_character_twice():
    plain = np.concatenate([draw(split, n, 1, 28, 0.0) for split, n in (("train", 1000), ("val", 100), ("test", 200))])
    flat = torch.from_numpy(plain.reshape(len(plain), -1)).float() / 255
    square = flat.square().sum(1)
    distance = square[:, None] + square - 2 * flat @ flat.T
    distance.fill_diagonal_(torch.inf)
    assert distance.min() > 1


def test_ink_on_paper(glyphs):
    images = glyphs.splits["train"].images.float() / 255
    assert 0.06 < images.mean() < 0.10  # Omniglot at 28 x 28: 0.082
    assert images.amax((1, 2, 3)).min() > 0.9
    assert images.mean((1, 2, 3)).min() > 0.01
    grey = ((images > 0.2) & (images < 0.8)).float().mean()
    assert 0.03 < grey < 0.1  # antialiased: Omniglot 0.06
    assert images[..., 0, :].mean() < 0.01  # nothing is cut off at the edge


def test_drawers_of_a_class_are_closer_than_classes(glyphs):
    images = glyphs.splits["train"].images.float().reshape(100, 6, -1) / 255
    distance = torch.cdist(images.flatten(0, 1), images.flatten(0, 1)).reshape(100, 6, 100, 6)
    same = torch.eye(100, dtype=torch.bool)[:, None, :, None].expand(100, 6, 100, 6)
    assert distance[same].sum() / (same.sum() - 600) < 0.95 * distance[~same].mean()
    assert distance.masked_fill(torch.eye(600, dtype=torch.bool).reshape(distance.shape), torch.inf).min() > 0  # no two drawings equal


def test_pixels_tell_something_but_not_all(glyphs):
    tasks = glyphs.episodes("train", EpisodeSpec(way=5, shot=1, query=1), 0).batch(range(1000))
    support, query = tasks.context.support.x.flatten(2), tasks.query.x.flatten(2)
    accuracy = (torch.cdist(query, support).argmin(-1) == tasks.query.y).float().mean()
    assert 0.35 < accuracy < 0.55  # Omniglot: 0.42


def test_variation_zero_is_one_drawing_per_class():
    images = draw("test", 70, 4, 28, 0.0).reshape(70, 4, -1)
    assert (images == images[:, :1]).all()


@pytest.mark.parametrize(("size", "variation"), [(8, 2.0), (64, 2.0), (105, 1.0)])
def test_other_sizes(size, variation):
    images = draw("val", 10, 2, size, variation) / 255
    assert images.shape == (20, 1, size, size)
    assert 0.03 < images.mean() < 0.2


def test_unknown_split(glyphs):
    with pytest.raises(UserError, match="no validation split"):
        glyphs.episodes("validation", EpisodeSpec(way=5, shot=1, query=1), 0)


def test_yaml_holds_every_argument(request):
    values = yaml.safe_load((request.config.rootpath / "conf/data/glyphs.yaml").read_text())
    assert values.pop("_target_") == "metarun.data.glyphs.Glyphs"
    assert values.pop("name") == "glyphs"
    assert set(values) == set(inspect.signature(Glyphs).parameters) - {"seed"}
    assert (values["train_classes"], values["val_classes"], values["test_classes"], values["drawers"]) == (1000, 100, 200, 20)
