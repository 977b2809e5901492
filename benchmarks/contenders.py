"""Who is compared: coalign, and what one would write in PyTorch without it.

A contender takes f_a, f_b, a, b (padded, but for coalign where the case is packed) and gives β and α.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import coalign

from .cases import Case, Inputs

Align = Callable[..., tuple[Tensor, Tensor]]


def contenders(case: Case, inputs: Inputs, backend: str | None = None) -> dict[str, Align]:
    """Contenders by name, each to be called with four tensors laid out like the inputs'."""
    masks = inputs.masks or (None, None)
    compiled = torch.compile(eager, dynamic=False)
    return {
        "coalign": _coalign(case, inputs, backend),
        "eager": lambda *x: eager(*x, *masks),
        "torch.compile": lambda *x: compiled(*x, *masks),
        "2 x SDPA": lambda *x: twice_sdpa(*x, *masks),
    }


def eager(f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor, mask_a: Tensor | None, mask_b: Tensor | None):
    """The book's code, with masks where there are any."""
    e = f_a @ f_b.mT
    if mask_a is None or mask_b is None:
        return torch.softmax(e, -1) @ b, torch.softmax(e.mT, -1) @ a
    rows = e.masked_fill(~mask_b[:, None, :], -torch.inf)
    columns = e.mT.masked_fill(~mask_a[:, None, :], -torch.inf)
    return torch.softmax(rows, -1) @ b, torch.softmax(columns, -1) @ a


def twice_sdpa(f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor, mask_a: Tensor | None, mask_b: Tensor | None):
    """One-directional attention, called both ways."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, :], scale=1.0)

    return attend(f_a, f_b, b, mask_b), attend(f_b, f_a, a, mask_a)


def _coalign(case: Case, inputs: Inputs, backend: str | None) -> Align:
    if inputs.offsets is not None:
        offset_a, offset_b = inputs.offsets
        return lambda *x: coalign.soft_align_packed(*x, offset_a, offset_b, case.m, case.n, backend=backend)
    if inputs.lengths is not None:
        length_a, length_b = inputs.lengths
        return lambda *x: coalign.soft_align(*x, lengths_a=length_a, lengths_b=length_b, backend=backend)
    return lambda *x: coalign.soft_align(*x, backend=backend)
