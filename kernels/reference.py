"""The operator in plain PyTorch: the oracle that every other backend is held to.

Any device, any floating dtype (half precision is computed in float32), differentiable to any order. It
stores e, so it needs O(m n) memory; a packed call is padded first.

    e_ij = scale * f_a_i · f_b_j + bias_ij         over the tokens i of side a and j of side b
    P = softmax of e over j,  β = P b,  lse_a_i = log Σ_j exp e_ij
    Q = softmax of e over i,  α = Qᵀ a,  lse_b_j = log Σ_i exp e_ij

Backward, with δ_i = Σ_j P_ij dP_ij − dlse_a_i and γ_j = Σ_i Q_ij dQ_ij − dlse_b_j:

    dP = dβ bᵀ,  dQ = a dαᵀ,  de = P∘(dP − δ) + Q∘(dQ − γ)
    df_a = scale de f_b,  df_b = scale deᵀ f_a,  db = Pᵀ dβ,  da = Q dα,  dbias = de

With dropout, P and Q stand multiplied by their `dropout.factors` wherever they weigh values, and dP and dQ are
multiplied by them too. With a clamp, the product is held within it before the bias is added, and passes no gradient
where it is beyond.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from . import autocast
from .dropout import factors
from .problem import Alignment, AlignmentGrads, OperandGrads, Problem, Rule, Side

name = "reference"


def unsupported(problem: Problem) -> list[str]:
    """Nothing: the reference serves every valid call."""
    return []


def forward(a: Side, b: Side, bias: Tensor | None, rule: Rule) -> Alignment:
    with autocast.off(a.f.device.type):
        if a.kind == "offsets":
            a, b = _within_rows(a), _within_rows(b)
            padded = _forward(_pad(a), _pad(b), bias, rule)
            unpack_a, unpack_b = _unpacker(a), _unpacker(b)
            return Alignment(*(u(t) for u, t in zip((unpack_a, unpack_b) * 2, padded, strict=True)))
        return _forward(a, b, bias, rule)


def backward(
    a: Side, b: Side, bias: Tensor | None, rule: Rule, saved: Alignment, grads: AlignmentGrads, bias_grad: bool
) -> OperandGrads:
    with autocast.off(a.f.device.type):
        if a.kind == "offsets":
            a, b = _within_rows(a), _within_rows(b)
            padded_a, padded_b = _pad(a), _pad(b)
            keep_a, keep_b = padded_a.keep(), padded_b.keep()
            assert keep_a is not None
            assert keep_b is not None
            padded_saved = Alignment(
                beta=_pad_rows(saved.beta, a),
                alpha=_pad_rows(saved.alpha, b),
                # past a pair's end stand another's, NaN perhaps: there is nothing to sum, as in a padded call
                lse_a=_pad_rows(saved.lse_a, a).masked_fill(~keep_a, -torch.inf),
                lse_b=_pad_rows(saved.lse_b, b).masked_fill(~keep_b, -torch.inf),
            )
            padded_grads = AlignmentGrads(
                beta=_pad_rows(grads.beta, a),
                alpha=_pad_rows(grads.alpha, b),
                lse_a=None if grads.lse_a is None else _pad_rows(grads.lse_a, a),
                lse_b=None if grads.lse_b is None else _pad_rows(grads.lse_b, b),
            )
            padded = _backward(padded_a, padded_b, bias, rule, padded_saved, padded_grads, False)
            unpack_a, unpack_b = _unpacker(a), _unpacker(b)
            return OperandGrads(
                unpack_a(padded.f_a), unpack_b(padded.f_b), unpack_a(padded.a), unpack_b(padded.b), None
            )
        return _backward(a, b, bias, rule, saved, grads, bias_grad)


def weights(a: Side, b: Side, bias: Tensor | None, rule: Rule, log: bool = False) -> tuple[Tensor, Tensor]:
    """P and Q of two padded sides, (*batch, m, n) each, in the dtype of the LSEs; or logarithms, nothing dropped."""
    with autocast.off(a.f.device.type):
        e = _scores(a, b, a.keep(), b.keep(), bias, rule)
        if e.numel() == 0:
            return e, e
        (p, lse_a), (q, lse_b) = _softmax(e, -1), _softmax(e, -2)
        if log:
            return e - _closed(lse_a).unsqueeze(-1), e - _closed(lse_b).unsqueeze(-2)
        kept_p, kept_q = _factors(e, rule)
        return _dropped(p, kept_p), _dropped(q, kept_q)


def _forward(a: Side, b: Side, bias: Tensor | None, rule: Rule) -> Alignment:
    dtype = a.f.dtype
    keep_a, keep_b = a.keep(), b.keep()
    e = _scores(a, b, keep_a, keep_b, bias, rule)
    p, lse_a = _softmax(e, -1)
    q, lse_b = _softmax(e, -2)
    kept_p, kept_q = _factors(e, rule)
    p, q = _dropped(p, kept_p), _dropped(q, kept_q)
    beta = p @ _tokens(b.x, keep_b)
    alpha = q.mT @ _tokens(a.x, keep_a)
    # p and q are 0 there, but 0 * NaN is not: of values of tokens here, of arriving gradients in autograd
    beta, alpha = _tokens(beta, keep_a), _tokens(alpha, keep_b)
    return Alignment(beta.to(dtype), alpha.to(dtype), lse_a, lse_b)


def _backward(
    a: Side, b: Side, bias: Tensor | None, rule: Rule, saved: Alignment, grads: AlignmentGrads, bias_grad: bool
) -> OperandGrads:
    dtype = a.f.dtype
    keep_a, keep_b = a.keep(), b.keep()
    e = _scores(a, b, keep_a, keep_b, bias, rule)
    p = torch.exp(e - _closed(saved.lse_a).unsqueeze(-1))
    q = torch.exp(e - _closed(saved.lse_b).unsqueeze(-2))
    kept_p, kept_q = _factors(e, rule)
    dbeta, dalpha = _tokens(grads.beta, keep_a), _tokens(grads.alpha, keep_b)
    dp = _dropped(dbeta @ _tokens(b.x, keep_b).mT, kept_p)
    dq = _dropped(_tokens(a.x, keep_a) @ dalpha.mT, kept_q)
    delta = (p * dp).sum(-1, keepdim=True)
    gamma = (q * dq).sum(-2, keepdim=True)
    if grads.lse_a is not None:
        delta = delta - _tokens(grads.lse_a.unsqueeze(-1), keep_a)
    if grads.lse_b is not None:
        gamma = gamma - _tokens(grads.lse_b.unsqueeze(-1), keep_b).mT
    de = p * (dp - delta) + q * (dq - gamma)
    dbias = _tokens(de, keep_a) if bias is not None and bias_grad else None
    if dbias is not None and keep_b is not None:
        dbias = dbias.masked_fill(~keep_b.unsqueeze(-2), 0)
    dproduct = rule.scale * de
    if rule.clamp is not None:
        dproduct = dproduct.masked_fill(_products(a, b, keep_a, keep_b, rule).abs() > rule.clamp, 0)
    return OperandGrads(
        f_a=_tokens(dproduct @ _tokens(b.f, keep_b), keep_a).to(dtype),
        f_b=_tokens(dproduct.mT @ _tokens(a.f, keep_a), keep_b).to(dtype),
        a=_tokens(_dropped(q, kept_q) @ dalpha, keep_a).to(dtype),
        b=_tokens(_dropped(p, kept_p).mT @ dbeta, keep_b).to(dtype),
        bias=dbias,
    )


def _tokens(x: Tensor, keep: Tensor | None) -> Tensor:
    """x in the computing dtype, its padding replaced by 0, so that a NaN there meets no arithmetic."""
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return x if keep is None else x.masked_fill(~keep.unsqueeze(-1), 0)


def _products(a: Side, b: Side, keep_a: Tensor | None, keep_b: Tensor | None, rule: Rule) -> Tensor:
    e = _tokens(a.f, keep_a) @ _tokens(b.f, keep_b).mT
    return e if rule.scale == 1.0 else rule.scale * e


def _scores(a: Side, b: Side, keep_a: Tensor | None, keep_b: Tensor | None, bias: Tensor | None, rule: Rule) -> Tensor:
    e = _products(a, b, keep_a, keep_b, rule)
    if rule.clamp is not None:
        e = e.clamp(-rule.clamp, rule.clamp)
    if bias is not None:
        e = e + bias
    if keep_a is not None:
        e = e.masked_fill(~keep_a.unsqueeze(-1), -torch.inf)
    if keep_b is not None:
        e = e.masked_fill(~keep_b.unsqueeze(-2), -torch.inf)
    return e


def _factors(e: Tensor, rule: Rule) -> tuple[Tensor | None, Tensor | None]:
    """What the dropout multiplies P and Q by, in the shape and dtype of e."""
    if rule.seed is None:
        return None, None
    found = factors(rule, prod(e.shape[:-2]), *e.shape[-2:])
    p, q = (t if t is None else t.reshape(e.shape).to(e.dtype) for t in found)
    return p, q


def _dropped(weights: Tensor, kept: Tensor | None) -> Tensor:
    return weights if kept is None else weights * kept


def _softmax(e: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Softmax and log-sum-exp over dim, where a slice of nothing but -inf gives weights 0 and LSE -inf."""
    nothing = type(e.shape[dim]) is int and e.shape[dim] == 0  # which has no maximum
    shift = e.detach().sum(dim, keepdim=True) if nothing else e.detach().amax(dim, keepdim=True)
    shift = shift.masked_fill(shift == -torch.inf, 0)
    weights = torch.exp(e - shift)
    total = weights.sum(dim, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1)
    lse = (shift + torch.log(total)).masked_fill(empty, -torch.inf)
    return weights / total, lse.squeeze(dim)


