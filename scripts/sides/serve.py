"""One side of a benchmark: a process that gets a piece of work, and then does rounds of it when it is asked to, over a pipe.
bench.py speaks with it in lines of JSON; this file is imported in every side's own environment and knows torch alone."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.runtime.memory import resident_peak

Step = Callable[[], Any]
Outcome = dict[str, Tensor]  # "loss", and the meta-gradient of every weight by metarun's name; or what else both sides must agree on


class Side(NamedTuple):
    """A piece of work, ready to be done."""

    step: Step  # the work, once: what is timed
    outcome: Callable[[], Outcome]  # what comes out of it, for comparison


def serve(prepare: Callable[[dict[str, Any], dict[str, Any]], Side]) -> None:
    """Answer requests until stdin ends. ``prepare(work, data)`` gets the work's description and its weights and episodes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    side: Any = None
    device = "cpu"
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            work = request["work"]
            device, side = work["device"], None
            if device == "cuda":  # the piece of work before this one is not this one's memory
                gc.collect()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            torch.set_num_threads(work["threads"])
            torch.set_default_dtype(torch.float64 if work["exact"] else torch.float32)
            data = torch.load(request["file"], map_location=device, weights_only=True)
            side = prepare(work, data)
            answer: dict[str, Any] = {}
        elif request["do"] == "outcome":
            torch.save({name: value.detach().cpu() for name, value in side.outcome().items()}, request["file"])
            answer = {}
        elif request["do"] == "flops":
            answer = {"flops": flops(side.step)}
        else:
            before = peak_mb(device)
            seconds = timed(side.step, request["seconds"], request.get("least", 1), device)
            answer = {"seconds": seconds, "before_mb": before, "peak_mb": peak_mb(device)}
        print(json.dumps(answer), file=answers, flush=True)


def timed(step: Step, seconds: float, least: int, device: str) -> list[float]:
    """Seconds of every repetition of a round that lasts about ``seconds`` and has ``least`` of them."""
    times: list[float] = []
    while sum(times) < seconds or len(times) < least:
        wait(device)
        begun = time.perf_counter()
        step()
        wait(device)
        times.append(time.perf_counter() - begun)
    return times


def wait(device: str) -> None:
    """Until the GPU has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_mb(device: str) -> float:
    """The most memory that this process has had: of the GPU's, tensors since the last ``prepare``; or resident in main memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident_peak()


def flops(step: Step) -> int:
    """Floating-point operations of convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()
