"""How many tasks fit at a time: arithmetic on shapes alone, so that the same run is cut in the same way every time."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarun.runtime.private import tree_leaves

CPU_BYTES = 512 * 2**20  # of activations that a core works on at a time
KEPT_STEPS = 10  # of a loop, more or less: longer ones are kept in part (``runtime.steps``)
CORES = 2  # chunks come in multiples of it on a CPU, so that cores end together


def size(tree: Any) -> int:
    """Bytes of the tensors in nested values."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def resident_peak() -> float:
    """The most main memory that this process has had, in MB.

    Linux tells it of the program alone; ``ru_maxrss`` begins with that of the process that started it, however large that was.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@torch.no_grad()
def activations(net: nn.Module, x: Tensor) -> int:
    """Bytes of the outputs of all modules of the net, for one of the examples x [n, *input_shape]."""
    sizes: list[int] = []
    leaves = [module for module in net.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(lambda _m, _i, out: sizes.append(size(out))) for module in leaves]
    net(x)
    for hook in hooks:
        hook.remove()
    return max(1, sum(sizes) // len(x))


def kept_steps(steps: int, device: torch.device, *, states_alone: bool) -> int:
    """Of how many inner steps the activations are in memory at a time, before and on the way back."""
    if states_alone:
        return min(steps, 1)
    return steps if device.type == "cuda" else min(steps, KEPT_STEPS)  # a GPU's graph keeps them all


def chunk_size(tasks: int, task_bytes: int, device: torch.device) -> int:
    """Tasks per chunk, 1 or more.

    Args:
        tasks: how many there are.
        task_bytes: of the activations of one.
        device: a CPU's core has ``CPU_BYTES`` at a time; on a GPU it is a sixteenth of its memory, as first and second derivatives need
            several times the activations.
    """
    least, budget = CORES, CPU_BYTES
    if device.type == "cuda":
        least, budget = 1, torch.cuda.get_device_properties(device).total_memory // 16
    chunks = max(least, -(-tasks * task_bytes // budget))
    chunks += -chunks % least
    return -(-tasks // chunks)
