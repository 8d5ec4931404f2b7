"""Real photographs and real word vectors: what describes the classes of CIFAR-FS, and that a closed form tells unseen ones by it."""

import os
from pathlib import Path

import pytest
import torch

from metarun.config.compose import compose, resolve
from metarun.experiment import train
from metarun.run import Run

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def words():
    """The words of a run; $METARUN_TEST_SHARED, or shared beside the checkout, has the files."""
    folder = Path(os.environ.get("METARUN_TEST_SHARED") or Path(__file__).resolve().parents[3] / "shared")
    images, vectors = folder / "cifar_fs" / "cifar_fs.zip", folder / "zeroshot" / "glove50_class_vectors.npz"
    if not (images.is_file() and vectors.is_file()):
        pytest.skip(f"no real data: {folder} lacks {images.name} or {vectors.name} (METARUN_TEST_SHARED may name another folder)")
    return ["experiment=cifar_fs_zeroshot", f"data.root={images.parent}", f"data.attributes={vectors}", "device=cpu", "logger=quiet"]


@pytest.mark.slow
def test_glove_says_what_classes_have_to_do_with_each_other(words):
    splits = Run(resolve(compose(words))).data.splits
    assert {name: (part.classes, set(part.counts)) for name, part in splits.items()} == {
        "train": (64, {80}), "seen": (64, {20}), "val": (16, {100}), "test": (20, {100})
    }  # fmt: skip
    known, asked = splits["train"].attributes, splits["test"].attributes
    torch.testing.assert_close(asked.square().sum(1), torch.full((20,), 50.0))
    nearest = {name: splits["train"].names[int(place)] for name, place in zip(splits["test"].names, (asked @ known.T).argmax(1))}
    assert {nearest[name] for name in ("woman", "man", "baby")} <= {"girl", "boy"}
    assert (nearest["fox"], nearest["whale"], nearest["poppy"], nearest["wardrobe"]) == ("wolf", "dolphin", "sunflower", "couch")
    assert nearest["pickup_truck"] == "bus"  # a class of two words


def test_a_closed_form_on_pixels_tells_unseen_classes_better_than_chance(words, tmp_path):
    small = [
        "algo=eszsl",
        "net=mlp",
        "net.sizes=[]",
        "~net.down",
        "net.norm=none",
        "augment=none",
        "data.size=8",
        "episode.train.query=4",
    ]
    asked = ["way=20", "episode.train.way=64", "trainer.val_episodes=2", "episode.eval.way=16", "episode.eval.query=50", "algo.gamma=0.01"]
    values = resolve(compose([*words, *small, *asked, "trainer.test_episodes=20"]))
    assert train(values, tmp_path / "run")["test"]["accuracy"]["mean"] > 1.3 / 16
