"""learn2learn, the reference library, where it is installed: its import has habits of its own."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from functools import cache
from typing import Any

from metarun.errors import MissingLibrary, install
from metarun.runtime import torchvision


@cache
def library() -> Any:
    """learn2learn, imported at the first call.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # gym, which it imports, announces its successor
            warnings.simplefilter("ignore")
            torchvision.prepare()
            return importlib.import_module("learn2learn")
    except ImportError as error:
        raise MissingLibrary(
            f"this needs learn2learn 0.2.0, which cannot be imported ({error}); on Python 3.10, {install('learn2learn')}, on "
            "later ones `make peers` there builds it and .peers/learn2learn/bin/python -m metarun runs with it"
        ) from None
