"""The floor of a case: what its operations and its bytes cost at the rates that this device was measured to have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from .cases import Case, lengths_of
from .clock import seconds
from .targets import Direction


@dataclass(frozen=True)
class Work:
    """Floating-point operations (a multiplication and an addition are two), and bytes that must be moved once."""

    operations: float
    bytes: float


@dataclass(frozen=True)
class Ceilings:
    """What the device was measured to do: bytes copied and operations of a large matrix product, a second."""

    bandwidth: float
    rate: float

    def floor(self, work: Work) -> float:
        """Seconds below which the work can't be done if nothing stays in a cache."""
        return max(work.bytes / self.bandwidth, work.operations / self.rate)


def work(case: Case, direction: Direction) -> Work:
    """Of tokens only: padding costs nothing here, and no matrix of scores is stored."""
    len_a, len_b = (t.double() for t in lengths_of(case))
    cells = float((len_a * len_b).sum())
    rows_a, rows_b = float(len_a.sum()), float(len_b.sum())
    width = case.dtype.itemsize
    operations = 2 * cells * (case.h + 2 * case.d)
    operands = (rows_a + rows_b) * (case.h + case.d) * width
    outputs = (rows_a + rows_b) * (case.d * width + 4)
    if direction == "forward":
        return Work(operations, operands + outputs)
    # and then: e again, four products for its gradient's way to f and x, two for the weights' gradients; operands,
    # outputs and their gradients are read, the operands' gradients written
    backward = 2 * cells * (3 * case.h + 4 * case.d)
    return Work(operations + backward, (operands + outputs) + (operands + 2 * outputs + operands))


@cache
def ceilings(device: str, dtype: torch.dtype, threads: int, tf32: bool = False) -> Ceilings:
    """Measured once a process."""
    size = 1 << 26 if device == "cpu" else 1 << 28
    source, sink = torch.ones(size, device=device), torch.empty(size, device=device)
    n = 2048 if device == "cpu" else 8192
    x, y = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

    def best(call, count: int) -> float:
        call()
        return min(seconds(device, call, count) for _ in range(5))

    copied = best(lambda: sink.copy_(source), 2)
    multiplied = best(lambda: x @ y, 1 if device == "cpu" else 10)
    return Ceilings(2 * source.nbytes / copied, 2 * n**3 / multiplied)
