"""The operator under torch.func and in forward mode: right whatever PyTorch differentiates it by.

- vmap is a batch dimension more: `fold` moves it into the operands, and the same backend serves. So the gradient
  outside a vmap comes from the backends' kernels too.
- Reverse mode inside torch.func (grad, vjp, jacrev, hessian) may be differentiated or mapped again, which no one
  knows in advance: its gradient is the reference's formula, which stores e and can be.
- Forward mode (jvp, jacfwd, torch.autograd.forward_ad) goes through the reference altogether.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference
from .problem import Alignment, AlignmentGrads, Side

Call = Callable[..., tuple[Tensor, ...]]

# Absent from some future PyTorch, they take every call to be a transformed one, which is always right.
_interpreter = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", lambda: True)


def transforming() -> bool:
    """Whether a torch.func transform is at work."""
    return _interpreter() is not None


def forward_mode() -> bool:
    """Whether somebody computes tangents."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def fold(call: Call, info: Any, in_dims: tuple[int | None, ...], *operands: Any) -> tuple[tuple[Tensor, ...], Any]:
    """A vmap rule for operators with the operands f_a, f_b, a, b, extent_a, extent_b, bias, length_a, ..."""
    size = info.batch_size
    f_a, f_b, a, b, extent_a, extent_b, bias = (
        t if t is None else t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(operands[:7], in_dims[:7], strict=True)
    )
    if f_a.ndim == 3:  # packed: what each vmapped call holds lies one after another
        extent_a, extent_b = (_offsets(extent, f.shape[1]) for extent, f in ((extent_a, f_a), (extent_b, f_b)))
        tensors = *(t.flatten(0, 1) for t in (f_a, f_b, a, b)), extent_a, extent_b, None
    else:
        if bias is not None:
            batch = f_a.shape[1:-2]
            bias = bias.reshape(size, *(1,) * (len(batch) + 3 - bias.ndim), *bias.shape[1:])
            bias = bias.expand(size, *batch, f_a.shape[-2], f_b.shape[-2])
        # one batch dimension becomes two; two (pairs, heads) become two again
        tensors = f_a, f_b, a, b, extent_a, extent_b, bias
        if f_a.ndim == 5:
            tensors = tuple(t if t is None else t.flatten(0, 1) for t in tensors)
    found = call(*tensors, *operands[7:])
    return tuple(t.unflatten(0, (size, -1)) if t.shape[0] else t.new_zeros(o) for t, o in ()) or (
        _unfolded(found, f_a, f_b)
    ), (0,) * len(found)
