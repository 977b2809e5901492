"""From two sides to kernel launches: layouts, outputs, tile choices. No autograd, no validation.

A `Launch` is a kernel with everything it is called with, so that the same code that runs on a device also says
what would run there (see report.py).
"""

from __future__ import annotations

from math import gcd
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..dropout import dropped
from ..problem import Alignment, AlignmentGrads, OperandGrads, Rule, Side
from . import choices
from .frozen_tile import frozen_sums
from .stream import stream_forward
from .stream_backward import stream_backward, stream_delta
from .tile import tile_forward
from .tile_backward import tile_backward


class Target(NamedTuple):
    """What a plan must know of the device: whether TF32 is allowed, a program's shared memory in bytes, and the
    architecture by name, for which tile choices may have been measured."""

    tf32: bool
    shared: int
    architecture: str = ""


class Launch(NamedTuple):
    """A kernel, its grid, its arguments by name (tensors and numbers), and its constants."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    choice: choices.Choice

    def run(self) -> None:
        self.kernel[self.grid](
            **self.arguments,
            **self.constants,
            **self.choice.blocks,
            num_warps=self.choice.num_warps,
            num_stages=self.choice.num_stages,
            enable_fp_fusion=True,
        )


def plan_forward(a: Side, b: Side, bias: Tensor | None, rule: Rule, target: Target) -> tuple[list[Launch], Alignment]:
    """The launches that fill an alignment, and the alignment."""
    arguments, constants = _operands(a, b, bias, rule, target)
    found = Alignment(
        beta=a.x.new_empty(*a.f.shape[:-1], b.x.shape[-1]),
        alpha=b.x.new_empty(*b.f.shape[:-1], a.x.shape[-1]),
        lse_a=a.f.new_empty(a.f.shape[:-1], dtype=torch.float32),
        lse_b=b.f.new_empty(b.f.shape[:-1], dtype=torch.float32),
    )
    arguments |= {f"p_{name}": t for name, t in found._asdict().items()}
    h, d = a.f.shape[-1], max(a.x.shape[-1], b.x.shape[-1])
    kind = choices.arithmetic(a.f.dtype, target.tf32)
    longest = max(a.length, b.length)
    if longest <= choices.TILE_FORWARD_MAX:
        choice = choices.tile(longest, _ragged(a, b), h, d, kind, backward=False, architecture=target.architecture)
        return [Launch(tile_forward, (a.pairs,), arguments, constants, choice)], found
    choice = choices.stream(h, d, kind, target.shared, backward=False, architecture=target.architecture)
    chunks = triton.cdiv(d, choice.blocks["BLOCK_D"])
    return [Launch(stream_forward, (_stream_programs(a, b, choice), chunks), arguments, constants, choice)], found


def plan_backward(
    a: Side,
    b: Side,
    bias: Tensor | None,
    rule: Rule,
    saved: Alignment,
    grads: AlignmentGrads,
    bias_grad: bool,
    target: Target,
) -> tuple[list[Launch], OperandGrads]:
    """The launches that fill the operands' gradients, and the gradients."""
    arguments, constants = _operands(a, b, bias, rule, target)
    saved = Alignment(*(t.contiguous() for t in saved))
    dbeta, dalpha, dlse_a, dlse_b = (g if g is None else g.contiguous() for g in grads)
    dbias = bias.new_zeros(bias.shape, dtype=torch.float32) if bias is not None and bias_grad else None
    dfa, dfb, da, db = (t.new_empty(t.shape) for t in (a.f, b.f, a.x, b.x))
    found = OperandGrads(dfa, dfb, da, db, dbias)
    nothing = a.f  # stands in for a tensor that is not there; no kernel looks at it
    constants["HAS_DBIAS"] = found.bias is not None
    has_dlse = {"HAS_DLSE_A": dlse_a is not None, "HAS_DLSE_B": dlse_b is not None}
    arrived = {
        "p_dbeta": dbeta,
        "p_dalpha": dalpha,
        "p_dlse_a": nothing if dlse_a is None else dlse_a,
        "p_dlse_b": nothing if dlse_b is None else dlse_b,
    }
    arguments |= {
        "p_lse_a": saved.lse_a,
        "p_lse_b": saved.lse_b,
        "p_dfa": found.f_a,
        "p_dfb": found.f_b,
        "p_da": found.a,
        "p_db": found.b,
        "p_dbias": nothing if found.bias is None else found.bias,
    }
    h, d = a.f.shape[-1], max(a.x.shape[-1], b.x.shape[-1])
    kind = choices.arithmetic(a.f.dtype, target.tf32)
    longest = max(a.length, b.length)
    if longest <= choices.TILE_BACKWARD_MAX:
        choice = choices.tile(longest, _ragged(a, b), h, d, kind, backward=True, architecture=target.architecture)
        return [Launch(tile_backward, (a.pairs,), arguments | arrived, constants | has_dlse, choice)], found

    delta_a, delta_b = torch.empty_like(saved.lse_a), torch.empty_like(saved.lse_b)
    delta_choice = choices.delta(d)
    rows = delta_choice.blocks["BLOCK_R"]
    total_a, total_b = saved.lse_a.numel(), saved.lse_b.numel()
    delta = Launch(
        stream_delta,
        (triton.cdiv(total_a, rows) + triton.cdiv(total_b, rows),),
        arrived
        | {"p_beta": saved.beta, "p_alpha": saved.alpha, "p_delta_a": delta_a, "p_delta_b": delta_b}
        | {"total_a": total_a, "total_b": total_b},
        has_dlse | {"D_A": a.x.shape[-1], "D_B": b.x.shape[-1]},
        delta_choice,
    )
    arguments |= {"p_dbeta": dbeta, "p_dalpha": dalpha, "p_delta_a": delta_a, "p_delta_b": delta_b}
    choice = choices.stream(h, d, kind, target.shared, backward=True, architecture=target.architecture)
    chunks = max(triton.cdiv(h, choice.blocks["BLOCK_H"]), triton.cdiv(d, choice.blocks["BLOCK_D"]))
    sweep = Launch(stream_backward, (_stream_programs(a, b, choice), chunks), arguments, constants, choice)
    return [delta, sweep], found


