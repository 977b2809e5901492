"""The oracle: each pair alone, its real tokens only, with torch.softmax and autograd.

It knows of no mask, no padding and no trick, and shares no code with the backends. In float64 it is the truth;
in a lower dtype it is what plain PyTorch makes of the same call.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from .cases import Operands

OUTPUTS = ("beta", "alpha", "lse_a", "lse_b")


def run(operands: Operands, backend: str | None = None) -> dict[str, Tensor]:
    """The operator's four outputs, and the gradients of its operands under `operands.upstream`.

    Keys: beta, alpha, lse_a, lse_b, grad_f_a, grad_f_b, grad_a, grad_b and, with a bias, grad_bias.
    """
    leaves = operands.differentiable()
    call: Any = kernels.soft_align_packed if operands.packed else kernels.soft_align
    outputs = call(**leaves, **operands.options, return_lse=True, backend=backend)
    return _with_gradients(outputs, leaves, operands)


def pair_by_pair(operands: Operands, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The same outputs and gradients as `run`'s, from a plain loop over pairs on the CPU, in a dtype."""
    leaves = {name: t.detach().cpu().to(dtype).requires_grad_() for name, t in operands.differentiable().items()}
    case = operands.case
    pairs = len(operands.places_a)
    flat = {k: leaves[k].reshape(-1, leaves[k].shape[-1]) for k in ("f_a", "f_b", "a", "b")}
    bias = leaves.get("bias")
    if bias is not None:
        bias = bias.expand(*case.batch, case.m, case.n).reshape(pairs, case.m, case.n)
    starts_a = _starts(operands.places_a, case.m, operands.packed)
    starts_b = _starts(operands.places_b, case.n, operands.packed)
    beta = torch.zeros(flat["f_a"].shape[0], case.d_b, dtype=dtype)
    alpha = torch.zeros(flat["f_b"].shape[0], case.d_a, dtype=dtype)
    lse_a = torch.full((len(beta),), -torch.inf, dtype=dtype)
    lse_b = torch.full((len(alpha),), -torch.inf, dtype=dtype)
    for pair, (place_a, place_b) in enumerate(zip(operands.places_a, operands.places_b, strict=True)):
        i, j = starts_a[pair] + place_a, starts_b[pair] + place_b
        e = case.scale * (flat["f_a"][i] @ flat["f_b"][j].T)
        if case.clamp is not None:
            e = e.clamp(-case.clamp, case.clamp)
        if bias is not None:
            e = e + bias[pair][place_a][:, place_b]
        some_i, some_j = (e > -torch.inf).any(1), (e > -torch.inf).any(0)  # the others align with nothing
        if not some_i.any():
            continue
        i, j, e = i[some_i], j[some_j], e[some_i][:, some_j]
        kept_p, kept_q = (k[some_i][:, some_j].to(dtype) for k in _kept(operands, pair, place_a, place_b))
        beta = beta.index_put((i,), (torch.softmax(e, 1) * kept_p) @ flat["b"][j])
        alpha = alpha.index_put((j,), (torch.softmax(e, 0) * kept_q).T @ flat["a"][i])
        lse_a = lse_a.index_put((i,), torch.logsumexp(e, 1))
        lse_b = lse_b.index_put((j,), torch.logsumexp(e, 0))
    rows_a, rows_b = leaves["f_a"].shape[:-1], leaves["f_b"].shape[:-1]
    outputs = (
        beta.reshape(*rows_a, case.d_b),
        alpha.reshape(*rows_b, case.d_a),
        lse_a.reshape(rows_a),
        lse_b.reshape(rows_b),
    )
    return _with_gradients(outputs, leaves, operands)


def _kept(operands: Operands, pair: int, place_a: Tensor, place_b: Tensor) -> tuple[Tensor, Tensor]:
    """What the dropout multiplies the two weight matrices of a pair by, place by place; see kernels/dropout.py."""
    case = operands.case
    shares = case.dropout if isinstance(case.dropout, tuple) else (case.dropout, case.dropout)
    found = []
    for side, share in enumerate(shares):
        factors = torch.ones(len(place_a), len(place_b), dtype=torch.float64)
        if share > 0:
            bits = int(operands.options["seed"]) % 2**64
            key = _lowbias32((bits >> 32) ^ _lowbias32((bits + 0x9E3779B9 * (side + 1)) % 2**32))
            key = _lowbias32(key ^ pair)
            for r, i in enumerate(place_a.tolist()):
                row = _lowbias32((key + i) % 2**32)
                for c, j in enumerate(place_b.tolist()):
                    stays = _lowbias32((_lowbias32(row ^ j) + key) % 2**32) / 2**32 >= share
                    factors[r, c] = 1 / (1 - share) if stays and share < 1 else 0.0
        found.append(factors)
    return found[0], found[1]


def _lowbias32(x: int) -> int:
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def _with_gradients(outputs: tuple[Tensor, ...], leaves: dict[str, Tensor], operands: Operands) -> dict[str, Tensor]:
    inputs = list(leaves.values())
    live = [(o, g.to(o)) for o, g in zip(outputs, operands.upstream, strict=True) if o.requires_grad]
    if live:
        gradients = torch.autograd.grad([o for o, _ in live], inputs, [g for _, g in live], materialize_grads=True)
    else:  # there was nothing to align
        gradients = tuple(torch.zeros_like(t) for t in inputs)
    named = dict(zip(OUTPUTS, (o.detach() for o in outputs), strict=True))
    return named | {f"grad_{name}": g for name, g in zip(leaves, gradients, strict=True)}


def _starts(places: list[Tensor], rows: int, packed: bool) -> list[int]:
    """Each pair's first row among all rows."""
    return [0, *accumulate(len(p) if packed else rows for p in places)][: len(places)]
