"""Real texts, digits and faces: what is in the files, and that classes can be told apart before anything is learned."""

import os
from pathlib import Path

import pytest

from metarun.config.compose import compose, resolve
from metarun.protocols.episodes import LAST
from metarun.run import Run

pytestmark = pytest.mark.real

WORDS = ["device=cpu", "logger=quiet", "algo=protonet", "shot=5", "query=5"]


@pytest.fixture(scope="module")
def shared():
    """A function that finds a file of the folder of real data: $METARUN_TEST_SHARED, or shared beside the checkout."""
    folder = Path(os.environ.get("METARUN_TEST_SHARED") or Path(__file__).resolve().parents[3] / "shared")

    def find(name):
        if not (folder / name).is_file():
            pytest.skip(f"no real data: {folder} has no {name} (METARUN_TEST_SHARED may name another folder)")
        return folder / name

    return find


def accuracy(run, episodes):
    arrays = run.engine.score(run.algorithm, run.episodes("test"), episodes, LAST, lambda done: None)
    return LAST.summarise(run.problem, arrays)[0]["accuracy"]["mean"]


def test_clinc150_has_150_texts_of_150_intents_and_its_n_grams_tell_unseen_ones_apart(shared):
    root = shared("text/intents.zip")
    words = ["data=text", f"data.root={root}", "data.corpus=clinc150", "data.test_classes=50", "net=textbag", "net.size=0"]
    run = Run(resolve(compose([*WORDS, *words])))
    parts = run.data.splits
    assert {name: part.classes for name, part in parts.items()} == {"train": 80, "val": 20, "test": 50}
    assert sum(int(part.counts.sum()) for part in parts.values()) == 22_495  # 22,500 of which five are there twice
    assert (parts["test"].names[0], parts["test"].names[-1]) == ("reset_settings", "yes")
    assert accuracy(run, 100) > 0.92


def test_fewrel_has_700_sentences_of_16_relations(shared):
    root = shared("text/fewrel_val.zip")
    values = ["data=text", f"data.root={root}", "data.corpus=wiki", "data.val_classes=5", "data.test_classes=5", "data.length=512"]
    data = Run(resolve(compose([*WORDS, *values, "net=textbag"]))).data
    assert [part.classes for part in data.splits.values()] == [6, 5, 5]
    assert all(670 <= count <= 700 for part in data.splits.values() for count in part.counts)  # some are there for two relations


def test_spoken_digits_of_six_speakers_and_raw_spectrograms_tell_unseen_ones_apart(shared):
    words = [f"data.root={shared('speech/fsdd.zip')}", "algo=protonet", "net=mlp", "net.sizes=[]", "~net.hidden"]
    run = Run(resolve(compose([*WORDS, "experiment=speech_digits", *words])))
    parts = run.data.splits
    assert parts["test"].names == ["5", "6", "7", "8", "9"]
    assert parts["test"].counts.tolist() == [150] * 5
    assert (parts["train"].classes, set(parts["train"].counts)) == (125, {120})
    assert accuracy(run, 100) > 0.7


def test_orl_has_ten_pictures_of_each_of_40_people(shared):
    data = Run(resolve(compose([*WORDS, "data=orl", f"data.root={shared('faces/orl_faces_png.zip').parent}"]))).data
    assert [part.classes for part in data.splits.values()] == [24, 6, 10]
    assert all(set(part.counts) == {10} for part in data.splits.values())
    assert data.note == ""
