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
    """A kernel, its grid, arguments by name (tensors and numbers; it takes those that it knows), and its constants."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    choice: choices.Choice

    def run(self) -> Any:
        """What Triton compiled for it; None of the interpreter."""
        return self.kernel[self.grid](
            **{name: value for name, value in self.arguments.items() if name in self.kernel.arg_names},
            **self.constants,
            **self.choice.blocks,
            num_warps=self.choice.num_warps,
            num_stages=self.choice.num_stages,
            enable_fp_fusion=True,
        )


def given_tensors(a: Side, b: Side, bias: Tensor | None, rule: Rule) -> dict[str, Tensor | None]:
    """What a call brings along, by the kernels' names."""
    return {
        **{"p_fa": a.f, "p_fb": b.f, "p_a": a.x, "p_b": b.x, "p_extent_a": a.extent, "p_extent_b": b.extent},
        **{"p_bias": bias, "p_seed": rule.seed},
    }


def forward_tensors(found: Alignment) -> dict[str, Tensor]:
    """What a forward pass writes, by the kernels' names."""
    return {"p_beta": found.beta, "p_alpha": found.alpha, "p_lse_a": found.lse_a, "p_lse_b": found.lse_b}


def backward_tensors(
    saved: Alignment, grads: AlignmentGrads, found: OperandGrads, deltas: Deltas | None
) -> dict[str, Tensor | None]:
    """What a backward pass reads and writes besides what it was given, by the kernels' names."""
    delta_a, delta_b = deltas or (None, None)
    return {
        **forward_tensors(saved),
        **{"p_dbeta": grads.beta, "p_dalpha": grads.alpha, "p_dlse_a": grads.lse_a, "p_dlse_b": grads.lse_b},
        **{"p_dfa": found.f_a, "p_dfb": found.f_b, "p_da": found.a, "p_db": found.b, "p_dbias": found.bias},
        **{"p_delta_a": delta_a, "p_delta_b": delta_b},
    }


def room_forward(a: Side, b: Side) -> Alignment:
    """An alignment to be filled."""
    rows_a, rows_b = a.f.shape[:-1], b.f.shape[:-1]  # given as a shape, and not as numbers, they take twice as long
    return Alignment(
        beta=a.x.new_empty(*rows_a, b.x.shape[-1]),
        alpha=b.x.new_empty(*rows_b, a.x.shape[-1]),
        lse_a=a.f.new_empty(*rows_a, dtype=torch.float32),
        lse_b=b.f.new_empty(*rows_b, dtype=torch.float32),
    )


def within_rows(side: Side) -> Side:
    """The packed side, its longest pair said to be no longer than all pairs together, rounded up: callers may say any
    larger number, of whose programs a grid holds only so many. Rounded, so that other totals are launched alike."""
    most = max(choices.TILE_FORWARD_MAX, 1 << side.f.shape[0].bit_length())
    return side if side.length <= most else side._replace(length=most)


def plan_forward(a: Side, b: Side, bias: Tensor | None, rule: Rule, found: Alignment, target: Target) -> list[Launch]:
    """The launches that fill an alignment."""
    arguments, constants = _operands(a, b, bias, rule, target)
    arguments |= forward_tensors(found)
    h, d = a.f.shape[-1], max(a.x.shape[-1], b.x.shape[-1])
    kind = choices.arithmetic(a.f.dtype, target.tf32)
    longest = max(a.length, b.length)
    if longest <= choices.TILE_FORWARD_MAX:
        choice = choices.tile(longest, _ragged(a, b), h, d, kind, backward=False, architecture=target.architecture)
        return [Launch(tile_forward, (a.pairs,), arguments, constants, choice)]
    choice = choices.stream(h, d, kind, target.shared, backward=False, architecture=target.architecture)
    chunks = triton.cdiv(d, choice.blocks["BLOCK_D"])
    return [Launch(stream_forward, (_stream_programs(a, b, choice), chunks), arguments, constants, choice)]


class Deltas(NamedTuple):
    """Room that the stream kernels' backward pass needs: a number for every row of either side."""

    a: Tensor
    b: Tensor


