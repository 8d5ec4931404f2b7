"""Libraries that are not ours, where they are installed."""

from __future__ import annotations

from types import ModuleType

import pytest

from metarun.algos.gradient.maml_learn2learn import library
from metarun.errors import MissingLibrary


@pytest.fixture(scope="module")
def learn2learn() -> ModuleType:
    try:
        return library()
    except MissingLibrary as missing:
        pytest.skip(str(missing))
