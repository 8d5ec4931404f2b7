"""Libraries that are not ours, where they are installed."""

from __future__ import annotations

from types import ModuleType

import pytest

from metarun.errors import MissingLibrary
from metarun.runtime.learn2learn import library


@pytest.fixture(scope="module")
def learn2learn() -> ModuleType:
    try:
        return library()
    except MissingLibrary as missing:
        pytest.skip(str(missing))
