"""Spoken words as spectrograms: classes are words or speakers. Of wav files in class folders, of files WORD_SPEAKER_TAKE.wav as the Free
Spoken Digit Dataset's, in a folder or archive, or of words that are invented."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, pairwise, product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Le

from metarun.data import tones
from metarun.data.archive import read
from metarun.data.base import ImageDataset
from metarun.data.cache import cached_images, fingerprint
from metarun.data.episodes import Split
from metarun.data.picture import Reader, UnreadableError
from metarun.data.sound import read_wav, spectrogram
from metarun.errors import UserError

ENDINGS = (".wav",)
NAMED = re.compile(r"([^_/]+)_([^_/]+)_(\d+)\.wav", re.IGNORECASE)
WAV = re.compile(r".*\.wav", re.IGNORECASE)
FORMS = "data.root is a folder or .zip of files WORD_SPEAKER_TAKE.wav, or a folder with one folder of wav files per class"
BACKWARDS = " backwards"

Size = Annotated[int, Ge(8), Le(256)]


class Take(NamedTuple):
    """Whose recording of what it is; classes of folders have no speakers."""

    word: str
    speaker: str
    number: int


class Speech(ImageDataset):
    """Spectrograms [1, mels, frames] uint8 of recordings, see ``sound.spectrogram``.

    Classes are divided by name: the last ones are for the test, those before them for development, the others for training. Where there
    are too few for development classes (``val_classes=0``), development tasks are made of the training classes' ``held_out`` takes,
    played backwards: words that no training task has, in recordings that no training task has.

    Args:
        seed: of the run; unused.
        root: a folder or archive, see ``FORMS``; null: invented words.
        classes: ``word``, spoken by all speakers, or ``speaker``, saying all words.
        mels, frames: height and width of a spectrogram.
        val_classes, test_classes: classes of development and test tasks.
        held_out: takes with a lower number are for development and never for training, where ``val_classes`` is 0.
        pieces: with 2 or 3, training words are cut into so many pieces of equal length, and put together in every way: 5 words make 25 or
            125 training classes. All pieces of an example are by the same speaker.
        test_speakers: so many speakers, by name the last ones, are heard in the test alone, and nobody else is; 0: all speakers everywhere.

    Raises:
        UserError: no such files, one that is no recording, too few classes, or options that contradict each other.
    """

    def __init__(
        self,
        seed: int,
        *,
        root: str | None,
        classes: Literal["word", "speaker"],
        mels: Size,
        frames: Size,
        val_classes: Annotated[int, Ge(0)],
        test_classes: Annotated[int, Ge(1)],
        held_out: Annotated[int, Ge(2)],
        pieces: Annotated[int, Ge(1), Le(3)],
        test_speakers: Annotated[int, Ge(0)],
    ) -> None:
        if classes == "speaker" and (pieces > 1 or test_speakers):
            raise UserError("data.classes=speaker has unseen speakers in its test already: set data.pieces=1 data.test_speakers=0")
        images, takes = _recordings(root, mels, frames)
        names = sorted({getattr(take, classes) for take in takes})
        if len(names) <= val_classes + test_classes:
            raise UserError(
                f"data.val_classes={val_classes} + data.test_classes={test_classes} leave none of the {len(names)} classes for training; "
                "make them fewer"
            )
        voices = sorted({take.speaker for take in takes})
        if test_speakers >= len(voices):
            raise UserError(f"data.test_speakers={test_speakers} leaves none of the {len(voices)} speakers for training; make it less")
        unheard = set(voices[len(voices) - test_speakers :])
        test = len(names) - test_classes
        train = test - val_classes

        def chosen(which: list[str], unseen: bool, last: int = 0, first: int = 0) -> dict[str, list[int]]:
            """Rows of some classes' takes, those numbered from ``first`` to before ``last`` (0: all), of unseen speakers or the others."""
            found: dict[str, list[int]] = {name: [] for name in which}
            for row, take in enumerate(takes):
                heard = not test_speakers or (take.speaker in unheard) == unseen
                if (name := getattr(take, classes)) in found and heard and take.number >= first and (not last or take.number < last):
                    found[name].append(row)
            return found

        if val_classes:
            held_out, val = 0, _split(images, chosen(names[train:test], False))
        else:
            val = _split(images[..., ::-1], {f"{name}{BACKWARDS}": rows for name, rows in chosen(names[:train], False, held_out).items()})
        parts = {"train": _split(images, chosen(names[:train], False, 0, held_out)), "val": val}
        if pieces > 1:
            parts["train"] = _spliced(images, takes, chosen(names[:train], False, 0, held_out), pieces)
        super().__init__(parts | {"test": _split(images, chosen(names[test:], True))})

    @classmethod
    def reader(cls, **values: Any) -> Reader:
        """Recordings, read as those of training."""
        mels, frames = values["mels"], values["frames"]
        return Reader((1, mels, frames), lambda path: spectrogram(*read_wav(path), mels, frames), "recording", ENDINGS)


