"""The model in plain PyTorch, as the book writes it, with masks: what the fast path is compared with.

A mask is (batch, length) bool, True for a token, or None where every position is one. `backend="reference"`
selects these functions everywhere in the model.

d2l, "Natural Language Inference: Using Attention"; Parikh et al. 2016, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def attend(f: nn.Module, A: Tensor, B: Tensor, mask_a: Tensor | None, mask_b: Tensor | None) -> tuple[Tensor, Tensor]:
    """beta (batch, m, d): B aligned to each word of A. alpha (batch, n, d): A aligned to each word of B."""
    p, q = weights(f, A, B, mask_a, mask_b)
    return p @ keep(B, mask_b), q.mT @ keep(A, mask_a)


def weights(f: nn.Module, A: Tensor, B: Tensor, mask_a: Tensor | None, mask_b: Tensor | None) -> tuple[Tensor, Tensor]:
    """The softmax of e over B's words and over A's words, both (batch, m, n)."""
    e = f(keep(A, mask_a)) @ f(keep(B, mask_b)).mT
    for mask in (None if mask_a is None else mask_a.unsqueeze(-1), None if mask_b is None else mask_b.unsqueeze(-2)):
        if mask is not None:
            e = e.masked_fill(~mask, -torch.inf)
    return _softmax(e, -1), _softmax(e, -2)


def intra_attend(f: nn.Module, A: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, m, d): each word's own sentence aligned to it. bias: broadcastable to (batch, m, m)."""
    A = keep(A, mask)
    e = f(A) @ f(A).mT + bias
    if mask is not None:
        e = e.masked_fill(~(mask.unsqueeze(-1) & mask.unsqueeze(-2)), -torch.inf)
    return _softmax(e, -1) @ A


def compare(
    g: nn.Module,
    A: Tensor,
    B: Tensor,
    beta: Tensor,
    alpha: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sums over words of g([A; beta]) and of g([B; alpha]), (batch, hidden) each."""
    v_a = g(torch.cat([keep(A, mask_a), beta], dim=-1))
    v_b = g(torch.cat([keep(B, mask_b), alpha], dim=-1))
    return keep(v_a, mask_a).sum(dim=1), keep(v_b, mask_b).sum(dim=1)


def keep(x: Tensor, mask: Tensor | None) -> Tensor:
    """x with its padding replaced by 0, so that whatever is there (NaN too) reaches neither sums nor gradients."""
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)


def _softmax(e: Tensor, dim: int) -> Tensor:
    """Softmax whose slices of nothing but -inf are 0."""
    nothing = (e == -torch.inf).all(dim, keepdim=True)
    return torch.softmax(e.masked_fill(nothing, 0), dim).masked_fill(nothing, 0)
