"""Time of a burst of calls: by the wall clock on a CPU, by the device's own events on a GPU; and CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


def seconds(device: str, call: Call, count: int) -> float:
    """Of one call, the mean of so many. On a GPU calls overlap with the work of those before, as they do in use."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / count


class NotCaptured(RuntimeError):
    """A call does what a CUDA graph can't hold: it waits for the GPU, as a rule."""


def graphed(call: Call) -> Call:
    """The call as a CUDA graph to be replayed: the same kernels, launched by the device itself.

    Raises:
        NotCaptured: the call can't be recorded.
    """
    before, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    aside.wait_stream(before)
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    before.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = call()
    except RuntimeError as error:
        torch.cuda.set_stream(before)  # which a capture that fails does not return to
        raise NotCaptured(f"can't be captured in a CUDA graph: {str(error).splitlines()[0]}") from error

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def in_turn(calls: list[Call], start: int) -> Call:
    """One call after another, from the one with that number on."""
    at = start

    def call() -> object:
        nonlocal at
        at += 1
        return calls[(at - 1) % len(calls)]()

    return call
