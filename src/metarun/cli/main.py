"""The command line: which command is asked for, and errors for people, one line that says what is wrong and how to mend it.
Exit status: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import traceback
from contextlib import ExitStack, suppress
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

from metarun.cli.commands import COMMANDS, module_of, unknown
from metarun.cli.parser import Parser, common
from metarun.errors import UserError
from metarun.extensions.sources import given
from metarun.runtime import signals, torchrun
from metarun.storage.foreign import printable


def main(words: list[str]) -> int:
    """Run the command line ``words`` (without the program's name); returns the exit status."""
    if torchrun.follows():
        return _follow(words)
    with ExitStack() as within:  # the user's folders count while an error is explained, too
        return _lead(words, within)


def _lead(words: list[str], within: ExitStack) -> int:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing, and errors are explained here
    before = signals.install(_stop)
    try:
        failed = _run(words, within)
        sys.stdout.flush()
        torchrun.dismiss()
        return 1 if failed else 0
    except KeyboardInterrupt as stop:
        return _complain(str(stop) or "interrupted", 130)
    except BrokenPipeError:  # who reads our output, for example `head`, has seen enough: no word, and nothing left to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        from metarun.config import compose

        return _complain(*compose.line_and_status(error, words))
    finally:
        signals.restore(before)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Any signal, while no training is there to save a checkpoint, is like Ctrl-C."""
    raise KeyboardInterrupt


def _complain(line: str, status: int) -> int:
    if os.environ.get("METARUN_DEBUG") == "1":
        traceback.print_exc()
    line = re.sub(r"\S{1000,}", lambda word: f"{word[0][:40]}…{word[0][-10:]}", printable(line))  # 5000 digits help nobody
    print(f"metarun: {line}", file=sys.stderr)
    return status


def _follow(words: list[str]) -> int:
    """On the other ranks of torchrun: what rank 0 calls for, under the same folders; what is wrong with the words, rank 0 says."""
    with ExitStack() as within:
        with suppress(UserError):
            options = common(words)
            within.enter_context(given(options.folders, options.config_dir))
        return torchrun.follow()


def _run(words: list[str], within: ExitStack) -> bool:
    """Do what the words ask for; returns whether runs of a sweep failed, which has been told already."""
    anywhere = common(words)
    within.enter_context(given(anywhere.folders, anywhere.config_dir))
    words = anywhere.words
    command = words[0] if words and words[0] in COMMANDS else ""
    if anywhere.version:
        from metarun.runtime.version import __version__

        print(f"metarun {__version__}")
        return False
    if anywhere.help and not command:
        from metarun.config import options as catalogue

        print(catalogue.help_page(), end="")
        return False
    module = import_module(module_of(command))
    parser: Parser = module.parser()
    if anywhere.help:
        parser.print_help()
        return False
    options = parser.read(words[1:] if command else words)
    if not command:
        for word in options.words:
            if "=" not in word and not word.startswith("~"):
                raise unknown(word, word == words[0])
    result: dict[str, Any] | None = module.run(options)
    if anywhere.json and result is not None:
        print(json.dumps(result))
    return bool(result and result.get("failed"))
