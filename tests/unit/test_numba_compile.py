"""Machine code that Numba keeps on disk is used again as long as both the loops and what they are compiled with are the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarun.kernels import numba_compile

LOOPS = """
from metarun.kernels.numba_compile import compiled

@compiled
def double(x):
    for i in range(len(x)):
        x[i] *= 2
"""


def hits(folder: Path) -> int:
    """Whether the loops' machine code came from the disk, in what is a new process to Numba."""
    if not (folder / "loops.py").exists():
        (folder / "loops.py").write_text(LOOPS)
    spec: Any = importlib.util.spec_from_file_location("loops", folder / "loops.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x = np.ones(3)
    module.double(x)
    assert (x == 2).all()
    return sum(module.double.stats.cache_hits.values())


def test_machine_code_is_kept_until_what_it_is_compiled_with_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [hits(tmp_path), hits(tmp_path)] == [0, 1]
    monkeypatch.setattr(numba_compile, "STAMP", b"a change of an intrinsic")
    assert [hits(tmp_path), hits(tmp_path)] == [0, 1]
