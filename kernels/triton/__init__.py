"""The Triton backend: fused kernels for NVIDIA and AMD GPUs, and for Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from ..problem import Alignment, AlignmentGrads, OperandGrads, Problem, Side

name = "triton"


def unsupported(problem: Problem) -> list[str]:
    """Why Triton can't serve the problem; it is imported no earlier than a call could be served."""
    if not _installed():
        return ["Triton is not installed (it exists for Linux: pip install triton)"]
    reasons = []
    if problem.dtype == torch.float64:
        reasons.append("float64 is for the reference and native CPU backends; use float32 or lower")
    if problem.device.type == "cpu" and not _interpreted():
        reasons.append("Triton runs on GPU tensors (TRITON_INTERPRET=1 interprets it on the CPU, slowly, for testing)")
    elif problem.device.type not in ("cpu", "cuda"):
        reasons.append(f"Triton kernels are not built for {problem.device.type!r} devices")
    elif problem.device.type == "cuda" and _capability(problem.device) < (8, 0) and torch.version.hip is None:
        reasons.append("the GPU is older than compute capability 8.0 (Ampere)")
    return reasons


def forward(a: Side, b: Side, bias: Tensor | None, scale: float) -> Alignment:
    from .launch import Target, plan_forward

    target = Target(tf32_allowed(), _shared_memory(a.f.device), architecture(a.f.device))
    launches, found = plan_forward(a, b, bias, scale, target)
    with _on_device(a.f):
        for launch in launches:
            launch.run()
    return found


def backward(
    a: Side, b: Side, bias: Tensor | None, scale: float, saved: Alignment, grads: AlignmentGrads, bias_grad: bool
) -> OperandGrads:
    from .launch import Target, plan_backward

    target = Target(tf32_allowed(), _shared_memory(a.f.device), architecture(a.f.device))
    launches, found = plan_backward(a, b, bias, scale, saved, grads, bias_grad, target)
    with _on_device(a.f):
        for launch in launches:
            launch.run()
    return found


def tf32_allowed() -> bool:
    """Whether torch's own switch lets float32 products use TF32 tensor cores; IEEE float32 otherwise."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


@cache
def architecture(device: torch.device) -> str:
    """The name of its instructions: sm_90, gfx942; "" for the interpreter."""
    if device.type != "cuda":
        return ""
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


@cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may use; the interpreter has no limit."""
    if device.type != "cuda":
        return 1 << 30
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _on_device(t: Tensor) -> AbstractContextManager[object]:
    """Kernels launch on the current device, which need not be the tensor's."""
    if t.device.type != "cuda" or t.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(t.device)
