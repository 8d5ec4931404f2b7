"""What the page holds: one session per window, with its pictures and the learner that has adapted to them, all of it bounded."""

from __future__ import annotations

import base64
import io
import secrets
import threading
from collections.abc import Sequence

import numpy as np
from PIL import Image

from metarun.errors import UserError
from metarun.predict.page.learner import Ask

SESSIONS = 4  # windows; the one that was used longest ago makes room for a fifth
PICTURES = 300  # in a session
BYTES = 20_000_000  # of one picture's file; its pixels are bounded where it is read (data/picture.py)
CLASSES = 50
VIEW = 112  # pixels: the longer side of what the page shows of a picture as the net sees it


class GoneError(UserError):
    """What was asked for is not there any more."""


class Session:
    """The pictures of one window by their names, [channels, height, width] uint8, and whoever has adapted to them."""

    def __init__(self) -> None:
        self.pictures: dict[str, np.ndarray] = {}
        self.ask: Ask | None = None
        self._lock = threading.Lock()

    def room(self) -> None:
        """Nothing, if there is room for a picture.

        Raises:
            UserError: there is none.
        """
        if len(self.pictures) >= PICTURES:
            raise UserError(f"the page holds {PICTURES} pictures at most: remove some, or use metarun predict for whole folders")

    def add(self, picture: np.ndarray) -> str:
        """Keep a picture; returns its name. Raises as ``room``."""
        with self._lock:
            self.room()
            name = secrets.token_urlsafe(8)
            self.pictures[name] = picture
        return name

    def remove(self, name: str) -> None:
        """Forget a picture, if it is there."""
        self.pictures.pop(name, None)

    def get(self, names: Sequence[str]) -> list[np.ndarray]:
        """The pictures of these names.

        Raises:
            GoneError: one is not there.
        """
        try:
            return [self.pictures[name] for name in names]
        except KeyError:
            raise GoneError("a picture is not there any more: remove it and add it again") from None


class Sessions:
    """The newest ``SESSIONS`` sessions."""

    def __init__(self) -> None:
        self._all: dict[str, Session] = {}
        self._lock = threading.Lock()

    def begin(self) -> str:
        """A new session; returns its name, which nobody can guess."""
        with self._lock:
            while len(self._all) >= SESSIONS:
                del self._all[next(iter(self._all))]
            name = secrets.token_urlsafe(16)
            self._all[name] = Session()
        return name

    def get(self, name: str) -> Session:
        """The session of this name, which is now the one used last.

        Raises:
            GoneError: it is not there.
        """
        with self._lock:
            if name not in self._all:
                raise GoneError("this window has been left for others: reload the page and begin anew")
            self._all[name] = session = self._all.pop(name)
        return session


def view(picture: np.ndarray) -> str:
    """A picture [channels, height, width] uint8 as the ``data:`` URI of a small PNG."""
    pixels = picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((VIEW, VIEW), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
