"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015, Science 350): 1623 handwritten characters of 50 alphabets, 20 drawings each.
The splits of the literature by name, read from the official archives (or their folders), which are downloaded when absent."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image, ImageOps

from metarun.data.archive import Archive, damaged, locate, obtain, read
from metarun.data.base import ImageDataset
from metarun.data.cache import cached_images, fingerprint
from metarun.data.episodes import CLASSES, Split, draws, episode_keys
from metarun.data.picture import Reader, UnreadableError, handwriting, upright
from metarun.errors import UserError, nearest

SplitName = Literal["small", "minimal1", "minimal2", "vinyals", "lake", "random"]
Size = Annotated[int, Ge(8), Le(256)]

URL = "https://github.com/brendenlake/omniglot/raw/master/python/"
BACKGROUND, EVALUATION, SMALL1, SMALL2 = "images_background", "images_evaluation", "images_background_small1", "images_background_small2"
HASH = {  # MD5 where only that is published
    BACKGROUND: "md5:68d2efa1b9178cc56df9314c21c6e718",
    EVALUATION: "md5:6b91aef0f799c5bb55b94e3f2daec811",
    SMALL1: "sha256:f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
    SMALL2: "sha256:3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f",
}
CHARACTERS = {BACKGROUND: 964, EVALUATION: 659, SMALL1: 136, SMALL2: 156}
DRAWERS = 20

FILES: dict[SplitName, tuple[str, ...]] = {
    "small": (SMALL1, SMALL2),
    "minimal1": (SMALL1,),
    "minimal2": (SMALL2,),
    "vinyals": (BACKGROUND, EVALUATION),
    "lake": (BACKGROUND, EVALUATION),
    "random": (BACKGROUND, EVALUATION),
}
SIZES: dict[SplitName, dict[str, int]] = {  # characters, before rotation; as published for small, vinyals, lake (964 + 659) and random
    "small": {"train": 177, "val": 22, "test": 43},
    "minimal1": {"train": 111, "val": 25, "test": 106},
    "minimal2": {"train": 127, "val": 29, "test": 86},
    "vinyals": {"train": 1028, "val": 172, "test": 423},
    "lake": {"train": 813, "val": 151, "test": 659},
    "random": {"train": 1100, "val": 100, "test": 423},
}


class Omniglot(ImageDataset):
    """Images [1, size, size], ink = 1 on paper = 0, in one of the customary splits.

    An image is inverted, then resized with Lanczos (as MAML's authors do). With rotation a character turned by 90, 180 or 270 degrees
    (counter-clockwise) is a class of its own, so support and query of a class share the angle, and two angles of one character may
    meet in an episode (as in prototypical networks; MAML forbids it). Rotating the test classes as well changes the difficulty
    and must be reported; MAML and prototypical networks do, Reptile and Lake's protocol do not. Classes are in the
    order of their names, all unrotated ones first, then those at 90, 180 and 270 degrees: ``Latin/character01``,
    ``Latin/character01/rot090``.

    Splits (characters for train / val / test; val holds the development tasks):
        small: 177 / 22 / 43 of the two small background sets, by alphabet; val Early_Aramaic, test Latin and Tagalog.
        minimal1, minimal2: one small set alone, for the minimal one-shot challenge; val is every fifth character of each of
            its alphabets (111 / 25 and 127 / 29), test the alphabets of the other set that it lacks (106, 86), if that file is there.
        vinyals: 1028 / 172 / 423, the lists that Vinyals et al. released (arXiv:1606.04080): test is the evaluation set without its
            first 236 characters in alphabetical order, which cuts Gurmukhi 41/4; val Armenian, Bengali, Early_Aramaic, Hebrew, Mkhedruli.
        lake: 813 / 151 / 659, background against evaluation set; val is the last five background alphabets in alphabetical order.
        random: 1100 / 100 / 423 of all 1623 characters shuffled by the seed, as MAML and Reptile do.

    Args:
        seed: shuffles ``random``; nothing else depends on it.
        root: folder with the archives, as zip or unpacked; else ``$METARUN_DATA``, else the user's cache; each also in ``omniglot/``.
        split: see above.
        size: height and width in pixels, 8..256.
        rotate_train, rotate_val, rotate_test: three rotated copies of every class as new classes.
        within_alphabet: all classes of a test episode are of one alphabet (turned by one angle), as in Lake's challenge.
        download: fetch absent archives from the official repository into the user's cache.

    Raises:
        UserError: no such root, an archive absent and not to be had, or damaged.
    """

    def __init__(
        self,
        seed: int,
        *,
        root: str | None,
        split: SplitName,
        size: Size,
        rotate_train: bool,
        rotate_val: bool,
        rotate_test: bool,
        download: bool,
        within_alphabet: bool = False,
    ) -> None:
        if split not in FILES:
            raise UserError(f"data.split={split} is not one of {', '.join(get_args(SplitName))}{nearest(split, FILES)}")
        paths = {name: obtain(_source(name), root, "omniglot", download) for name in FILES[split]}
        if split in ("minimal1", "minimal2"):
            other = SMALL2 if split == "minimal1" else SMALL1
            found = locate(_source(other), root, "omniglot")
            paths |= {other: found} if found else {}
        drawings = {name: _characters(name, path, size) for name, path in paths.items()}
        chosen = _choose(split, {name: list(characters) for name, characters in drawings.items()}, seed)
        for part, names in chosen.items():
            if len(names) != SIZES[split][part]:
                files = " and ".join(str(path) for path in paths.values())
                raise UserError(
                    f"data.split={split} has {len(names)} instead of {SIZES[split][part]} {part} characters: "
                    f"{files} hold other alphabets than Omniglot's; put the official files there"
                )
        pool = {character: images for name in reversed(drawings) for character, images in drawings[name].items()}  # the first archive wins
        rotate = {"train": rotate_train, "val": rotate_val, "test": rotate_test}
        splits = {part: _assemble(names, pool, rotate[part]) for part, names in chosen.items()}
        if within_alphabet and "test" in splits:
            splits["test"] = splits["test"]._replace(groups=_alphabets(splits["test"].names))
        super().__init__(splits)

    @classmethod
    def reader(cls, **values: Any) -> Reader:
        """Drawings, ink = 1 on paper = 0 whichever of the two is the lighter: see ``handwriting``."""
        size = values["size"]
        return Reader((1, size, size), lambda path: handwriting(path, size))


