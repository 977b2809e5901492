"""Who is compared: coalign, and what one would write in PyTorch without it.

A contender takes f_a, f_b, a, b (padded, but for coalign where the case is packed) and gives β and α.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import coalign

from .cases import Case, Inputs

PACKED = ("coalign", "2 x varlen_attn", "2 x jagged SDPA")  # those that take packed tokens, where a case has them
TO_LONGEST = ("eager, to the longest", "torch.compile, to the longest")  # padded no further than the batch needs
TUNED = "torch.compile, max-autotune"
COMPILED = (  # in their first call
    "torch.compile",
    TUNED,
    "torch.compile, in float32",
    "torch.compile, to the longest",
    "2 x FlexAttention",
)
Align = Callable[..., tuple[Tensor, Tensor]]


def contenders(case: Case, inputs: Inputs, backend: str | None = None) -> dict[str, Align]:
    """Contenders by name, each to be called with four tensors laid out like the inputs'."""
    masks = inputs.masks or (None, None)
    least = masks if inputs.lengths is None else inputs.to_longest().masks
    compiled = torch.compile(eager, dynamic=False)
    trimmed = torch.compile(eager, dynamic=False)
    widened = torch.compile(in_float32, dynamic=False)
    tuned = torch.compile(eager, dynamic=False, mode="max-autotune-no-cudagraphs")
    return {
        "coalign": _coalign(case, inputs, backend),
        "eager": lambda *x: eager(*x, *masks),
        "torch.compile": lambda *x: compiled(*x, *masks),
        TUNED: lambda *x: tuned(*x, *masks),
        "torch.compile, in float32": lambda *x: widened(*x, *masks),
        "eager, to the longest": lambda *x: eager(*x, *least),
        "torch.compile, to the longest": lambda *x: trimmed(*x, *least),
        "2 x SDPA": lambda *x: twice_sdpa(*x, *masks),
        "2 x SDPA, widened": lambda *x: twice_sdpa_widened(*x, *masks),
        "2 x FlexAttention": twice_flex(case, inputs),
        "2 x varlen_attn": twice_varlen(case, inputs),
        "2 x jagged SDPA": twice_jagged(case, inputs),
    }


def absent(name: str, case: Case, graph: bool, device: str) -> str | None:
    """Why a contender does not take part in a case; None: it does."""
    if name in (TUNED, "2 x FlexAttention") and device == "cpu":
        return "measured on GPUs only"
    if name == "2 x varlen_attn" and device == "cpu":
        return "needs a GPU"
    if name == "torch.compile, in float32" and (device != "cpu" or case.dtype == torch.float32):
        return "for what a CPU may lack instructions for: half precision"
    if name in TO_LONGEST and case.lengths == "full":
        return "all sentences are as long"
    if name == "2 x SDPA, widened" and case.h == case.d:
        return "values are as wide as features"
    if name == "2 x FlexAttention" and case.pairs == 1:
        return "refuses sequences so short"
    if name == "2 x varlen_attn" and (case.dtype not in (torch.bfloat16, torch.float16) or not case.packed):
        return "takes packed tokens in half precision only"
    if name == "2 x jagged SDPA" and not case.packed:
        return "takes packed tokens only"
    if name == "2 x jagged SDPA" and graph:
        return "waits for the GPU in each call, which a CUDA graph can't"
    return None


def eager(f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor, mask_a: Tensor | None, mask_b: Tensor | None):
    """The book's code, with masks where there are any."""
    e = f_a @ f_b.mT
    if mask_a is None or mask_b is None:
        return torch.softmax(e, -1) @ b, torch.softmax(e.mT, -1) @ a
    rows = e.masked_fill(~mask_b[:, None, :], -torch.inf)
    columns = e.mT.masked_fill(~mask_a[:, None, :], -torch.inf)
    return torch.softmax(rows, -1) @ b, torch.softmax(columns, -1) @ a


def in_float32(f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor, mask_a: Tensor | None, mask_b: Tensor | None):
    """The same of half precision, computed in float32."""
    found = eager(f_a.float(), f_b.float(), a.float(), b.float(), mask_a, mask_b)
    return found[0].to(a.dtype), found[1].to(a.dtype)