def plan_frozen(
    table: Tensor,
    ids: tuple[Tensor, Tensor],
    offsets: tuple[Tensor, Tensor],
    weight: Tensor,
    bias: Tensor,
    most: int,
    target: Target,
) -> tuple[list[Launch], Tensor]:
    """The launches that fill the sums (pairs, 2 h) of a frozen model's packed pairs, and the sums.

    most: tokens of the pair that has most, both sides together, at most the largest of choices.frozen_tiles.
    """
    h, pairs = weight.shape[0], offsets[0].shape[0] - 1
    kind = choices.arithmetic(table.dtype, target.tf32)
    sums = bias.new_empty(pairs, 2 * h)
    arguments = {
        "p_table": table,
        "p_ids_a": ids[0],
        "p_ids_b": ids[1],
        "p_offsets_a": offsets[0],
        "p_offsets_b": offsets[1],
        "p_weight": weight,
        "p_bias": bias,
        "p_sums": sums,
        "pairs": pairs,
        "words": table.shape[0],
    }
    constants = {"H": h, **_arithmetic(table, target)}
    launches: list[Launch] = []
    shorter = 0
    for tile in choices.frozen_tiles(kind, target.shared):
        if most > shorter or shorter == 0:
            owned = choices.frozen_owned(pairs)
            choice = choices.frozen(tile, h, kind, target.architecture)
            with_own = arguments | {"owned": owned}, constants | {"SHORTER": shorter}
            launches.append(Launch(frozen_sums, (triton.cdiv(pairs, owned),), *with_own, choice))
        shorter = tile
    return launches, sums


def _operands(
    a: Side, b: Side, bias: Tensor | None, rule: Rule, target: Target
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments and constants that forward and backward kernels share."""
    packed = a.kind == "offsets"
    inner = 1 if packed or a.f.ndim == 3 else a.f.shape[-3]
    arguments: dict[str, Any] = {"rows_a": a.length, "rows_b": b.length, "inner": inner}
    p, q = dropped(rule.dropout_a), dropped(rule.dropout_b)
    arguments |= {
        "scale": rule.scale,
        "clamp": 0.0 if rule.clamp is None else rule.clamp,
        "p_seed": a.f if rule.seed is None else rule.seed,
        **{"least_p": p.least, "least_q": q.least, "factor_p": p.factor, "factor_q": q.factor},
    }
    constants: dict[str, Any] = {
        "H": a.f.shape[-1],
        "D_A": a.x.shape[-1],
        "D_B": b.x.shape[-1],
        "KIND_A": a.kind,
        "KIND_B": b.kind,
        "HAS_BIAS": bias is not None,
        "CLAMPED": rule.clamp is not None,
        "DROPS": rule.seed is not None,
        **_arithmetic(a.f, target),
    }
    for name, t in (("fa", a.f), ("fb", b.f), ("a", a.x), ("b", b.x)):
        t = t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()
        outer_stride, inner_stride = _pair_strides(t, packed)
        unit = gcd(outer_stride, inner_stride, 16)
        arguments |= {
            f"p_{name}": t,
            f"s_{name}_outer": outer_stride // unit,
            f"s_{name}_inner": inner_stride // unit,
        }
        constants |= {f"ROW_{name.upper()}": t.stride(-2), f"UNIT_{name.upper()}": unit}
    for name, side in (("a", a), ("b", b)):
        arguments[f"p_extent_{name}"] = side.f if side.extent is None else side.extent.contiguous()
    bias_strides = (0, 0, 0, 0)
    if bias is not None:
        bias_strides = (*_pair_strides(bias, packed), bias.stride(-2), bias.stride(-1))
    arguments["p_bias"] = a.f if bias is None else bias
    names = ("s_bias_outer", "s_bias_inner", "s_bias_m", "s_bias_n")
    arguments |= dict(zip(names, bias_strides, strict=True))
    return arguments, constants


def _arithmetic(t: Tensor, target: Target) -> dict[str, Any]:
    """What blocks.dot must know to multiply such numbers."""
    upcast = bool(triton.knobs.runtime.interpret) and t.dtype == torch.bfloat16
    return {"PRECISION": "tf32" if target.tf32 else "ieee", "UPCAST": upcast}


def _pair_strides(t: Tensor, packed: bool) -> tuple[int, int]:
    """Elements from a pair to the next, over the first batch dimension and over the second (heads)."""
    if packed:
        return 0, 0
    return (t.stride(0), t.stride(1)) if t.ndim == 4 else (t.stride(0), 0)


def _ragged(a: Side, b: Side) -> bool:
    return a.extent is not None or b.extent is not None


def _stream_programs(a: Side, b: Side, choice: choices.Choice) -> int:
    block = choice.blocks["BLOCK_M"]
    return a.pairs * (triton.cdiv(a.length, block) + triton.cdiv(b.length, block))
