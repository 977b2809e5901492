"""The Triton backend: fused kernels for NVIDIA and AMD GPUs, and for Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from .. import gpu
from ..problem import Alignment, AlignmentGrads, OperandGrads, Problem, Side

name = "triton"


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
    if device.type == "cpu" and not _interpreted():
        reasons.append("Triton runs on GPU tensors (TRITON_INTERPRET=1 interprets it on the CPU, slowly, for testing)")
    elif device.type not in ("cpu", "cuda"):
        reasons.append(f"Triton kernels are not built for {device.type!r} devices")
    elif device.type == "cuda" and gpu.capability(device) < (8, 0) and torch.version.hip is None:
        reasons.append("the GPU is older than compute capability 8.0 (Ampere)")
    return reasons


def forward(a: Side, b: Side, bias: Tensor | None, scale: float) -> Alignment:
    from .launch import Target, plan_forward

    target = Target(gpu.tf32_allowed(), shared_memory(a.f.device), gpu.architecture(a.f.device))
    launches, found = plan_forward(a, b, bias, scale, target)
    with on_device(a.f):
        for launch in launches:
            launch.run()
    return found


def backward(
    a: Side, b: Side, bias: Tensor | None, scale: float, saved: Alignment, grads: AlignmentGrads, bias_grad: bool
) -> OperandGrads:
    from .launch import Target, plan_backward

    target = Target(gpu.tf32_allowed(), shared_memory(a.f.device), gpu.architecture(a.f.device))
    launches, found = plan_backward(a, b, bias, scale, saved, grads, bias_grad, target)
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


@cache
def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def on_device(t: Tensor) -> AbstractContextManager[object]:
    """Kernels launch on the current device, which need not be the tensor's."""
    if t.device.type != "cuda" or t.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(t.device)