def drawing(png: bytes, size: int) -> np.ndarray:
    """One image file as [size, size] uint8 with ink = 255, paper = 0: inverted, then resized with Lanczos.

    Raises:
        UnreadableError: see ``upright``.
    """
    with upright(png, size) as image:
        return np.asarray(ImageOps.invert(image.convert("L")).resize((size, size), Image.Resampling.LANCZOS))


def _source(name: str) -> Archive:
    return Archive(f"{name}.zip", f"{URL}{name}.zip", HASH[name])


def _characters(name: str, path: Path, size: int) -> dict[str, np.ndarray]:
    """The characters of one archive in alphabetical order: ``Latin/character01`` to its drawings [20, size, size] uint8."""
    member = re.compile(rf"(?:{name}/)?([^/]+/character\d+)/[^/.][^/]*\.png")

    def decode() -> tuple[np.ndarray, Any]:
        images, counts = [], Counter[str]()
        for file, png in read(path, member):
            try:
                images.append(drawing(png, size))
            except UnreadableError as error:
                raise damaged(path, f"{file}: {error}") from None
            counts[member.fullmatch(file)[1]] += 1  # type: ignore[index]  # read() gives only what matches
        if len(counts) != CHARACTERS[name]:
            raise damaged(path, f"{len(counts)} characters instead of {CHARACTERS[name]}")
        for character, count in counts.items():
            if count != DRAWERS:
                raise damaged(path, f"{character} has {count} images instead of {DRAWERS}")
        return np.stack(images), list(counts)

    key = {"name": f"omniglot-{name}", "version": 1, "size": size, "drawers": DRAWERS, "source": fingerprint(path)}
    images, names = cached_images(key, decode)
    return dict(zip(names, images.reshape(len(names), DRAWERS, size, size), strict=True))


def _alphabet(character: str) -> str:
    return character.split("/")[0]


def _alphabets(names: list[str]) -> np.ndarray:
    """A number for every class [classes], the same for the characters of one alphabet turned by one angle."""
    return np.unique([f"{_alphabet(name)} {name.partition('/rot')[2]}" for name in names], return_inverse=True)[1]


def _of(characters: list[str], *alphabets: str) -> list[str]:
    return [character for character in characters if _alphabet(character) in alphabets]


def _without(characters: list[str], others: list[str]) -> list[str]:
    left_out = set(others)
    return [character for character in characters if character not in left_out]


def _choose(split: SplitName, sets: dict[str, list[str]], seed: int) -> dict[str, list[str]]:
    """The characters of train, val and (where there is one) test, out of those of the archives; all in alphabetical order."""
    everything = sorted({character for characters in sets.values() for character in characters})
    if split == "small":
        val, test = _of(everything, "Early_Aramaic"), _of(everything, "Latin", "Tagalog")
        return {"train": _without(everything, val + test), "val": val, "test": test}
    if split in ("minimal1", "minimal2"):
        own = sets[SMALL1 if split == "minimal1" else SMALL2]
        alphabets = sorted({_alphabet(character) for character in own})
        val = [character for alphabet in alphabets for character in _of(own, alphabet)[4::5]]
        parts = {"train": _without(own, val), "val": val}
        return parts | ({"test": [c for c in everything if _alphabet(c) not in alphabets]} if len(sets) == 2 else {})
    background, evaluation = sets[BACKGROUND], sets[EVALUATION]
    if split == "vinyals":
        val = _of(background, "Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
        return {"train": sorted(_without(background, val) + evaluation[:236]), "val": val, "test": evaluation[236:]}
    if split == "lake":
        val = _of(background, *sorted({_alphabet(character) for character in background})[-5:])
        return {"train": _without(background, val), "val": val, "test": evaluation}
    order = np.argsort(draws(episode_keys(seed, "omniglot", [0]), CLASSES, (len(everything),))[0])
    shuffled = [everything[i] for i in order]
    return {"train": sorted(shuffled[:1100]), "val": sorted(shuffled[1100:1200]), "test": sorted(shuffled[1200:])}


def _assemble(names: list[str], pool: dict[str, np.ndarray], rotate: bool) -> Split:
    """The split of these characters, with their rotated copies as further classes."""
    upright = np.stack([pool[name] for name in names])  # [characters, 20, size, size]
    turns = range(4) if rotate else range(1)
    images = np.concatenate([np.rot90(upright, turn, axes=(-2, -1)) for turn in turns])
    labels = [f"{name}/rot{90 * turn:03d}" if turn else name for turn in turns for name in names]
    flat = np.ascontiguousarray(images.reshape(-1, 1, *images.shape[-2:]))
    start = np.arange(len(labels), dtype=np.int64) * DRAWERS
    return Split(torch.from_numpy(flat), start, np.full_like(start, DRAWERS), labels)
