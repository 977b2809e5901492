"""csrc/cuda on the CPU: the library that g++ makes of it with simulator.h, and a backend that runs on it.

The backend is one for the operator, and for a frozen model too where `frozen` is put among its kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from coalign.kernels.native import build, cuda, cuda_frozen
from coalign.kernels.problem import Alignment, OperandGrads, Problem, Rule, Side
from torch import Tensor

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
ORDERS = ("forward", "reverse", "random", "run_ahead", "run_ahead_reverse")  # simulator.h's, in its order

name = "simulated"


class Device(NamedTuple):
    """The GPU to pretend to be. tensor_cores None: for 16-bit operands, as GPUs since compute capability 8.0."""

    tensor_cores: bool | None = None
    shared: int = 99 * 1024

    def machine(self, f: Tensor) -> cuda.Machine:
        tensor_cores = f.dtype != torch.float32 if self.tensor_cores is None else self.tensor_cores
        return cuda.Machine(tensor_cores, self.shared, stream=0)


_device = Device()


@cache
def library() -> ctypes.CDLL:
    """Build the simulated library, once, and load it: its operators are torch.ops.coalign_cuda's, for the CPU."""
    flags = ("-std=c++20", "-O2", "-fPIC", "-Wno-psabi", "-Wno-unknown-pragmas", build.TARGET, *build.own_flags())
    tools = build.Toolchain("simulated CUDA", build.compiler(), flags, machine="", headers=(CSRC,))
    sources = ("float32.cpp", "bfloat16.cpp", "float16.cpp", "frozen.cpp", "ops.cpp")
    path = build.build(sources, HERE, tools)
    torch.ops.load_library(str(path))
    loaded = ctypes.CDLL(str(path))
    loaded.coalign_simulate.argtypes = ctypes.c_int, ctypes.c_uint64
    return loaded


@contextlib.contextmanager
def order(which: str, seed: int = 0) -> Iterator[None]:
    """Run a block's threads in that order."""
    simulate = library().coalign_simulate
    simulate(ORDERS.index(which), seed)
    try:
        yield
    finally:
        simulate(0, 0)


@contextlib.contextmanager
def device(which: Device) -> Iterator[None]:
    """Pretend to be another GPU."""
    global _device
    before, _device = _device, which
    try:
        yield
    finally:
        _device = before


def unsupported(problem: Problem) -> list[str]:
    library()
    return cuda.beyond(problem)


def forward(a: Side, b: Side, bias: Tensor | None, rule: Rule) -> Alignment:
    return cuda.forward_on(_device.machine(a.f), a, b, bias, rule)


def backward(a: Side, *rest: Any) -> OperandGrads:
    return cuda.backward_on(_device.machine(a.f), a, *rest)


def _frozen_unsupported(table: Tensor, most: int) -> list[str]:
    library()
    return cuda_frozen.too_large(_device.machine(table), table, most)


def _frozen_sums(table: Tensor, *rest: Any) -> Tensor:
    library()
    return cuda_frozen.sums(table, *rest, machine=_device.machine(table))


frozen = SimpleNamespace(unsupported=_frozen_unsupported, sums=_frozen_sums)
