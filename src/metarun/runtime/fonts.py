"""What text in pictures is written with: DejaVu, which comes with matplotlib, or a font of this machine that has the letters it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib

# In names of fonts that cover much: the first ones to look into.
LIKELY = ("CJK", "Unicode", "WenQuanYi", "wqy", "PingFang", "YaHei", "msyh", "Hiragino", "Noto", "Droid", "Gothic")


@cache
def dejavu() -> Path:
    """The font of all that needs no other."""
    return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@cache
def covering(text: str) -> Path:
    """The font file that has the most of a text's letters; DejaVu if it has them all."""
    best, most = dejavu(), len(_missing(text, dejavu()))
    for path in _of_this_machine() if most else ():
        missing = len(_missing(text, path))
        if missing < most:
            best, most = path, missing
        if not most:
            break
    return best


@cache
def legible(text: str) -> str:
    """The text as ``covering(text)`` can draw it: ``\\xff`` for a byte that is no UTF-8, ``\\u732b`` for a letter of no font here."""
    text = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    missing = _missing(text, covering(text))
    return "".join(letter.encode("unicode_escape").decode() if letter in missing else letter for letter in text)


def families(texts: Sequence[str]) -> list[str]:
    """The names of fonts that draw texts in matplotlib together: what one lacks, the next may have."""
    from matplotlib.font_manager import FontProperties, fontManager

    paths = dict.fromkeys([dejavu(), *(covering(text) for text in texts)])
    for path in list(paths)[1:]:
        fontManager.addfont(path)
    return [FontProperties(fname=path).get_name() for path in paths]


def _missing(text: str, path: Path) -> set[str]:
    return {letter for letter in text if ord(letter) not in _letters(path)}


@cache
def _letters(path: Path) -> frozenset[int]:
    """The code points that a font has a glyph for; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(str(path)).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@cache
def _of_this_machine() -> list[Path]:
    from matplotlib.font_manager import findSystemFonts

    def order(path: Path) -> tuple[bool, bool, str]:
        return not any(word in path.name for word in LIKELY), "Regular" not in path.name, path.name

    return sorted(map(Path, findSystemFonts()), key=order)
