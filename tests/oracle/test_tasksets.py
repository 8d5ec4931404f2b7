"""learn2learn's own tasksets become splits: the library's classes, here of made-up images in place of its downloads."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from metarun.data.learn2learn import Learn2Learn
from metarun.errors import UserError
from metarun.problem import EpisodeSpec

CLASSES = {"train": 6, "validation": 3, "test": 4}


def images(split: str, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, 3, 8, 8] whose first pixel is the class and second the image, in 0..scale, classes in turn."""
    n = CLASSES[split]
    y = torch.arange(3 * n) % n
    x = torch.randint(0, 256, (3 * n, 3, 8, 8), generator=torch.Generator().manual_seed(n)).float()
    x[:, 0, 0, 0], x[:, 0, 0, 1] = y.float(), torch.arange(3 * n).float()
    return x / 255 * scale, y


@pytest.fixture
def made_up(learn2learn: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function that puts made-up images of a scale in place of all that the library would fetch."""
    monkeypatch.setenv("METARUN_DATA", str(tmp_path))
    benchmarks, data = learn2learn.vision.benchmarks, learn2learn.data

    def put(scale: int, change: Any = lambda x: x) -> None:
        def build(root: str, **settings: Any) -> Any:
            assert root == str(tmp_path / "learn2learn")
            parts = {split: images(split, scale) for split in CLASSES}
            sets = [data.MetaDataset(torch.utils.data.TensorDataset(change(x), y)) for x, y in parts.values()]
            return sets, [[data.transforms.NWays(found, 2), data.transforms.LoadData(found)] for found in sets]

        monkeypatch.setitem(benchmarks._TASKSETS, "mini-imagenet", build)

    return put


@pytest.mark.parametrize("scale", [1, 255])
def test_classes_images_and_splits_are_the_librarys(made_up: Any, scale: int) -> None:
    made_up(scale)
    data = Learn2Learn(0, taskset="mini-imagenet")
    assert {name: part.classes for name, part in data.splits.items()} == {"train": 6, "val": 3, "test": 4}
    assert data.describe("val") == "3 classes, 9 images of 3x8x8 (mini-imagenet)"
    for name, theirs in (("train", "train"), ("val", "validation"), ("test", "test")):
        n = CLASSES[theirs]
        part = data.splits[name]
        assert part.images[:, 0, 0, 0].tolist() == [label for label in range(n) for _ in range(3)]
        assert part.images[:, 0, 0, 1].tolist() == [label + n * i for label in range(n) for i in range(3)]
        x, y = images(theirs, 255)
        assert torch.equal(part.images, x[y.argsort(stable=True)].byte())
    assert data.episodes("test", EpisodeSpec(way=4, shot=1, query=2), 0).batch([0]).query.x.shape == (1, 8, 3, 8, 8)


def test_normalised_images_are_refused(made_up: Any) -> None:
    made_up(1, lambda x: (x - 0.47) / 0.28)
    with pytest.raises(UserError, match="not of 8 bits, but normalised or augmented"):
        Learn2Learn(0, taskset="mini-imagenet")


def test_what_the_library_cannot_load_is_one_line(made_up: Any) -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise OSError("no route\nto host")

    made_up(1, fail)
    with pytest.raises(
        UserError, match=r"learn2learn could not load data\.taskset=mini-imagenet in .*\(OSError: no route to host\); put its files"
    ):
        Learn2Learn(0, taskset="mini-imagenet")
