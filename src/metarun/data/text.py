"""Short texts in classes, such as what people ask an assistant for: of files of lines, of class folders, of a corpus, or invented.
A text is a row of its bytes; what a net makes of them is the net's affair."""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le

from metarun.data.base import ImageDataset
from metarun.data.corpus import gather
from metarun.data.episodes import Split
from metarun.data.phrases import invent
from metarun.data.picture import Reader, UnreadableError, Wording
from metarun.errors import UserError

log = logging.getLogger(__name__)

ENDINGS = (".txt",)
LARGEST = 2**20  # bytes of a file that holds one text


class Text(ImageDataset):
    """Texts [length] uint8: their bytes in UTF-8, in small letters with single spaces, cut off or filled up with zeros.

    Classes are divided by name: the last ones are for the test, those before them for development, all others for training. A text
    that is there several times is kept once, in the split nearest to the test.

    Args:
        seed: the run's; unused.
        root, corpus: where the texts are, see ``gather``; without a root ``invent``ed ones.
        length: bytes of a text, whatever its own length.
        val_classes, test_classes: classes of development and test tasks.
        min_texts: fewest texts of a class; classes with fewer are left out, and named.

    Raises:
        UserError: what ``gather`` raises, or no class is left for training.
    """

    def __init__(
        self,
        seed: int,
        *,
        root: str | None,
        corpus: str | None,
        length: Annotated[int, Ge(8), Le(4096)],
        val_classes: Annotated[int, Ge(0)],
        test_classes: Annotated[int, Ge(0)],
        min_texts: Annotated[int, Ge(2)],
    ) -> None:
        if root is None and corpus is not None:
            raise UserError(f"data.corpus={corpus} needs data.root=FILE, the archive or folder that it is in")
        classes = invent() if root is None else gather(Path(root).expanduser(), corpus)
        names = sorted(classes)
        if len(names) <= val_classes + test_classes:
            raise UserError(
                f"data.val_classes={val_classes} + data.test_classes={test_classes} leave none of the {len(names)} classes for training; "
                "make them fewer"
            )
        edges = {"test": test_classes, "val": val_classes, "train": len(names) - val_classes - test_classes}
        splits: dict[str, Split] = {}
        seen: dict[bytes, str] = {}  # by what is left of a text, so that no two are the same in the end
        for split, many in edges.items():
            chosen = [names.pop() for _ in range(many)][::-1]
            kept = {name: _new(classes[name], length, seen) for name in chosen}
            if few := sorted(name for name, texts in kept.items() if len(texts) < min_texts):
                log.warning("%d classes of the %s split have fewer than data.min_texts=%d texts and are left out, such as %s",
                            len(few), split, min_texts, few[0])  # fmt: skip
            kept = {name: texts for name, texts in kept.items() if name not in few}
            if kept:
                splits[split] = _split(kept, length)
        if "train" not in splits:
            raise UserError(f"no class of training has data.min_texts={min_texts} texts; lower it, or add texts")
        if copies := sum(map(len, classes.values())) - len(seen):
            log.info("%d texts are there more than once and are kept once", copies)
        if long := sum(len(text.encode()) > length for text in seen.values()):
            log.info("%d of %d texts are longer than data.length=%d bytes and are cut off", long, len(seen), length)
        self.note = (corpus or "").lower()
        super().__init__({split: splits[split] for split in ("train", "val", "test") if split in splits})

    def describe(self, split: str) -> str:
        data = self.splits[split]
        held = f"{data.classes:,} classes, {len(data.images):,} texts of up to {self.input_shape[0]} bytes"
        return f"{held} ({self.note})" if self.note else held

    @classmethod
    def reader(cls, **values: Any) -> Reader:
        """Texts, each in a file of its own that ends in ``.txt``."""
        length = values["length"]
        wording = Wording(lambda text: encode(text, length), decode)
        return Reader((length,), lambda path: encode(_file(path), length), "text", ENDINGS, wording)


def plain(text: str) -> str:
    """In small letters with single spaces, and one form for each letter (NFKC)."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().replace("\0", " ").split())


def encode(text: str, length: int) -> np.ndarray:
    """A text as [length] uint8, zeros behind its end.

    Raises:
        UnreadableError: nothing is in it.
    """
    if not (found := plain(text)):
        raise UnreadableError("an empty text")
    row = np.zeros(length, np.uint8)
    content = np.frombuffer(found.encode(errors="replace")[:length].rstrip(), np.uint8)
    row[: len(content)] = content
    return row


def decode(row: np.ndarray) -> str:
    """The text of [length] uint8; a letter that was cut through is left out."""
    return bytes(row).rstrip(b"\0").decode(errors="ignore")


def _file(path: Path) -> str:
    if not path.is_file():  # a pipe would wait for ever
        raise UnreadableError("not a regular file")
    if path.stat().st_size > LARGEST:
        raise UnreadableError("larger than a megabyte: give one text per file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"no text in UTF-8 ({error})") from None


def _new(texts: list[str], length: int, seen: dict[bytes, str]) -> list[str]:
    """The texts, plain, whose first ``length`` bytes are not among ``seen``, which they are added to."""
    before = len(seen)
    for text in map(plain, texts):
        seen.setdefault(encode(text, length).tobytes(), text)
    return [*seen.values()][before:]


def _split(classes: dict[str, list[str]], length: int) -> Split:
    rows = torch.from_numpy(np.stack([encode(text, length) for texts in classes.values() for text in texts]))
    counts = np.array([len(texts) for texts in classes.values()], np.int64)
    return Split(rows, counts.cumsum() - counts, counts, list(classes))
