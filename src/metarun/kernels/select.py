"""The one door to whatever is fast: which kernels there are for a device, under the setting ``engine.kernels``.
Numba and Triton are imported here, when they are first chosen; behind every ``None`` stands plain torch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Literal

import torch

from metarun.kernels.interface import Kernels

Choice = Literal["auto", "torch"]
_choice: ContextVar[Choice] = ContextVar("engine.kernels", default="auto")

LAYERS = {
    "loops": "norm, max-pooling and ReLU as one operation; im2col and col2im",
    "direct": "direct convolution, on a CPU",
    "trilinear": "convolutions whose derivatives of any order are convolutions",
    "folding": "a first layer and its norm as one linear map of patches",
}


def switched_off(names: str) -> frozenset[str]:
    """The layers in a list with commas, for measurements alone (scripts/bench_layers.py).

    Raises:
        ValueError: there is no such layer.
    """
    found = frozenset(filter(None, names.split(",")))
    if found - LAYERS.keys():
        raise ValueError(f"METARUN_WITHOUT={names}: the layers are {', '.join(LAYERS)}")
    return found


WITHOUT = switched_off(os.environ.get("METARUN_WITHOUT", ""))


@contextmanager
def using(choice: Choice) -> Iterator[None]:
    """Within, in this thread: ``auto``, or ``torch`` for plain operations of torch alone."""
    token = _choice.set(choice)
    try:
        yield
    finally:
        _choice.reset(token)


def has(layer: str) -> bool:
    """Whether a layer of ``LAYERS`` is wanted here: not under ``torch``, in an exported graph, or where ``METARUN_WITHOUT`` names it."""
    return _choice.get() == "auto" and layer not in WITHOUT and not torch.compiler.is_compiling()


def loops(device: torch.device) -> Kernels | None:
    """The compiled loops for a device, or None where there are none."""
    if not has("loops"):
        return None
    return _on_cpu() if device.type == "cpu" else _on_gpu(device) if device.type == "cuda" else None


def direct(device: torch.device) -> ModuleType | None:
    """``numba_conv``, whose ``covers`` says for which operands it is; None where it is for none."""
    if device.type != "cpu" or not has("direct"):
        return None
    from metarun.kernels import numba_conv

    return numba_conv


@cache
def _on_cpu() -> Kernels:
    from metarun.kernels.numba_compile import array
    from metarun.kernels.numba_im2col import im2col
    from metarun.kernels.numba_linear_pool_relu import covariance, linear_pool_relu
    from metarun.kernels.numba_norm_pool_relu import norm_pool_relu

    return Kernels(array, norm_pool_relu, linear_pool_relu, im2col, covariance)


@cache
def _on_gpu(device: torch.device) -> Kernels | None:
    """Triton's, where it is installed and finds all that it needs: a driver, a C compiler and a GPU that it knows."""
    try:
        from metarun.kernels import triton_launch

        with ThreadPoolExecutor(1) as aside:  # in a thread of its own no transform of torch.func is at work, whose tensors are no memory
            aside.submit(triton_launch.works, device).result()
    except ImportError:
        return None
    except Exception as error:  # of Triton, of what it calls, or of the driver
        warnings.warn(f"Triton does not work on {device}, where steps will be slower: {error}", stacklevel=2)
        return None
    return triton_launch.GPU
