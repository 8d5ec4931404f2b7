"""Who does what under torchrun: rank 0 runs the command line, the others wait in silence until it calls them to share a function.
So one process composes, names the folder, writes and speaks, and all work on the very same values."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from metarun.errors import RunError, UserError
from metarun.runtime import signals
from metarun.runtime.environment import several

T = TypeVar("T")


def follows() -> bool:
    """Meet the other ranks, if there are any; returns whether this process is one of those that follow rank 0."""
    if not several():
        return False
    from metarun.runtime.distributed import World

    # While one waits for the others, Python does not run, so a handler written in it would let torchrun wait for half a minute.
    handlers = signals.install(signal.SIG_DFL)
    world = World.join()
    world.any(False)  # gloo connects at the first message
    signals.restore(handlers)
    return world.rank > 0


def call(function: Callable[..., T], *arguments: Any) -> T:
    """On rank 0: ``function(*arguments)`` on all ranks at once; returns rank 0's result. ``function`` is a module's own."""
    if several():
        from metarun.runtime.distributed import World

        World.join().broadcast((function, arguments))
    return function(*arguments)


def dismiss() -> None:
    """On rank 0, when all is done: the other ranks may end. After a failure they end by themselves, or torchrun ends them."""
    if several():
        from metarun.runtime.distributed import World

        World.join().broadcast(None)
        World.join().any(False)  # they have heard it


def leave(status: int) -> None:
    """End this process, if it is one of several, with ``status``: the process group first, then nothing more.

    What C++ does at an orderly exit, taking down threads that still run, has been seen to abort a rank that had finished.
    """
    if not several():
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def follow() -> int:
    """On the other ranks: do what rank 0 calls for until it says that all is done; returns the exit status.

    What rank 0 says itself (wrong input, an interruption, a rank that is gone) is not said again.
    """
    from metarun.runtime.distributed import World

    logging.disable()
    world = World.join()
    try:
        while called := world.broadcast(None):
            function, arguments = called
            function(*arguments)
        world.any(False)
        return 0
    except KeyboardInterrupt:
        return 130
    except (UserError, RunError):
        return 1
    except Exception as error:
        print(f"metarun: rank {world.rank} failed: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