def twice_sdpa(f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor, mask_a: Tensor | None, mask_b: Tensor | None):
    """One-directional attention, called both ways, with a dimension of heads: without, PyTorch does not fuse it."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (t.unsqueeze(1) for t in (q, k, v))
        where = None if mask is None else mask[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, where, scale=1.0).squeeze(1)

    return attend(f_a, f_b, b, mask_b), attend(f_b, f_a, a, mask_a)


def twice_sdpa_widened(f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor, mask_a: Tensor | None, mask_b: Tensor | None):
    """The same, values widened with zeros to the features' width: PyTorch fuses only what is equally wide."""
    wide_a, wide_b = (F.pad(t, (0, f_a.shape[-1] - t.shape[-1])) for t in (a, b))
    beta, alpha = twice_sdpa(f_a, f_b, wide_a, wide_b, mask_a, mask_b)
    return beta[..., : b.shape[-1]], alpha[..., : a.shape[-1]]


def twice_flex(case: Case, inputs: Inputs) -> Align:
    """FlexAttention, compiled, both ways; its block masks are made here, outside of the timing."""

    @cache
    def ready() -> tuple[Callable[..., Tensor], object, object]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def blocks(lengths: Tensor, rows: int, columns: int) -> object:
            def is_token(pair, head, row, column):
                return column < lengths[pair]

            return create_block_mask(is_token, case.pairs, None, rows, columns, device=lengths.device)

        if inputs.lengths is None:
            return torch.compile(flex_attention, dynamic=False), None, None
        len_a, len_b = inputs.lengths
        return (
            torch.compile(flex_attention, dynamic=False),
            blocks(len_b, case.m, case.n),
            blocks(len_a, case.n, case.m),
        )

    def align(f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        attend, over_b, over_a = ready()
        f_a, f_b, a, b = (t.unsqueeze(1) for t in (f_a, f_b, a, b))
        beta = attend(f_a, f_b, b, block_mask=over_b, scale=1.0)
        alpha = attend(f_b, f_a, a, block_mask=over_a, scale=1.0)
        return beta.squeeze(1), alpha.squeeze(1)

    return align


def twice_varlen(case: Case, inputs: Inputs) -> Align:
    """FlashAttention on packed tokens, both ways. It wants all widths alike: values are widened with zeros, which is
    timed, for its user has to do it."""

    def attend(q: Tensor, k: Tensor, v: Tensor, at_q: Tensor, at_k: Tensor, m: int, n: int) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), at_q, at_k, m, n, scale=1.0).squeeze(1)

    return _twice_packed(case, inputs, attend)


def twice_jagged(case: Case, inputs: Inputs) -> Align:
    """scaled_dot_product_attention of jagged nested tensors, both ways; values widened and timed likewise."""

    def attend(q: Tensor, k: Tensor, v: Tensor, at_q: Tensor, at_k: Tensor, m: int, n: int) -> Tensor:
        def nested(t: Tensor, offsets: Tensor, longest: int) -> Tensor:
            lengths = {"min_seqlen": 0, "max_seqlen": longest}
            made = torch.nested.nested_tensor_from_jagged(t.unsqueeze(1), offsets, **lengths)
            return made.transpose(1, 2)

        out = F.scaled_dot_product_attention(nested(q, at_q, m), nested(k, at_k, n), nested(v, at_k, n), scale=1.0)
        return out.transpose(1, 2).values().squeeze(1)

    return _twice_packed(case, inputs, attend)


def _twice_packed(case: Case, inputs: Inputs, attend: Callable[..., Tensor]) -> Align:
    def align(f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        assert inputs.offsets is not None
        offset_a, offset_b = inputs.offsets

        def narrow(q: Tensor, k: Tensor, v: Tensor, *at: Any) -> Tensor:
            wide = F.pad(v, (0, k.shape[1] - v.shape[1]))
            return attend(q, k, wide, *at)[:, : v.shape[1]]

        beta = narrow(f_a, f_b, b, offset_a, offset_b, case.m, case.n)
        return beta, narrow(f_b, f_a, a, offset_b, offset_a, case.n, case.m)

    return align


def _coalign(case: Case, inputs: Inputs, backend: str | None) -> Align:
    if inputs.offsets is not None:
        offset_a, offset_b = inputs.offsets
        return lambda *x: coalign.soft_align_packed(*x, offset_a, offset_b, case.m, case.n, backend=backend)
    if inputs.lengths is not None:
        length_a, length_b = inputs.lengths
        return lambda *x: coalign.soft_align(*x, lengths_a=length_a, lengths_b=length_b, backend=backend)
    return lambda *x: coalign.soft_align(*x, backend=backend)
