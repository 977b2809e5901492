"""Calls of four operands and no option, the short way.

For one pair of sentences the C++ kernel takes 3 to 30 µs, and looking at all that a call may bring takes longer. What
a backend has served once it serves again where shapes, dtype and everything around the call are the same, and only
that is looked at. A backend takes part by having `plain_forward`, `plain_forward_with_lse` and `plain_backward`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import dispatch, ops, transforms
from .problem import PLAIN, Alignment, Problem, Side

_MOST = 4096  # of kinds of calls to remember


def serve(f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
    """beta and alpha; None where the call has to go the long way."""
    if torch.compiler.is_compiling() or not (Tensor is type(f_a) is type(f_b) is type(a) is type(b)):
        return None
    backend = dispatch.remembered.get((f_a.shape, f_b.shape, a.shape, b.shape, f_a.dtype))
    if (
        backend is None
        or not (f_a.dtype is f_b.dtype is a.dtype is b.dtype)
        or not (f_a.is_cpu and f_b.is_cpu and a.is_cpu and b.is_cpu)
        or not (torch.strided is f_a.layout is f_b.layout is a.layout is b.layout)
        or torch.is_autocast_enabled("cpu")
        or not ops.no_modes()
        or transforms.forward_mode()
        or dispatch.requested(None) is not None
    ):
        return None
    if torch.is_grad_enabled() and (f_a.requires_grad or f_b.requires_grad or a.requires_grad or b.requires_grad):
        found: tuple[Tensor, Tensor] = _Plain.apply(backend, f_a, f_b, a, b)
        return found
    return backend.plain_forward(f_a, f_b, a, b)


def remember(a: Side, b: Side) -> None:
    """The long way has served a call of these operands without options: the next one may come the short way."""
    if a.f.device.type != "cpu" or not ops.unobserved((*a, *b)) or not (a.f.numel() and b.f.numel()):
        return
    backend: Any = dispatch.choose(Problem.of(a, b, None))
    if hasattr(backend, "plain_forward") and dispatch.requested(None) is None:
        if len(dispatch.remembered) >= _MOST:
            dispatch.remembered.clear()
        dispatch.remembered[a.f.shape, b.f.shape, a.x.shape, b.x.shape, a.f.dtype] = backend


class _Plain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: Any, *operands: Tensor) -> tuple[Tensor, Tensor]:
        outputs = backend.plain_forward_with_lse(*operands)
        ctx.save_for_backward(*operands, *outputs)
        ctx.backend = backend
        ctx.set_materialize_grads(False)
        return outputs[0], outputs[1]

    @staticmethod
    def backward(ctx: Any, dbeta: Tensor | None, dalpha: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        both = dbeta is not None and dalpha is not None
        if both and not torch.is_grad_enabled() and ops.unobserved((*saved, dbeta, dalpha)):
            return None, *ctx.backend.plain_backward(*saved, dbeta, dalpha)
        f_a, f_b, a, b, *outputs = saved
        side_a, side_b = Side(f_a, a, None, f_a.shape[-2]), Side(f_b, b, None, f_b.shape[-2])
        operands, grads = ops.flat(side_a, side_b, None, PLAIN, None), (dbeta, dalpha, None, None)
        found = ops.gradient(operands, Alignment(*outputs), grads, (*ctx.needs_input_grad[1:], *(False,) * 11))
        return None, *found[:4]
