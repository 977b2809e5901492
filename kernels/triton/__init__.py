"""The Triton backend: fused kernels for NVIDIA and AMD GPUs, and for Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from .. import gpu
from ..problem import Alignment, AlignmentGrads, OperandGrads, Problem, Rule, Side

name = "triton"
# what Triton takes for yes; it too looks once, when it is imported
_ASKED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "on", "true", "y", "yes")


def unsupported(problem: Problem) -> list[str]:
    """Why Triton can't serve the problem."""
    return unsupported_on(problem.device, problem.dtype)


def unsupported_on(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Why Triton can't serve such tensors; it is imported no earlier than a call could be served."""
    if not _installed():
        return ["Triton is not installed (it exists for Linux: pip install triton)"]
    reasons = []
    if dtype == torch.float64:
        reasons.append("float64 is for the reference and native CPU backends; use float32 or lower")
    if device.type == "cpu" and not interprets():
        reasons.append("Triton runs on GPU tensors (TRITON_INTERPRET=1 interprets it on the CPU, slowly, for testing)")
    elif device.type not in ("cpu", "cuda"):
        reasons.append(f"Triton kernels are not built for {device.type!r} devices")
    elif device.type == "cuda" and gpu.capability(device) < (8, 0) and torch.version.hip is None:
        reasons.append("the GPU is older than compute capability 8.0 (Ampere)")
    elif trouble := _trouble(compiles=device.type == "cuda"):
        reasons.append(trouble)
    return reasons


def forward(a: Side, b: Side, bias: Tensor | None, rule: Rule) -> Alignment:
    from .launch import Target, plan_forward

    target = Target(gpu.tf32_allowed(), shared_memory(a.f.device), gpu.architecture(a.f.device))
    launches, found = plan_forward(a, b, bias, rule, target)
    with on_device(a.f):
        for launch in launches:
            launch.run()
    return found


def backward(
    a: Side, b: Side, bias: Tensor | None, rule: Rule, saved: Alignment, grads: AlignmentGrads, bias_grad: bool
) -> OperandGrads:
    from .launch import Target, plan_backward

    target = Target(gpu.tf32_allowed(), shared_memory(a.f.device), gpu.architecture(a.f.device))
    launches, found = plan_backward(a, b, bias, rule, saved, grads, bias_grad, target)
    with on_device(a.f):
        for launch in launches:
            launch.run()
    return found


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may use; the interpreter has no limit."""
    return gpu.shared_memory(device) if device.type == "cuda" else 1 << 30


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interprets() -> bool:
    """Whether Triton is asked to interpret; on the CPU nothing else is worth importing it for."""
    return _ASKED if "triton" not in sys.modules else _trouble() is not None or _knob()


@cache
def _knob() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


@cache
def _trouble(compiles: bool = False) -> str | None:
    """What keeps an installed Triton from working here; compiles: with the C compiler that it needs for a GPU."""
    try:
        import triton
    except Exception as error:  # whatever a broken installation raises, another backend can serve
        return f"Triton is installed but can't be imported: {type(error).__name__}: {error}"
    if compiles and not (
        triton.knobs.build.impl or os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    ):
        return "Triton finds no C compiler (gcc, clang, or CC), which it needs when it first launches a kernel"
    return None


def on_device(t: Tensor) -> AbstractContextManager[object]:
    """Kernels launch on the current device, which need not be the tensor's."""
    if t.device.type != "cuda" or t.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(t.device)