def room_backward(
    a: Side, b: Side, bias: Tensor | None, saved: Alignment, bias_grad: bool
) -> tuple[OperandGrads, Deltas | None]:
    """Gradients to be filled, and room for deltas where they are needed."""
    dbias = bias.new_zeros(bias.shape, dtype=torch.float32) if bias is not None and bias_grad else None
    dfa, dfb, da, db = (t.new_empty(*t.shape) for t in (a.f, b.f, a.x, b.x))
    streams = max(a.length, b.length) > choices.TILE_BACKWARD_MAX
    deltas = Deltas(torch.empty_like(saved.lse_a), torch.empty_like(saved.lse_b)) if streams else None
    return OperandGrads(dfa, dfb, da, db, dbias), deltas


def plan_backward(
    a: Side,
    b: Side,
    bias: Tensor | None,
    rule: Rule,
    saved: Alignment,
    grads: AlignmentGrads,
    found: OperandGrads,
    deltas: Deltas | None,
    target: Target,
) -> list[Launch]:
    """The launches that fill the operands' gradients; saved and grads are contiguous."""
    arguments, constants = _operands(a, b, bias, rule, target)
    nothing = a.f  # stands in for a tensor that is not there; no kernel looks at it
    tensors = backward_tensors(saved, grads, found, deltas)
    arguments |= {name: nothing if t is None else t for name, t in tensors.items()}
    constants["HAS_DBIAS"] = found.bias is not None
    has_dlse = {"HAS_DLSE_A": grads.lse_a is not None, "HAS_DLSE_B": grads.lse_b is not None}
    h, d = a.f.shape[-1], max(a.x.shape[-1], b.x.shape[-1])
    kind = choices.arithmetic(a.f.dtype, target.tf32)
    if deltas is None:
        longest, ragged = max(a.length, b.length), _ragged(a, b)
        choice = choices.tile(longest, ragged, h, d, kind, backward=True, architecture=target.architecture)
        return [Launch(tile_backward, (a.pairs,), arguments, constants | has_dlse, choice)]

    delta_choice = choices.delta(d)
    rows = delta_choice.blocks["BLOCK_R"]
    total_a, total_b = saved.lse_a.numel(), saved.lse_b.numel()
    delta = Launch(
        stream_delta,
        (triton.cdiv(total_a, rows) + triton.cdiv(total_b, rows),),
        arguments | {"total_a": total_a, "total_b": total_b},
        has_dlse | {"D_A": a.x.shape[-1], "D_B": b.x.shape[-1]},
        delta_choice,
    )
    choice = choices.stream(h, d, kind, target.shared, backward=True, architecture=target.architecture)
    chunks = max(triton.cdiv(h, choice.blocks["BLOCK_H"]), triton.cdiv(d, choice.blocks["BLOCK_D"]))
    sweep = Launch(stream_backward, (_stream_programs(a, b, choice), chunks), arguments, constants, choice)
    return [delta, sweep]


def frozen_tensors(
    table: Tensor,
    ids: tuple[Tensor, Tensor],
    offsets: tuple[Tensor, Tensor],
    weight: Tensor,
    bias: Tensor,
    sums: Tensor,
) -> dict[str, Tensor | None]:
    """What a frozen model's kernel reads and writes, by its own names."""
    return {
        "p_table": table,
        "p_ids_a": ids[0],
        "p_ids_b": ids[1],
        "p_offsets_a": offsets[0],
        "p_offsets_b": offsets[1],
        "p_weight": weight,
        "p_bias": bias,
        "p_sums": sums,
    }


def room_frozen(weight: Tensor, bias: Tensor, offsets: tuple[Tensor, Tensor]) -> Tensor:
    """A frozen model's sums to be filled: (pairs, 2 h)."""
    return bias.new_empty(offsets[0].shape[0] - 1, 2 * weight.shape[0])


def plan_frozen(
    table: Tensor,
    ids: tuple[Tensor, Tensor],
    offsets: tuple[Tensor, Tensor],
    weight: Tensor,
    bias: Tensor,
    most: int,
    sums: Tensor,
    target: Target,
) -> list[Launch]:
    """The launches that fill the sums of a frozen model's packed pairs.

    most: tokens of the pair that has most, both sides together, at most the largest of choices.frozen_tiles.
    """
    h, pairs = weight.shape[0], offsets[0].shape[0] - 1
    target = target._replace(tf32=choices.frozen_tf32(target.tf32, h))
    kind = choices.arithmetic(table.dtype, target.tf32)
    tensors = frozen_tensors(table, ids, offsets, weight, bias, sums)
    arguments = {**tensors, "pairs": pairs, "words": table.shape[0]}
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
    return launches


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
        arguments[f"p_extent_{name}"] = a.f if side.extent is None else side.extent.contiguous()
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
