"""Pictures as files, whoever brings them: finding them in folders, and reading one upright, opaque and in eight bits.
What is passed over has a reason. What a dataset makes of a picture is its ``pictures``, the same in training and in prediction."""

from __future__ import annotations

import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metarun.errors import install

PIXELS = 2**26  # of the largest picture that is read, 67 megapixels: a quarter of a gigabyte once decoded
LARGE = 2**24  # pixels; larger ones are decoded one after the other, whatever the number of threads
BAND = 512  # rows laid on white at a time
NOT_READ = {"EPS", "BUFR", "GRIB", "HDF5", "WMF", "MPEG"}  # EPS runs Ghostscript, the others Pillow knows but cannot decode
SYSTEM = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db", "desktop.ini"}
NO_PICTURE, OF_ANOTHER_KIND, OF_THE_SYSTEM = "no picture that Pillow reads", "of another kind", "an operating system's own"
SHOWN = 4  # reasons in a line

Source = Path | bytes | Image.Image  # a picture: its file, the content of one, or opened already

_one_large = threading.Lock()
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # our limit is the lower one


class UnreadableError(ValueError):
    """A file that is not read as a picture, or as whatever it should be; the message is the reason, in a few words."""


class Wording(NamedTuple):
    """What inputs and texts have to do with each other."""

    encode: Callable[[str], np.ndarray]  # a text as an input; raises UnreadableError
    decode: Callable[[np.ndarray], str]  # an input as a text


class Reader(NamedTuple):
    """How a file of anybody's becomes an input."""

    shape: tuple[int, ...]  # of an input: channels, height, width of a picture
    read: Callable[[Any], np.ndarray]  # a file as an input of that shape, uint8; of a picture any ``Source``; raises UnreadableError
    noun: str = "picture"  # what such a file is called
    endings: Collection[str] | None = None  # of such files' names, as ``.wav``; None: those of pictures
    wording: Wording | None = None  # where inputs are texts; None: they are drawn as images


class Found(NamedTuple):
    """The pictures, or files of another kind, below the folder ``base``."""

    base: Path
    folders: dict[str, list[Path]]  # by path below it: each that holds pictures, or nothing at all; "" is the folder itself
    passed: dict[str, str]  # path below it to the reason why it is passed over

    @property
    def classes(self) -> dict[str, list[Path]]:
        """Without the folder itself."""
        return {name: files for name, files in self.folders.items() if name}


