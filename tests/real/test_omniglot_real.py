"""Omniglot as Brenden Lake released it: the two small background sets, where a checkout has them beside it.
Counts, looks and speed of the real thing; everything else is tested on made-up archives."""

import time
from pathlib import Path

import pytest
import torch

from metarun.data.omniglot import Omniglot
from metarun.problem import EpisodeSpec

torch.set_num_threads(1)

FOLDER = Path(__file__).parents[3] / "shared" / "omniglot"
pytestmark = [pytest.mark.real, pytest.mark.skipif(not FOLDER.is_dir(), reason="no shared/omniglot beside the checkout")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def isolated(monkeypatch, cache):
    monkeypatch.setenv("METARUN_CACHE", str(cache))


def load(split, rotate=True, size=28):
    return Omniglot(
        0, root=str(FOLDER), split=split, size=size, rotate_train=rotate, rotate_val=rotate, rotate_test=rotate, download=False
    ).splits


@pytest.mark.parametrize(("split", "characters"), [("small", (177, 22, 43)), ("minimal1", (111, 25, 106)), ("minimal2", (127, 29, 86))])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.slow
def test_counts(split, characters, rotate):
    splits = load(split, rotate)
    assert tuple(found.classes for found in splits.values()) == tuple(count * (4 if rotate else 1) for count in characters)
    for found in splits.values():
        assert found.images.shape == (20 * found.classes, 1, 28, 28)
    names = [name for found in splits.values() for name in found.names]
    assert len(names) == len(set(names))


def test_small_is_split_by_alphabet():
    alphabets = {part: {name.split("/")[0] for name in found.names} for part, found in load("small").items()}
    assert alphabets == {
        "train": {"Balinese", "Greek", "Japanese_(katakana)", "Korean", "Sanskrit"},
        "val": {"Early_Aramaic"},
        "test": {"Latin", "Tagalog"},
    }


def test_ink_is_one_and_images_are_all_there():
    for found in load("small").values():
        images = found.images.float() / 255
        assert 0.03 < images.mean() < 0.15
        assert images.amax((1, 2, 3)).min() > 0.3  # no empty drawing
        assert images[..., 0, 0].mean() < 0.05  # corners are paper
        assert len(found.images.flatten(1).unique(dim=0)) > 0.99 * len(images)


def test_original_size_is_binary():
    assert set(load("minimal1", rotate=False, size=105)["val"].images.unique().tolist()) == {0, 255}


def test_characters_that_stand_in_both_sets_are_the_same_images():
    first, second = load("minimal1", rotate=False)["train"], load("minimal2", rotate=False)["train"]
    assert [name for name in first.names if name.startswith("Latin")] == [name for name in second.names if name.startswith("Latin")]
    for name in ("Latin/character01", "Greek/character24"):
        a, b = (found.images[20 * found.names.index(name) :][:20] for found in (first, second))
        assert torch.equal(a, b)


def test_drawings_of_a_character_resemble_each_other():
    """Nearest neighbours in pixels are far above chance (0.2), so names, rows and images belong together."""
    data = Omniglot(0, root=str(FOLDER), split="small", size=28, rotate_train=True, rotate_val=True, rotate_test=True, download=False)
    task = data.episodes("test", EpisodeSpec(way=5, shot=5, query=5), 0).batch(range(100))
    distance = torch.cdist(task.query.x.flatten(2), task.context.support.x.flatten(2))
    predicted = task.context.support.y.gather(1, distance.argmin(-1))
    assert (predicted == task.query.y).float().mean() > 0.6


def test_second_load_is_fast():
    load("small")
    start = time.perf_counter()
    load("small")
    assert time.perf_counter() - start < 0.5
