"""csrc/cuda on the CPU: the library that g++ makes of it with simulator.h, and a backend that runs on it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from coalign.kernels.native import build, cuda
from coalign.kernels.problem import Alignment, Problem
from torch import Tensor

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
ORDERS = ("forward", "reverse", "random", "run_ahead", "run_ahead_reverse")  # simulator.h's, in its order

name = "simulated"
machine = cuda.Machine(tensor_cores=False, shared=99 * 1024, stream=0)


@cache
def library() -> ctypes.CDLL:
    """Build the simulated library, once, and load it: its operators are torch.ops.coalign_cuda's, for the CPU."""
    flags = ("-std=c++20", "-O2", "-fPIC", "-Wno-psabi", "-Wno-unknown-pragmas", build.TARGET)
    tools = build.Toolchain("simulated CUDA", build.compiler(), flags, machine="", headers=(CSRC,))
    path = build.build(("ops.cpp",), HERE, tools)
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


@contextlib.contextmanager
def order(which: str, seed: int = 0) -> Iterator[None]:
    """Run a block's threads in that order."""
    simulate = library().coalign_simulate
    simulate.argtypes = ctypes.c_int, ctypes.c_uint64
    simulate(ORDERS.index(which), seed)
    try:
        yield
    finally:
        simulate(0, 0)


@contextlib.contextmanager
def device(**changes: bool | int) -> Iterator[None]:
    """Pretend that the GPU is another: with tensor cores for float32 too, or with less shared memory."""
    global machine
    before, machine = machine, machine._replace(**changes)  # type: ignore[arg-type]
    try:
        yield
    finally:
        machine = before


def unsupported(problem: Problem) -> list[str]:
    library()
    return ["float64 is not for GPUs"] if problem.dtype == torch.float64 else []


def _machine_for(f: Tensor) -> cuda.Machine:
    """As a GPU with tensor cores decides: half precision goes there, float32 where it was asked for."""
    return machine._replace(tensor_cores=machine.tensor_cores or f.dtype != torch.float32)


def forward(a, b, bias, scale) -> Alignment:
    return cuda.forward_on(_machine_for(a.f), a, b, bias, scale)


def backward(a, b, bias, scale, saved, grads, bias_grad):
    return cuda.backward_on(_machine_for(a.f), a, b, bias, scale, saved, grads, bias_grad)