@cache
def suffixes() -> dict[str, str]:
    """The format of every file suffix that is read, ``.png`` to ``PNG``: all of Pillow's, and HEIC where pillow-heif is installed."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    known = Image.registered_extensions()
    return {suffix: name for suffix, name in known.items() if name in Image.OPEN and name not in NOT_READ}


def search(base: Path, endings: Collection[str] | None = None) -> Found:
    """All pictures below ``base``, at any depth, files in order of name; hidden files and folders count for nothing.

    With ``endings`` files of such names in place of pictures.

    Links are followed, but no folder is entered twice and none that contains ``base``; a folder goes by its own place before a link to it.
    """
    known = suffixes() if endings is None else endings
    folders: dict[str, list[Path]] = {}
    passed: dict[str, str] = {}
    top, seen = base.resolve(), set[Path]()
    own, links = [base], list[Path]()
    while own or links:
        folder = own.pop() if own else links.pop(0)
        real, name = folder.resolve(), folder.relative_to(base).as_posix().removeprefix(".")
        if real in seen or (folder != base and top.is_relative_to(real)):
            passed[name] = "a link to a folder that is here already"
            continue
        seen.add(real)
        pictures, below = [], False
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            passed[name] = f"cannot be opened ({error.strerror})"
            continue
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.name in SYSTEM:
                passed[path.relative_to(base).as_posix()] = OF_THE_SYSTEM
            elif _is_folder(entry):
                (links if entry.is_symlink() else own).append(path)
                below = True
            elif path.suffix.lower() in known:
                pictures.append(path)
            elif endings is not None:
                passed[path.relative_to(base).as_posix()] = OF_ANOTHER_KIND
            else:
                heif = path.suffix.lower() in (".heic", ".heif", ".hif")
                passed[path.relative_to(base).as_posix()] = f"needs {install('heif')}" if heif else NO_PICTURE
        if pictures or not below:
            folders[name] = pictures
    return Found(base, dict(sorted(folders.items())), passed)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links that run in a circle
        return False


def subfolders(base: Path) -> list[str]:
    """The folders in ``base`` that ``search`` looks into, links included, in order of name."""
    names = sorted(entry.name for entry in os.scandir(base) if _is_folder(entry))
    return [name for name in names if not name.startswith(".") and name not in SYSTEM]


def tell(log: logging.Logger, passed: dict[str, str]) -> None:
    """Name what has been passed over and why: a warning where it may be a picture, else an information."""
    ordinary = {path: reason for path, reason in passed.items() if reason in (NO_PICTURE, OF_ANOTHER_KIND, OF_THE_SYSTEM)}
    for level, part in ((logging.WARNING, {path: passed[path] for path in passed.keys() - ordinary.keys()}), (logging.INFO, ordinary)):
        if part:
            log.log(level, "passed over: %s", reasons(part))


def reasons(passed: dict[str, str]) -> str:
    """``a.tif: damaged; b.png and 3 more: 195 megapixels, above the limit of 67``."""
    by_reason: dict[str, list[str]] = {}
    for path in sorted(passed):
        by_reason.setdefault(passed[path], []).append(path)
    lines = [f"{paths[0]}{f' and {len(paths) - 1} more' * (len(paths) > 1)}: {reason}" for reason, paths in by_reason.items()]
    left = sum(map(len, list(by_reason.values())[SHOWN:]))
    return "; ".join(lines[:SHOWN]) + f"; and {left} more" * (left > 0)


@contextmanager
def upright(file: Source, size: int) -> Iterator[Image.Image]:
    """A picture turned as its EXIF tag says, laid on white if transparent, in 8 bits a channel; ``size`` is what it will be resized to.

    Of several frames or pages the first. Whatever goes wrong with it in the ``with`` block is a fault of the picture.

    Raises:
        UnreadableError: with the reason.
    """
    if isinstance(file, Path) and not file.is_file():  # a pipe would wait for ever
        raise UnreadableError("a link to nothing" if file.is_symlink() else "not a regular file" if file.exists() else "does not exist")
    try:
        names = sorted(set(suffixes().values()))
        with _opened(file, names) as image:
            _refuse_huge(image.width * image.height)
            # JPEG can decode straight to a half, quarter or eighth; twice the size leaves the detail to a later resize.
            image.draft(None, (2 * size, 2 * size))
            with _one_large if image.width * image.height > LARGE else nullcontext():
                yield _opaque(image)
    except UnreadableError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as bomb:  # Pillow's own limit, where it is the lower one
        _refuse_huge(int(re.findall(r"\d+", str(bomb))[0]))
        raise UnreadableError(str(bomb)) from None
    except UnidentifiedImageError:
        raise UnreadableError("not a picture, or damaged") from None
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise UnreadableError(f"damaged ({' '.join(str(error).split())[:80] or type(error).__name__})") from None


@contextmanager
def _opened(file: Source, formats: list[str]) -> Iterator[Image.Image]:
    if isinstance(file, Image.Image):
        yield file.copy()  # the user's own stays as it is
    else:
        # A file that Pillow opens by its name it may map into memory, and turns some of these TIFFs into nonsense.
        with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as stream, Image.open(stream, formats=formats) as image:
            yield image


def _refuse_huge(pixels: int) -> None:
    if pixels > PIXELS:
        raise UnreadableError(f"{pixels / 1e6:.0f} megapixels, above the limit of {PIXELS / 1e6:.0f}")


def _opaque(image: Image.Image) -> Image.Image:
    deep = image.mode == "I" and image.format in ("PNG", "PPM")  # 16 bits in the room of 32
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or deep:  # Pillow would cut 16-bit greys off at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnreadableError("32 bits a channel: save it with 8 or 16")
    if image.has_transparency_data:
        paper = Image.new("RGB", image.size, "white")
        for top in range(0, image.height, BAND):  # whole, it would be in memory four times
            band = image.crop((0, top, image.width, min(top + BAND, image.height))).convert("RGBA")
            paper.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band), (0, top))
        return paper
    return image


def handwriting(file: Source, size: int) -> np.ndarray:
    """A drawing as [1, size, size] uint8 with ink = 255 on paper = 0.

    The paper is the median grey of the picture's border: a picture that is not square is completed with it, never cropped or stretched,
    and light paper is inverted, so that dark ink and chalk come out alike. Then Lanczos, as Omniglot's own files are read.

    Raises:
        UnreadableError: see ``upright``.
    """
    with upright(file, size) as picture:
        grey = picture.convert("L")
        pixels = np.asarray(grey)
        paper = int(np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])))
        side = max(grey.size)
        square = ImageOps.pad(grey, (side, side), color=paper)
        ink = ImageOps.invert(square) if paper > 127 else square
        return np.asarray(ink.resize((size, size), Image.Resampling.LANCZOS))[None]