def _closed(lse: Tensor) -> Tensor:
    """The LSE with +inf where there was nothing to sum, so that exp(e - lse) is 0 there and not NaN."""
    return lse.masked_fill(lse == -torch.inf, torch.inf)


def _within_rows(side: Side) -> Side:
    """The packed side, its longest pair no longer than all pairs together: more would only be padding."""
    rows, length = side.f.shape[0], side.length
    return side._replace(length=min(length, rows)) if type(rows) is type(length) is int else side


def _pad(side: Side) -> Side:
    """A packed side as a padded one with lengths."""
    assert side.extent is not None
    lengths = side.extent.diff()
    return Side(_pad_rows(side.f, side), _pad_rows(side.x, side), lengths, side.length)


def _pad_rows(packed: Tensor, side: Side) -> Tensor:
    """(total, ...) to (pairs, length, ...); rows past a pair's end hold some other pair's finite data or 0."""
    assert side.extent is not None
    index = side.extent[:-1, None] + torch.arange(side.length, device=packed.device)
    if type(packed.shape[0]) is int and packed.shape[0] == 0:
        return packed.sum(0).expand(*index.shape, *packed.shape[1:])
    return packed[index.clamp(max=packed.shape[0] - 1)]


def _unpacker(side: Side) -> Callable[[Tensor], Tensor]:
    """The function that takes (pairs, length, ...) back to (total, ...), from offsets alone and without a sync."""
    assert side.extent is not None
    row = torch.arange(side.f.shape[0], device=side.f.device, dtype=side.extent.dtype)
    pair = torch.searchsorted(side.extent[1:].contiguous(), row, right=True).clamp(max=side.pairs - 1)
    place = (row - side.extent[pair]).clamp(max=side.length - 1)
    return lambda padded: padded[pair, place]
