"""``metarun resume RUN|SWEEP``: go on with an interrupted run or sweep; it ends with the numbers that it would have had uninterrupted."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from metarun.cli.parser import Parser, run_folder
from metarun.errors import UserError

WORDS = "run"


def parser() -> Parser:
    """Its options."""
    return Parser("resume", "RUN|SWEEP", "Go on with an interrupted run, from its last checkpoint, or with what is missing of a sweep.")


def run(options: Namespace) -> dict[str, Any]:
    """Go on; prints and returns what the run or the sweep would have."""
    folder = Path(run_folder(options.words, "resume"))
    if rest := options.words[1:]:
        raise UserError(f"resume takes no '{rest[0]}': a run goes on with its own configuration; start a new run to change it")
    if (folder / "sweep.json").is_file():
        from metarun.sweeps.launch import resume_folder

        return resume_folder(folder)
    from metarun.cli import train
    from metarun.run import read_config

    values = read_config(folder)
    if (folder / "summary.json").is_file():
        raise UserError(f"{folder} is finished, there is nothing to go on with; test it again with: metarun eval {folder}")
    return train.in_folder(values, folder, resume=True)
