"""The native backend: C++ for CPU tensors (csrc/cpu/align.h), CUDA for those of NVIDIA GPUs (cuda.py).

Each extension is built when the first call needs it: see build.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problem import Alignment, AlignmentGrads, OperandGrads, Problem, Rule, Side
from . import build, cuda

name = "native"
MOST = 2**31 - 1  # rows of a side, and numbers of a row, that the C++ kernels count


def unsupported(problem: Problem) -> list[str]:
    """Why the problem can't be served; the first one that could be builds the extension."""
    if problem.device.type == "cuda":
        return cuda.unsupported(problem)
    if problem.device.type != "cpu":
        return [f"the native kernels are for tensors of the CPU and of NVIDIA GPUs, not {problem.device.type!r}"]
    if max(problem.length_a, problem.length_b, problem.width, problem.width_a, problem.width_b) > MOST:
        return [f"the C++ kernels take up to {MOST} rows a side, and numbers a row"]
    reason = build.extension.reason()
    return [] if reason is None else [reason]


def forward(a: Side, b: Side, bias: Tensor | None, rule: Rule) -> Alignment:
    if a.f.is_cuda:
        return cuda.forward(a, b, bias, rule)
    return Alignment(*torch.ops.coalign_native.forward.default(*_operands(a, b, bias, rule)))


def extents_fit(a: Side, b: Side) -> bool:
    """Whether the values of lengths and offsets fit the shapes, of tensors of the CPU."""
    extent_a, extent_b = _contiguous(a.extent), _contiguous(b.extent)
    packed, rows_a, rows_b = a.f.ndim == 2, a.f.shape[0], b.f.shape[0]
    fit: bool = torch.ops.coalign_native.extents_fit.default(
        extent_a, extent_b, packed, a.length, b.length, rows_a, rows_b
    )
    return fit


def backward(
    a: Side, b: Side, bias: Tensor | None, rule: Rule, saved: Alignment, grads: AlignmentGrads, bias_grad: bool
) -> OperandGrads:
    if a.f.is_cuda:
        return cuda.backward(a, b, bias, rule, saved, grads, bias_grad)
    dbias = bias.new_zeros(bias.shape, dtype=saved.lse_a.dtype) if bias is not None and bias_grad else None
    df_a, df_b, da, db = torch.ops.coalign_native.backward.default(*_operands(a, b, bias, rule), *saved, *grads, dbias)
    return OperandGrads(df_a, df_b, da, db, dbias)


# The same for operands without options (see quick.py): f_a, f_b, a, b, and where rows are not all tokens extent_a,
# extent_b, length_a, length_b, contiguous. None where the extents' values don't fit.

plain_devices = ("cpu",)


def plain_forward(*operands: Any) -> tuple[Tensor, Tensor] | None:
    beta, alpha, fit = torch.ops.coalign_native.plain_forward.default(*operands)
    return (beta, alpha) if fit else None


def plain_forward_with_lse(*operands: Any) -> tuple[Tensor, ...] | None:
    *found, fit = torch.ops.coalign_native.plain_forward_with_lse.default(*operands)
    return tuple(found) if fit else None


def plain_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """arguments: the four operands, four outputs, gradients of beta and alpha, and what the operands' came with."""
    found: tuple[Tensor, ...] = torch.ops.coalign_native.plain_backward.default(*arguments[:12])
    return found


def _operands(a: Side, b: Side, bias: Tensor | None, rule: Rule) -> tuple[Any, ...]:
    return a.f, b.f, a.x, b.x, _contiguous(a.extent), _contiguous(b.extent), bias, *rule


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()
