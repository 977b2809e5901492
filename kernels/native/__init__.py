"""The native backend: C++ for CPU tensors, built on first use (see build.py; the kernels are csrc/cpu/align.h)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problem import Alignment, AlignmentGrads, OperandGrads, Problem, Side
from . import build

name = "native"


def unsupported(problem: Problem) -> list[str]:
    """Why the C++ extension can't serve the problem; the first one that it could serve builds it."""
    if problem.device.type != "cpu":
        return [f"the C++ kernels are for CPU tensors, not {problem.device.type!r}"]
    reason = build.reason()
    return [] if reason is None else [reason]


def forward(a: Side, b: Side, bias: Tensor | None, scale: float) -> Alignment:
    return Alignment(*torch.ops.coalign_native.forward.default(*_operands(a, b, bias, scale)))


def backward(
    a: Side, b: Side, bias: Tensor | None, scale: float, saved: Alignment, grads: AlignmentGrads, bias_grad: bool
) -> OperandGrads:
    dbias = bias.new_zeros(bias.shape, dtype=saved.lse_a.dtype) if bias is not None and bias_grad else None
    saved = Alignment(*(t.contiguous() for t in saved))
    arrived = (t if t is None else t.contiguous() for t in grads)
    df_a, df_b, da, db = torch.ops.coalign_native.backward.default(
        *_operands(a, b, bias, scale), *saved, *arrived, dbias
    )
    return OperandGrads(df_a, df_b, da, db, dbias)


def _operands(a: Side, b: Side, bias: Tensor | None, scale: float) -> tuple[Any, ...]:
    extent_a = None if a.extent is None else a.extent.contiguous()
    extent_b = None if b.extent is None else b.extent.contiguous()
    return a.f, b.f, a.x, b.x, extent_a, extent_b, bias, scale
