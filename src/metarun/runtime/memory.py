"""How many tasks fit at a time: arithmetic on shapes alone, so that the same run is cut in the same way every time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metarun.runtime.private import tree_leaves

CPU_BYTES = 512 * 2**20  # of activations that a core works on at a time
STATE_BYTES = 128 * 2**20  # of the states of all inner steps that a core keeps for the way back
CORES = 2  # chunks come in multiples of it on a CPU, so that cores end together


def size(tree: Any, *, differentiated: bool = False) -> int:
    """Bytes of the tensors in nested values; ``differentiated``: of those alone that require a gradient."""
    leaves = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and (leaf.requires_grad or not differentiated))
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)


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


def chunk_size(tasks: int, task_bytes: int, state_bytes: int, device: torch.device) -> int:
    """Tasks per chunk, 1 or more.

    Args:
        tasks: how many there are.
        task_bytes: of the activations of one.
        state_bytes: of the states of one that the way back through its inner steps keeps; they have a budget of their own, so that
            memory hardly grows with steps. 0: no such limit.
        device: a CPU's core has ``CPU_BYTES`` at a time; on a GPU it is a sixteenth of its memory, as first and second derivatives need
            several times the activations.
    """
    least, budget = CORES, CPU_BYTES
    if device.type == "cuda":
        least, budget = 1, torch.cuda.get_device_properties(device).total_memory // 16
    chunks = max(least, -(-tasks * task_bytes // budget), -(-tasks * state_bytes // STATE_BYTES))
    chunks += -chunks % least
    return -(-tasks // chunks)
