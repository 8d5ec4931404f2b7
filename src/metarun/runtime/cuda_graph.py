"""A recording for a GPU: a CUDA graph, which the driver launches as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metarun.runtime.private import copy_each, tree_flatten, tree_map, tree_unflatten
from metarun.runtime.settings import masked
from metarun.runtime.tracer import Guard, tensors, without_hidden_inputs


class Graph:
    """``function(module, item)`` as a CUDA graph, with memory of its own for the item and the result; weights are read where they lie.

    Args:
        item: nested tensors and numbers.
        pool: the memory pool that all graphs share.

    Raises:
        CannotRepeat: the function does not do the same every time.
    """

    def __init__(self, function: Callable[[Any, Any], Any], module: nn.Module, item: Any, pool: Any) -> None:
        own = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, item)
        self.places = tensors(own)
        own, numbers = masked(own)
        aside = torch.cuda.Stream()  # on which libraries set themselves up: a capture does not survive that
        aside.wait_stream(torch.cuda.current_stream())
        # A capture that fails leaves torch's allocator in disorder, so what cannot be repeated has to be known before it begins.
        with torch.cuda.stream(aside), without_hidden_inputs(), Guard(numbers):
            function(module, own)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.leaves, self.form = tree_flatten(tree_map(dense, function(module, own)))
            # One tensor for each dtype, so that one operation copies it out.
            parts: dict[torch.dtype, list[Tensor]] = {}
            for leaf in self.leaves:
                if isinstance(leaf, Tensor):
                    parts.setdefault(leaf.dtype, []).append(leaf.as_strided((leaf.numel(),), (1,)))
            self.flat = {dtype: torch.cat(rows) for dtype, rows in parts.items()}

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        copy_each(self.places, list(inputs[: len(self.places)]))
        self.graph.replay()
        flat, begun = {dtype: row.clone() for dtype, row in self.flat.items()}, dict.fromkeys(self.flat, 0)
        made = list(self.leaves)
        for i, leaf in enumerate(self.leaves):
            if isinstance(leaf, Tensor):
                made[i] = flat[leaf.dtype].as_strided(leaf.shape, leaf.stride(), begun[leaf.dtype])
                begun[leaf.dtype] += leaf.numel()
        return tree_unflatten(made, self.form)


def dense(leaf: Any) -> Any:
    """A tensor without gaps in memory; what is no tensor as it is."""
    if not isinstance(leaf, Tensor) or leaf.is_contiguous() or (leaf.dim() == 4 and leaf.is_contiguous(memory_format=torch.channels_last)):
        return leaf
    return leaf.contiguous()
