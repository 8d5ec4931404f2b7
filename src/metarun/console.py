"""The one console of the process, so that log lines and the live progress bar do not garble each other."""

from rich.console import Console

console = Console(stderr=True, highlight=False)
"""For progress and log lines; stdout is kept for results."""
