"""Keeps freed memory in the process: tensors of a few megabytes come and go in every step, and page faults cost more than arithmetic.
Measured by scripts/bench_allocator.py."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # <malloc.h>


def keep_freed_memory() -> bool:
    """Tell glibc to serve tensors of every size from one heap for all threads, and not to give the heap back.

    Returns whether it took effect; other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {M_MMAP_MAX: 0, M_ARENA_MAX: 1, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 * 2**20}
    return all([bool(mallopt(*setting)) for setting in settings.items()])
