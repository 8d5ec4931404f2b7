"""What the processes of a run know of each other before torch is imported."""

from __future__ import annotations

import os


def several() -> bool:
    """Whether torchrun, or another launcher that sets its variables, started more than this process; imports no torch."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