def _recordings(root: str | None, mels: int, frames: int) -> tuple[np.ndarray, list[Take]]:
    """All spectrograms [n, 1, mels, frames] uint8 and what they are, in order of name."""
    if root is None:
        sounds = {Take(*key): samples for key, samples in tones.invent().items()}
        return np.stack([spectrogram(samples, tones.RATE, mels, frames) for samples in sounds.values()]), list(sounds)
    path = Path(root).expanduser()
    if not path.exists():
        raise UserError(f"data.root={root} does not exist; {FORMS}")
    if not path.is_dir() and not (path.is_file() and path.suffix.lower() == ".zip"):
        raise UserError(f"data.root={root} is neither a folder nor a .zip; {FORMS}")

    def build() -> tuple[np.ndarray, Any]:
        files = [(name, content) for name, content in read(path, WAV) if not Path(name).name.startswith(".")]

        def one(file: tuple[str, bytes]) -> np.ndarray:
            try:
                return spectrogram(*read_wav(file[1]), mels, frames)
            except UnreadableError as reason:
                raise UserError(f"{path / file[0]} is not a readable recording: {reason}") from None

        if not files:
            raise UserError(f"{path} has no wav files; {FORMS}")
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(one, files))), [name for name, _ in files]

    key = {"name": "speech", "version": 2, "source": fingerprint(path), "mels": mels, "frames": frames}
    images, names = cached_images(key, build)
    return images, _takes(names)


def _takes(names: list[str]) -> list[Take]:
    """By the files' names, or by their folders where not all are named so."""
    found = [NAMED.fullmatch(Path(name).name) for name in names]
    if all(found):
        takes = [Take(match[1], match[2], int(match[3])) for match in found if match]
        folders = [Path(name).parent.name for name in names]
        told = [name for name, folder, take in zip(names, folders, takes) if folder not in (take.word, take.speaker)]
        if told and len({Path(name).parent for name in names}) > 1:
            raise UserError(
                f"is the class of {told[0]} its folder's name, or the word in its own? For folders, name the files otherwise, as 1.wav; "
                "for words, put all files into one folder"
            )
        return takes
    if loose := [name for name in names if "/" not in name]:
        raise UserError(f"{loose[0]} is in no class folder, and not named WORD_SPEAKER_TAKE.wav; {FORMS}")
    counts: dict[str, int] = {}
    takes = []
    for name in names:
        word = Path(name).parent.as_posix()
        takes.append(Take(word, "", counts.setdefault(word, 0)))
        counts[word] += 1
    return takes


def _split(images: np.ndarray, classes: dict[str, list[int]]) -> Split:
    if short := [name for name, rows in classes.items() if len(rows) < 2]:
        raise UserError(f"class '{short[0]}' has {len(classes[short[0]])} recordings here; it needs two at least")
    counts = np.array([len(rows) for rows in classes.values()], np.int64)
    rows = np.concatenate([np.array(rows) for rows in classes.values()])
    return Split(torch.from_numpy(np.ascontiguousarray(images[rows])), counts.cumsum() - counts, counts, list(classes))


def _spliced(images: np.ndarray, takes: list[Take], classes: dict[str, list[int]], pieces: int) -> Split:
    """A class for every sequence of ``pieces`` words, the words themselves first: of each word its part at that place."""

    def speaker(row: int) -> str:
        return takes[row].speaker

    # Sorted: files of one speaker may lie in several folders.
    voices = {name: {who: [*own] for who, own in groupby(sorted(rows, key=speaker), speaker)} for name, rows in classes.items()}
    edges = np.linspace(0, images.shape[-1], pieces + 1).round().astype(np.int64)
    found: dict[str, np.ndarray] = {}
    for words in sorted(product(classes, repeat=pieces), key=lambda words: len(set(words)) > 1):
        speakers = [who for who in voices[words[0]] if all(who in voices[word] for word in words)]
        rows = [row for who in speakers for row in zip(*(voices[word][who] for word in words))]
        if len(rows) >= 2:
            parts = [images[of][..., a:b] for of, (a, b) in zip(np.array(rows).T, pairwise(edges))]
            found["+".join(words) if len(set(words)) > 1 else words[0]] = np.concatenate(parts, -1)
    counts = np.array([len(made) for made in found.values()], np.int64)
    return Split(torch.from_numpy(np.concatenate(list(found.values()))), counts.cumsum() - counts, counts, list(found))
