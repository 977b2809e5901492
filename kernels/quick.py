"""Calls of four operands, with nothing beside them but lengths or offsets, the short way.

For one pair of sentences the C++ kernel takes 3 to 30 µs, a GPU's for hundreds of them no more, and looking at all
that a call may bring takes longer. What a backend has served once it serves again where the kind of call and
everything around it are the same, and only that is looked at. A backend takes part by having `plain_devices` (the
types of the devices for which it does), `plain_forward`, `plain_forward_with_lse` and `plain_backward`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import dispatch, ops, transforms
from .problem import MOST_ROWS, PLAIN, Alignment, Problem, Side

_MOST = 4096  # of kinds of calls to remember
_LENGTHS = (torch.int32, torch.int64)


class _Unfit(Exception):
    """Lengths or offsets don't fit: the long way says what is wrong with them."""


# fmt: off
def serve(
    f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor,
    lengths_a: Tensor | None = None, lengths_b: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    # fmt: on
    """beta and alpha of padded operands; None where the call has to go the long way."""
    if torch.compiler.is_compiling() or not (Tensor is type(f_a) is type(f_b) is type(a) is type(b)):
        return None
    try:
        shape_a, shape_b, values_a, values_b = f_a.shape, f_b.shape, a.shape, b.shape
    except RuntimeError:  # of a nested tensor: the long way names it
        return None
    kind: tuple[Any, ...] = shape_a, shape_b, values_a, values_b, f_a.dtype, f_a.get_device()
    if lengths_a is lengths_b is None:
        backend = dispatch.remembered.get(kind)
        return _served(backend, (f_a, f_b, a, b), ()) if backend is not None and _ordinary(f_a, f_b, a, b) else None
    backend = dispatch.remembered.get((*kind, lengths_a is None, lengths_b is None))
    if backend is None or not _ordinary(f_a, f_b, a, b):
        return None
    given = [t for t in (lengths_a, lengths_b) if t is not None]
    if len(shape_a) != 3 or not all(_is_extent(t, _LENGTHS, shape_a[0], f_a) for t in given):
        return None
    return _served(backend, (f_a, f_b, a, b), (lengths_a, lengths_b, shape_a[1], shape_b[1]))


# fmt: off
def serve_packed(
    f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor,
    offsets_a: Tensor, offsets_b: Tensor, max_length_a: int, max_length_b: int,
) -> tuple[Tensor, Tensor] | None:
    # fmt: on
    """The same for packed ones, however many rows they have."""
    if torch.compiler.is_compiling() or not (Tensor is type(f_a) is type(f_b) is type(a) is type(b)):
        return None
    try:
        shape_a, shape_b, values_a, values_b = f_a.shape, f_b.shape, a.shape, b.shape
    except RuntimeError:
        return None
    if not (len(shape_a) == len(shape_b) == len(values_a) == len(values_b) == 2):
        return None
    backend = dispatch.remembered.get((shape_a[1], values_a[1], values_b[1], f_a.dtype, f_a.get_device()))
    if (
        backend is None
        or shape_b[1] != shape_a[1]
        or not (0 < shape_a[0] == values_a[0] and 0 < shape_b[0] == values_b[0])
        or not int is type(max_length_a) is type(max_length_b)
        or not (0 <= max_length_a <= MOST_ROWS and 0 <= max_length_b <= MOST_ROWS)
        or not (type(offsets_a) is Tensor and offsets_a.numel() > 0)
        or not all(_is_extent(t, (torch.int32,), offsets_a.numel(), f_a) for t in (offsets_a, offsets_b))
        or not _ordinary(f_a, f_b, a, b)
    ):
        return None
    return _served(backend, (f_a, f_b, a, b), (offsets_a, offsets_b, max_length_a, max_length_b))


def remember(a: Side, b: Side) -> None:
    """The long way has served a call of these operands without options: the next one may come the short way."""
    extents = tuple(t for t in (a.extent, b.extent) if t is not None)
    if (
        not ops.unobserved((*a, *b))
        or not (a.f.numel() and b.f.numel())
        or dispatch.requested(None) is not None
    ):
        return
    backend: Any = dispatch.choose(Problem.of(a, b, None))
    if a.f.device.type not in getattr(backend, "plain_devices", ()):
        return
    if len(dispatch.remembered) >= _MOST:
        dispatch.remembered.clear()
    if a.f.ndim == 2 and len(extents) == 2:
        dispatch.remembered[a.f.shape[1], a.x.shape[1], b.x.shape[1], a.f.dtype, a.f.get_device()] = backend
    else:
        absent = (a.extent is None, b.extent is None) if extents else ()
        kind = a.f.shape, b.f.shape, a.x.shape, b.x.shape, a.f.dtype, a.f.get_device()
        dispatch.remembered[(*kind, *absent)] = backend


def _ordinary(f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether the operands are dense ones of one dtype and place, and nothing around the call changes it."""
    return not (
        not (f_a.dtype is f_b.dtype is a.dtype is b.dtype)
        or not ((f_a.is_cpu and f_b.is_cpu and a.is_cpu and b.is_cpu) or _on_one_gpu(f_a, f_b, a, b))
        or not (torch.strided is f_a.layout is f_b.layout is a.layout is b.layout)
        or torch.is_autocast_enabled("cpu" if f_a.is_cpu else "cuda")
        or not ops.no_modes()
        or transforms.forward_mode()
        or dispatch.requested(None) is not None
    )


def _on_one_gpu(*tensors: Tensor) -> bool:
    device = tensors[0].get_device()
    return all(t.is_cuda and t.get_device() == device for t in tensors)


def _is_extent(t: object, dtypes: tuple[torch.dtype, ...], count: int, f_a: Tensor) -> bool:
    """Whether t is so many numbers, one after another and beside f_a, as a kernel reads them."""
    if type(t) is not Tensor or t.shape != (count,) or not ((t.is_cpu and f_a.is_cpu) or _on_one_gpu(t, f_a)):
        return False
    return t.dtype in dtypes and t.layout is torch.strided and t.is_contiguous()


def _served(backend: Any, operands: tuple[Tensor, ...], extents: tuple[Any, ...]) -> tuple[Tensor, Tensor] | None:
    f_a, f_b, a, b = operands
    found: tuple[Tensor, Tensor] | None
    if ops.records() and (f_a.requires_grad or f_b.requires_grad or a.requires_grad or b.requires_grad):
        try:
            found = _Plain.apply(backend, extents, *operands)
        except _Unfit:
            return None
    else:
        found = backend.plain_forward(*operands, *extents)
    return found


class _Plain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: Any, extents: tuple[Any, ...], *operands: Tensor) -> tuple[Tensor, Tensor]:
        outputs = backend.plain_forward_with_lse(*operands, *extents)
        if outputs is None:
            raise _Unfit
        # in the long way's order: recomputing a call that went the other way, checkpointing gives back what that saved
        ctx.save_for_backward(*operands, *(extents[:2] or (None, None)), *outputs)
        ctx.backend, ctx.lengths = backend, extents[2:]
        ctx.set_materialize_grads(False)
        return outputs[0], outputs[1]

    @staticmethod
    def backward(ctx: Any, dbeta: Tensor | None, dalpha: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        f_a, f_b, a, b, extent_a, extent_b, *outputs = saved
        both = dbeta is not None and dalpha is not None
        plain = not torch.is_grad_enabled() and not transforms.forward_mode()
        if both and plain and ops.unobserved((*saved, dbeta, dalpha)):
            extents = (extent_a, extent_b, *ctx.lengths) if ctx.lengths else ()
            return None, None, *ctx.backend.plain_backward(f_a, f_b, a, b, *outputs, dbeta, dalpha, *extents)
        length_a, length_b = ctx.lengths or (f_a.shape[-2], f_b.shape[-2])
        side_a, side_b = Side(f_a, a, extent_a, length_a), Side(f_b, b, extent_b, length_b)
        operands, grads = ops.flat(side_a, side_b, None, PLAIN, None), (dbeta, dalpha, None, None)
        needed = (*ctx.needs_input_grad[2:], *(False,) * 11)
        found = ops.gradient(operands, Alignment(*outputs), grads, needed)
        return None, None, *found[:4]
