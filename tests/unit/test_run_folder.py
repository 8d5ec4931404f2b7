"""Who may work in a folder."""

from __future__ import annotations

import pytest

from metarun.errors import UserError
from metarun.storage.run_folder import held


def test_a_folder_is_held_by_one_and_free_afterwards(tmp_path):
    with held(tmp_path), pytest.raises(UserError, match="another process is at work in"), held(tmp_path):
        pass
    with held(tmp_path):
        pass
    assert not any(tmp_path.iterdir())


def test_who_waits_is_asked_first(tmp_path):
    class AskedError(Exception):
        pass

    def wait() -> None:
        raise AskedError

    with held(tmp_path, wait):
        with pytest.raises(AskedError), held(tmp_path, wait):
            pass
        with pytest.raises(UserError), held(tmp_path):
            pass
