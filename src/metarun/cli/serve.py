"""``metarun serve RUN``: the options of the page, which ``predict.page`` serves."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from metarun.cli.parser import Parser, counted, run_folder
from metarun.errors import UserError

WORDS = "run"
HOST, PORT = "127.0.0.1", 8420


def parser() -> Parser:
    """Its options."""
    parser = Parser(
        "serve",
        "RUN [--port N]",
        "Serve a page on which classes are shown by pictures, dropped in or drawn, and a trained run adapts to them and answers.\n"
        "It needs no network, and is for this machine alone unless --host says otherwise.",
    )
    parser.option("--port", metavar="N", default=str(PORT), help=f"port to listen on (default: {PORT}); 0: any that is free")
    parser.option("--host", metavar="ADDRESS", default=HOST, help=f"address to listen on (default: {HOST}, this machine alone)")
    parser.option("--checkpoint", choices=("best", "last"), default="best", help="best on development tasks (default), or last")
    parser.flag("--open", help="open the page in the browser")
    return parser


def run(options: Namespace) -> dict[str, Any]:
    """Serve until Ctrl-C; returns what was served."""
    folder = run_folder(options.words, "serve")
    if rest := options.words[1:]:
        raise UserError(f"serve takes no '{rest[0]}' (`metarun serve --help` says what it takes)")
    port = counted(options.port)
    if port is None or port > 65535:
        raise UserError(f"--port {options.port} is not possible: it is a number, 0 to 65535")
    from metarun.predict.page.learner import TrainedRun
    from metarun.predict.page.server import serve

    learner = TrainedRun(folder, options.checkpoint)
    return {"run": folder, "learner": learner.about, "page": serve(learner, options.host, port, options.open)}
