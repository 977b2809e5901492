"""The floor of a case: what its operations and its bytes cost at the rates that this device was measured to have.

On a CPU a kernel may always widen half precision to float32, so operations in half precision are held against the
better of both rates: PyTorch's own bfloat16 product does 1 GFLOP/s where the processor has no instructions for it,
and no floor can be made of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from .cases import Case, lengths_of
from .clock import Call, seconds
from .targets import Direction

AFFORDABLE = 1.0  # seconds a large product, of which there are 16


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
    # LSEs and the outputs' gradients are read, the operands' gradients written
    backward = 2 * cells * (3 * case.h + 4 * case.d)
    return Work(operations + backward, (operands + outputs) + (operands + outputs + operands))


@cache
def ceilings(device: str, dtype: torch.dtype, threads: int, tf32: bool = False) -> Ceilings:
    """Measured once a process."""
    rate = _rate(device, dtype)
    if device == "cpu" and dtype in (torch.bfloat16, torch.float16):
        rate = max(rate, ceilings(device, torch.float32, threads).rate)
    return Ceilings(_bandwidth(device, threads), rate)


@cache
def _bandwidth(device: str, threads: int) -> float:
    size = 1 << 26 if device == "cpu" else 1 << 28
    source, sink = torch.ones(size, device=device), torch.empty(size, device=device)
    return 2 * source.nbytes / _least(device, lambda: sink.copy_(source), 2)


def _rate(device: str, dtype: torch.dtype) -> float:
    """Of the large product; of the small one where that foretells more than AFFORDABLE seconds for the large one."""
    rate = float("inf")
    for n in (512, 2048) if device == "cpu" else (8192,):
        if 2 * n**3 / rate > AFFORDABLE:
            break
        rate = 2 * n**3 / _product(device, dtype, n)
    return rate


def _product(device: str, dtype: torch.dtype, n: int) -> float:
    """Seconds that the product of two n x n matrices takes."""
    x, y = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return _least(device, lambda: x @ y, 1 if device == "cpu" else 10)


def _least(device: str, call: Call, count: int) -> float:
    call()
    return min(seconds(device, call, count) for _ in range(15))  # the least disturbed
