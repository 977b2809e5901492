"""A frozen model's scores in C++ (csrc/cpu/frozen.h): tables of words, ids, and the layers behind them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import build

NAME = "native"
FINE, BAD_EXTENTS, BAD_IDS, BAD_SIZES = range(4)  # frozen.h's


def unsupported(table: Tensor) -> list[str]:
    """Why C++ can't serve this table."""
    if table.device.type != "cpu":
        return [f"the C++ kernels are for CPU tensors, not {table.device.type!r}"]
    if table.dtype not in (torch.float32, torch.bfloat16):
        return [f"frozen models run in C++ in float32 and bfloat16, not {table.dtype}"]
    reason = build.extension.reason()
    return [] if reason is None else [reason]


def pack(weight: Tensor, bias: Tensor) -> Tensor:
    """A layer's weight (out, in) and bias (out,), as this machine's kernels read them; not to be kept in files."""
    return torch.ops.coalign_native.frozen_pack.default(weight.contiguous(), bias.float().contiguous())


def scores(
    table: Tensor,
    ids_a: Tensor,
    ids_b: Tensor,
    extent_a: Tensor | None,
    extent_b: Tensor | None,
    layers: list[Tensor],
    classes: int,
) -> tuple[Tensor, int]:
    """Scores (pairs, classes) float32, and a status: FINE, or what is wrong with the values of the ids or extents.

    table: (words, 3 h), contiguous: what is compared in e, what a word adds to its own row, and what it gives others.
    ids: (pairs, rows), or packed (total,), int32 or int64, contiguous. extent: None, masks, lengths, or offsets where
    the ids are packed, contiguous. layers: packed, of g's second layer, the classifier's two and its scores.
    """
    return torch.ops.coalign_native.frozen_scores.default(table, ids_a, ids_b, extent_a, extent_b, *layers, classes)
