"""Augmentation: exact where a change is exact, a pure function of the episode's key, and of training alone."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import small

from metarun.data.augment import NOISE, Augment
from metarun.errors import UserError
from metarun.run import Run

HALF = 0.5  # the noise that changes nothing


def images(n: int = 1, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.rand(n, 1, height, width, generator=torch.Generator().manual_seed(0))


def noise(column: int, value: float, n: int = 1) -> torch.Tensor:
    result = torch.full((n, NOISE), HALF)
    result[:, column] = value
    return result


ALL = {"rotate": 20.0, "scale": 0.2, "shear": 0.3, "shift": 0.1, "thickness": 0.5, "contrast": 0.2, "brightness": 0.2}


def test_nothing_is_nothing():
    x = images(3)
    assert not Augment()
    assert torch.equal(Augment()(x, torch.rand(3, NOISE)), x)
    torch.testing.assert_close(Augment(**ALL)(x, torch.full((3, NOISE), HALF)), x)


@pytest.mark.parametrize("name", [*ALL, "flip"])
def test_every_key_changes_an_image_and_keeps_its_range(name):
    x, augment = images(4), Augment(**{name: ALL.get(name, True)})
    assert augment
    y = augment(x, torch.rand(4, NOISE, generator=torch.Generator().manual_seed(1)))
    assert y.shape == x.shape
    assert (y - x).abs().max() > 0.01
    assert y.min() >= 0
    assert y.max() <= 1


@pytest.mark.parametrize(("angle", "turns"), [(1.0, 1), (0.0, -1)])
def test_a_right_angle_is_a_right_angle(angle, turns):
    """90 degrees as torch turns them; the sense of the turn is of no importance, that both ends are opposite is."""
    x = images()
    torch.testing.assert_close(Augment(rotate=90.0)(x, noise(0, angle)), torch.rot90(x, turns, (2, 3)), atol=1e-5, rtol=0)


def test_an_angle_is_an_angle_on_a_wide_image():
    """A bar of a wide image, turned by 45 degrees, has as many rows as columns."""
    x = torch.zeros(1, 1, 41, 81)
    x[..., 18:23, 30:51] = 1
    turned = Augment(rotate=45.0)(x, noise(0, 1.0))[0, 0] > 0.5
    rows, columns = turned.any(1).sum(), turned.any(0).sum()
    assert abs(int(rows) - int(columns)) <= 1
    assert int(rows) == pytest.approx((21 + 5) * math.sqrt(0.5), abs=2)


def test_shift_and_mirror_are_exact():
    x = images()
    shifted = Augment(shift=0.25)(x, noise(3, 1.0))
    torch.testing.assert_close(shifted[..., :-2], x[..., 2:], atol=1e-5, rtol=0)
    assert torch.allclose(shifted[..., -2:], x[..., -1:].expand(-1, -1, -1, 2), atol=1e-5)  # the border goes on
    torch.testing.assert_close(Augment(flip=True)(x, noise(5, 0.0)), x.flip(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(Augment(flip=True)(x, noise(5, 1.0)), x, atol=1e-5, rtol=0)


def test_scale_is_symmetric():
    """As often twice the size as half of it: the largest and the smallest factor are inverse."""
    x = torch.zeros(1, 1, 32, 32)
    x[..., 12:20, 12:20] = 1
    areas = [float(Augment(scale=1.0)(x, noise(1, value)).sum()) for value in (0.0, 1.0)]
    assert sorted(areas) == pytest.approx([16, 256], rel=0.1)


def test_thickness_is_a_pixel():
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4, 4] = 1
    augment = Augment(thickness=1.0)
    assert float(augment(x, noise(6, 1.0)).sum()) == 9
    assert float(augment(x, noise(6, 0.0)).sum()) == 0


def test_light():
    x = images()
    torch.testing.assert_close(Augment(brightness=0.5)(x, noise(8, 0.0)), x / 2)
    torch.testing.assert_close(Augment(contrast=1.0)(x, noise(7, 0.0)), x.mean().expand_as(x))


def test_an_augmented_episode_is_a_pure_function_of_its_index():
    run = Run(small("augment=characters"))
    episodes = run.episodes("train")
    plain = run.data.episodes("train", run.spec["train"], run.valid.root.seed)
    many, one = episodes.batch([3, 5, 8]), episodes.batch([5])
    for part in ("x", "y"):
        for side in (lambda task: task.context.support, lambda task: task.query):
            torch.testing.assert_close(getattr(side(many), part)[1:2], getattr(side(one), part), atol=1e-6, rtol=0)
    assert episodes.sha256(4) == plain.sha256(4)
    assert torch.equal(one.query.y, plain.batch([5]).query.y)
    change = (one.query.x - plain.batch([5]).query.x).abs().amax((2, 3, 4))[0]
    assert change.min() > 0.05  # each image
    assert len({round(float(value), 6) for value in change}) > 1  # by itself


def test_unlabelled_images_are_augmented_and_leave_the_others_noise_alone():
    few, more = (Run(small("augment=characters", *words)) for words in ([], ["episode.unlabelled=2"]))
    task, other = few.episodes("train").batch([5]), more.episodes("train").batch([5])
    torch.testing.assert_close(other.query.x, task.query.x, atol=1e-6, rtol=0)
    torch.testing.assert_close(other.context.support, task.context.support, atol=1e-6, rtol=0)
    plain = more.data.episodes("train", more.spec["train"], more.valid.root.seed).batch([5])
    change = (other.context.unlabelled - plain.context.unlabelled).abs().amax((2, 3, 4))
    assert change.shape == (1, 6)
    assert change.min() > 0.05


def test_only_training_is_augmented():
    run, plain = Run(small("augment=photos")), Run(small())
    for split in ("val", "test"):
        assert torch.equal(run.episodes(split).batch([0]).query.x, plain.episodes(split).batch([0]).query.x)


def test_what_is_no_image_is_refused():
    with pytest.raises(UserError, match="augment changes images, and data=sinusoid has none"):
        Run(small("data=sinusoid", "net=mlp", "way=1", "augment=characters"))
    with pytest.raises(UserError, match=r"augment\.shift=1\.5 is not possible"):
        Run(small("augment.shift=1.5"))
