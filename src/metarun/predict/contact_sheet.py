"""The picture sheet of a prediction: the support by class on top, the classified pictures with answer and probability below.
Pictures are shown as the net sees them, pixels kept square; a text is written into its tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metarun.data.picture import Wording
from metarun.protocols.belonging import UNKNOWN
from metarun.runtime.fonts import covering, legible
from metarun.storage.files import replace_file

TILE, GAP, MARGIN, COLUMNS = 84, 12, 24, 12  # pixels, and tiles in a row
CAPTION = 56  # pixels below a classified picture: bar, answer, probability, truth
NAME = 14  # and for its file's name
LETTERS, LINES = 14, 6  # of a text in a tile
SHOTS, ANSWERS = 5, 120  # how many pictures of a class, and of those classified, are shown
WIDTH = 2 * MARGIN + COLUMNS * TILE + (COLUMNS - 1) * GAP
TEXT, FAINT, RULE, PAPER, RIGHT, WRONG, OPEN = "#1c1c1c", "#6b6b6b", "#d9d9d9", "#f2f2f2", "#1f6fb4", "#d1495b", "#6b6b6b"


@dataclass(frozen=True)
class Answer:
    """One classified picture."""

    file: str  # its path below the query folder
    image: np.ndarray  # [channels, height, width] or bytes of a text [length], uint8, as the net sees it
    probabilities: dict[str, float]  # by class
    truth: str | None  # the class its folder is named after, or that a table names, if there is one
    stray: str | None = None  # that name, where it is none of the classes
    belonging: float | None = None  # how well it fits the class that it fits best; None: not asked
    unknown: bool = False  # whether that is too little, so that the answer is none of the classes
    note: str = ""  # what is said of it in place of the probability

    @property
    def likeliest(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def guess(self) -> str:
        """The answer: the most probable class, or ``UNKNOWN``."""
        return UNKNOWN if self.unknown else self.likeliest

    @property
    def confidence(self) -> float:
        """The probability of the most probable class, 0..1."""
        return self.probabilities[self.likeliest]

    @property
    def right(self) -> bool | None:
        """Whether the answer is right; None where that is not known."""
        if self.truth is not None:
            return self.guess == self.truth
        return self.unknown if self.stray is not None and self.belonging is not None else None


def draw(
    path: Path,
    lines: Sequence[str],
    support: Sequence[tuple[str, np.ndarray]],
    answers: Sequence[Answer],
    noun: str = "picture",
    wording: Wording | None = None,
    named: bool = False,
) -> None:
    """Write the sheet as a PNG.

    Args:
        path: where to.
        lines: what is said on top, a title first.
        support: class and picture [channels, height, width] uint8 of every labelled example; at most 5 of a class are drawn.
        answers: in the order of the sheet; the first 120 are drawn.
        noun, wording: as of the run's ``Reader``.
        named: the name of each classified file stands below it.
    """
    blocks = _blocks(support)
    shown = answers[:ANSWERS]
    place = _flow([len(images[:SHOTS]) for images in blocks.values()])
    top = MARGIN + 30 + 20 * (len(lines) - 1) + 42
    middle = top + (1 + max(row for row, _ in place)) * (TILE + 32) + 44
    rows, caption = -(-len(shown) // COLUMNS), CAPTION + NAME * named
    sheet = Image.new("RGB", (WIDTH, middle + rows * (TILE + caption + GAP) + MARGIN - GAP), "white")
    pen = ImageDraw.Draw(sheet)

    for i, line in enumerate(lines):
        size, y, color = (13, MARGIN + 10 + 20 * i, FAINT) if i else (18, MARGIN, TEXT)
        _write(pen, (MARGIN, y), line, color, size, WIDTH - 2 * MARGIN)
    _heading(pen, top - 30, "support")
    for (name, images), (row, column) in zip(blocks.items(), place):
        x, y = MARGIN + column * (TILE + GAP), top + row * (TILE + 32)
        room = len(images[:SHOTS]) * (TILE + GAP) - GAP
        label = f"{name} ({len(images)})" if len(images) > SHOTS else name
        _write(pen, (x, y), label, TEXT, 13, room)
        for i, image in enumerate(images[:SHOTS]):
            sheet.paste(_tile(image, wording), (x + i * (TILE + GAP), y + 18))
    heading = f"the first {len(shown)} of {len(answers)} {noun}s" if len(shown) < len(answers) else f"{noun}s"
    colors = (
        "; frame: blue if the answer is right by the folder's name, red if it is not" if any(a.right is not None for a in shown) else ""
    )
    _heading(pen, middle - 30, f"{heading}; bar: probability of the answer{colors}")
    for i, answer in enumerate(shown):
        x, y = MARGIN + i % COLUMNS * (TILE + GAP), middle + i // COLUMNS * (TILE + caption + GAP)
        _answer(sheet, pen, x, y, answer, wording)
        if named:
            _write(pen, (x, y + TILE + CAPTION), answer.file, FAINT, 10, TILE)
    replace_file(path, lambda handle: sheet.save(handle, "PNG"))


def _answer(sheet: Image.Image, pen: ImageDraw.ImageDraw, x: int, y: int, answer: Answer, wording: Wording | None) -> None:
    color = OPEN if answer.right is None else RIGHT if answer.right else WRONG
    sheet.paste(_tile(answer.image, wording), (x, y))
    if answer.right is not None:
        pen.rectangle((x - 3, y - 3, x + TILE + 2, y + TILE + 2), outline=color, width=3)
    pen.rectangle((x, y + TILE + 5, x + TILE - 1, y + TILE + 8), RULE)
    pen.rectangle((x, y + TILE + 5, x + max(1, round(answer.confidence * (TILE - 1))), y + TILE + 8), color)
    _write(pen, (x, y + TILE + 11), answer.guess, color if color == WRONG else TEXT, 13, TILE)
    _write(pen, (x, y + TILE + 27), answer.note or f"{100 * answer.confidence:.0f} %", FAINT, 11, TILE)
    if color == WRONG:
        _write(pen, (x, y + TILE + 41), str(answer.truth or answer.stray), FAINT, 11, TILE, before="is ")


def _heading(pen: ImageDraw.ImageDraw, y: int, text: str) -> None:
    _write(pen, (MARGIN, y), text, FAINT, 13, WIDTH - 2 * MARGIN)
    pen.line((MARGIN, y + 19, WIDTH - MARGIN, y + 19), RULE)


def _blocks(support: Sequence[tuple[str, np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """The pictures by class."""
    blocks: dict[str, list[np.ndarray]] = {}
    for name, image in support:
        blocks.setdefault(name, []).append(image)
    return blocks


def _flow(widths: Sequence[int]) -> list[tuple[int, int]]:
    """Row and column of blocks so many tiles wide, set like words in a line."""
    place, row, column = [], 0, 0
    for width in widths:
        if column + width > COLUMNS:
            row, column = row + 1, 0
        place.append((row, column))
        column += width
    return place


def _tile(image: np.ndarray, wording: Wording | None) -> Image.Image:
    """[channels, height, width] uint8, or a text, as a square of ``TILE`` pixels."""
    if wording:
        return _page(wording.decode(image))
    channels, height, _ = image.shape
    picture = Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0)).convert("RGB")
    return picture.resize((TILE, TILE), Image.Resampling.NEAREST if height < TILE else Image.Resampling.LANCZOS)


def _page(text: str) -> Image.Image:
    """A text set in lines, as much as a tile holds."""
    page = Image.new("RGB", (TILE, TILE), PAPER)
    for i, line in enumerate(wrap(text, LETTERS)[:LINES]):
        _write(ImageDraw.Draw(page), (4, 3 + 13 * i), line, TEXT, 10, TILE - 8)
    return page


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, color: str, size: int, width: int, before: str = "") -> None:
    """Draw a text in a font that has its letters, cut to ``width`` pixels after what stands ``before`` it."""
    font = _font(covering(text), size)
    room = width - round(font.getlength(before))
    pen.text(place, before + _fit(legible(text), font, room), color, font)


@cache
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut to ``width`` pixels with an ellipsis; of a path the end says more than the beginning."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"…{text}") > width:
        text = text[1:]
    return f"…{text}"
