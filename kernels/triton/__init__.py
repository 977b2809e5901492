"""The Triton backend: fused kernels for NVIDIA and AMD GPUs, and for Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import gpu
from ..problem import PLAIN, Alignment, AlignmentGrads, OperandGrads, Problem, Rule, Side

name = "triton"
MOST_NUMBERS = 65535 * 64  # of a row: as many chunks as a grid may have programs in its second dimension
# what Triton takes for yes; it too looks once, when it is imported
_ASKED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "on", "true", "y", "yes")


def unsupported(problem: Problem) -> list[str]:
    """Why Triton can't serve the problem."""
    if max(problem.width, problem.width_a, problem.width_b) > MOST_NUMBERS:
        return [f"the Triton kernels take rows of up to {MOST_NUMBERS} numbers"]
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
    launch, prepared = _launcher()
    tf32 = gpu.tf32_allowed()
    a, b, bias = _in_memory(a), _in_memory(b), bias if bias is None else gpu.in_memory(bias)
    found: Alignment = launch.room_forward(a, b)
    with on_device(a.f):
        prepared.launch(
            ("forward", *_key(a, b, bias, rule), tf32),
            launch.given_tensors(a, b, bias, rule) | launch.forward_tensors(found),
            lambda: launch.plan_forward(a, b, bias, rule, found, target(a.f.device, tf32)),
        )
    return found


def backward(
    a: Side, b: Side, bias: Tensor | None, rule: Rule, saved: Alignment, grads: AlignmentGrads, bias_grad: bool
) -> OperandGrads:
    launch, prepared = _launcher()
    tf32 = gpu.tf32_allowed()
    a, b, bias = _in_memory(a), _in_memory(b), bias if bias is None else gpu.in_memory(bias)
    saved = Alignment(*(t.contiguous() for t in saved))
    dbeta, dalpha = (gpu.in_memory(g).contiguous() for g in (grads.beta, grads.alpha))
    dlse_a, dlse_b = (g if g is None else gpu.in_memory(g).contiguous() for g in (grads.lse_a, grads.lse_b))
    grads = AlignmentGrads(dbeta, dalpha, dlse_a, dlse_b)
    found, deltas = launch.room_backward(a, b, bias, saved, bias_grad)
    sizes = None if deltas is None else (deltas.a.shape, deltas.b.shape)
    there = tuple(t is None for t in (grads.lse_a, grads.lse_b, found.bias))
    with on_device(a.f):
        prepared.launch(
            ("backward", *_key(a, b, bias, rule), sizes, there, tf32),
            launch.given_tensors(a, b, bias, rule) | launch.backward_tensors(saved, grads, found, deltas),
            lambda: launch.plan_backward(a, b, bias, rule, saved, grads, found, deltas, target(a.f.device, tf32)),
        )
    return found


def _in_memory(side: Side) -> Side:
    f, x = gpu.in_memory(side.f), gpu.in_memory(side.x)
    side = side if f is side.f and x is side.x else side._replace(f=f, x=x)  # a copy takes longer than all of this
    return side if side.f.ndim > 2 else _launcher()[0].within_rows(side)


# The same for operands without options (see quick.py), on a GPU, where nobody looks at the values of extents.

plain_devices = ("cuda",)


def plain_forward(*operands: Any) -> tuple[Tensor, Tensor]:
    found = forward(*_sides(*operands), None, PLAIN)
    return found.beta, found.alpha


def plain_forward_with_lse(*operands: Any) -> Alignment:
    return forward(*_sides(*operands), None, PLAIN)


def plain_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """arguments: the four operands, four outputs, gradients of beta and alpha, and what the operands' came with."""
    a, b = _sides(*arguments[:4], *arguments[10:])
    dbeta, dalpha = arguments[8:10]
    grads = AlignmentGrads(dbeta, dalpha, None, None)
    return backward(a, b, None, PLAIN, Alignment(*arguments[4:8]), grads, bias_grad=False)[:4]


# fmt: off
def _sides(
    f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor,
    extent_a: Tensor | None = None, extent_b: Tensor | None = None, length_a: int = -1, length_b: int = -1,
) -> tuple[Side, Side]:
    # fmt: on
    if extent_a is extent_b is None:
        length_a, length_b = f_a.shape[-2], f_b.shape[-2]
    return Side(f_a, a, extent_a, length_a), Side(f_b, b, extent_b, length_b)


def _key(a: Side, b: Side, bias: Tensor | None, rule: Rule) -> tuple[Hashable, ...]:
    """What a plan depends on of what a call brings along."""
    layout, packed = _launcher()[1].layout, a.f.ndim == 2
    return (
        *(layout(a.f, packed), layout(b.f, packed), layout(a.x, packed), layout(b.x, packed)),
        *(layout(a.extent), layout(b.extent), layout(bias)),
        *(a.length, b.length, *rule[:4], rule.seed is None, a.f.device.index),
    )


@cache
def _launcher() -> tuple[Any, Any]:
    """The modules launch and prepared, which import Triton; an import statement in each call takes microseconds."""
    from . import launch, prepared

    return launch, prepared


def target(device: torch.device, tf32: bool) -> Any:
    """What a plan must know of a device."""
    return _launcher()[0].Target(tf32, shared_memory(device), gpu.architecture(device))


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
