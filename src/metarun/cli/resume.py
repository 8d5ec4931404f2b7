"""``metarun resume RUN|SWEEP``: go on with an interrupted run or sweep; it ends with the numbers that it would have had uninterrupted."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from metarun.cli.parser import Parser, run_folder

WORDS = "run"  # completion offers no keys: a run goes on with its own configuration, but for a few


def parser() -> Parser:
    """Its options."""
    return Parser(
        "resume",
        "RUN|SWEEP [trainer.iterations=N]",
        "Go on with an interrupted run, from its last checkpoint, or with what is missing of a sweep.\n"
        "trainer.iterations, trainer.max_minutes and trainer.patience take a finished run further; a sweep takes hydra.launcher.… anew.\n"
        "logger=… names where its numbers go beside its folder: what its configuration would send is left out otherwise.",
    )


def run(options: Namespace) -> dict[str, Any]:
    """Go on; prints and returns what the run or the sweep would have."""
    folder = Path(run_folder(options.words, "resume"))
    words = options.words[1:]
    if (folder / "sweep.json").is_file():
        from metarun.sweeps.launch import resume_folder

        return resume_folder(folder, words)
    from metarun.cli import summary_table
    from metarun.session import runs

    summary = runs.resume(folder, words)
    summary_table.show(summary, folder)
    return summary
