"""How it is measured: contenders take turns in one process, on inputs that change from call to call.

Before anything is timed, every contender's outputs on the timed inputs are held against the same computation in
float64. One round gives every contender, in a changing order, a burst of calls; its time is the burst's mean, and
what is reported are the quantiles over the rounds. Inputs rotate, so that none is in the caches when it is used.
"""

from __future__ import annotations

import ctypes
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from . import contenders
from .cases import Case, Inputs, make

Direction = Literal["forward", "forward + backward"]
BUDGET = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float64: 1e-12}
BURST = 0.03  # seconds


@dataclass(frozen=True)
class Timing:
    """Seconds a call; memory: bytes at the peak of one call beyond what was there before, where it can be told."""

    contender: str
    p20: float
    p50: float
    p80: float
    rounds: int
    memory: int | None


class Wrong(RuntimeError):
    """A contender's output is not what it should be: nothing of it may be timed."""


def compare(
    case: Case,
    direction: Direction,
    *,
    rounds: int = 15,
    sets: int = 3,
    only: tuple[str, ...] | None = None,
    backend: str | None = None,
    step: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time the contenders of a case.

    Args:
        rounds: at how many turns each contender is measured. sets: how many inputs rotate.
        only: contenders by name; None: all of them. backend: coalign's.
        step: called after every round, for a progress bar.

    Raises:
        Wrong: a contender's result is off by more than its dtype's budget.
    """
    settle_allocator()
    inputs = [make(case, seed) for seed in range(sets)]
    found = contenders.contenders(case, inputs[0], backend)
    calls = {
        name: calls_of(align, name, inputs, direction) for name, align in found.items() if only is None or name in only
    }
    for name in calls:
        check(case, name, found[name], inputs[0])
        for call in calls[name]:
            call()
    bursts = {name: _burst(of) for name, of in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    for at in range(rounds):
        for name in order.sample(sorted(calls), len(calls)):
            count, of = bursts[name], calls[name]
            start = time.perf_counter()
            for k in range(count):
                of[(at + k) % sets]()
            seconds[name].append((time.perf_counter() - start) / count)
        step()
    return [
        Timing(name, *(_quantile(times, q) for q in (0.2, 0.5, 0.8)), rounds, peak_memory(calls[name][0]))
        for name, times in seconds.items()
    ]


def check(case: Case, name: str, align: contenders.Align, inputs: Inputs) -> None:
    """Hold a contender's outputs against eager PyTorch in float64, tokens only."""
    if not inputs.padded:
        return
    exact = contenders.eager(*(t.double() for t in inputs.padded), *(inputs.masks or (None, None)))
    for output, found, truth, at in zip(("beta", "alpha"), align(*_operands(name, inputs)), exact, (0, 1), strict=True):
        if inputs.masks is not None:
            truth = truth[inputs.masks[at]]
            found = found if found.ndim == 2 else found[inputs.masks[at]]
        error = float((found.double() - truth).norm() / truth.norm())
        if not error <= BUDGET[case.dtype]:
            raise Wrong(f"{case.name}: {name}'s {output} is off by {error:.1e}, more than {BUDGET[case.dtype]:.0e}")


def settle_allocator() -> None:
    """Let glibc keep freed memory: until it has seen a large block freed, it gives every large tensor back to the
    system, and each call pays for fresh pages. Which contender that hits would depend on their order."""
    block = torch.empty(31 << 20, dtype=torch.uint8)
    del block


def peak_memory(call: Callable[[], object]) -> int | None:
    """Bytes by which one call raises the process' resident memory at most; None where Linux does not tell."""
    status = Path("/proc/self/status")
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _kilobytes(status, "VmRSS")
        call()
        return max(0, _kilobytes(status, "VmHWM") - before) * 1024
    except (OSError, AttributeError):
        return None


def _kilobytes(status: Path, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text())
    if found is None:
        raise OSError(f"{status} has no {name}")
    return int(found[1])


def _operands(name: str, inputs: Inputs) -> list[Tensor]:
    return inputs.tokens if name == "coalign" else inputs.padded


def calls_of(
    align: contenders.Align, name: str, inputs: list[Inputs], direction: Direction
) -> list[Callable[[], object]]:
    """The contender, ready to be called on each set of inputs."""
    if direction == "forward":
        return [_forward(align, _operands(name, i)) for i in inputs]
    return [_forward_backward(align, _operands(name, i)) for i in inputs]


def _forward(align: contenders.Align, operands: list[Tensor]) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return align(*operands)

    return call


def _forward_backward(align: contenders.Align, operands: list[Tensor]) -> Callable[[], object]:
    leaves = [t.detach().requires_grad_() for t in operands]
    arriving = [torch.randn_like(t) for t in align(*operands)]
    return lambda: torch.autograd.grad(list(align(*leaves)), leaves, arriving)


def _burst(calls: list[Callable[[], object]]) -> int:
    """How many calls make a burst that a clock can measure."""
    start = time.perf_counter()
    for call in calls:
        call()
    return max(1, min(1000, round(BURST * len(calls) / (time.perf_counter() - start))))


def _quantile(values: list[float], q: float) -> float:
    """By linear interpolation between the values next to it."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))


def directions() -> Iterator[Direction]:
    yield "forward"
    yield "forward + backward"
