"""Nested tensors as packed rows: torch.nested's jagged layout already is values and offsets."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_MOST_ROWS = 2**31 - 1  # that int32 can count


class Packed(NamedTuple):
    """A side of nested operands: f (total, h), x (total, d), offsets (pairs + 1,) int32 and the longest pair's rows."""

    f: Tensor
    x: Tensor
    offsets: Tensor
    length: int


def is_nested(t: Tensor) -> bool:
    """Whether t is torch.nested's, in whichever layout."""
    return isinstance(t, Tensor) and (t.is_nested or t.layout is torch.jagged)


def packed(letter: str, f: Any, x: Any) -> Packed:
    """The rows of one side's two nested tensors, which must have the same lengths.

    Raises:
        TypeError: one is not nested, or in the strided layout.
        ValueError: dimensions, ragged dimension or lengths don't fit, or there are too many rows.
    """
    for name, t in ((f"f_{letter}", f), (letter, x)):
        if not is_nested(t):
            raise TypeError(f"{name} must be a nested tensor, for others are; nest all four or none")
        if t.layout is not torch.jagged:
            raise TypeError(
                f"{name} must have the layout torch.jagged: torch.nested.nested_tensor(..., layout=torch.jagged)"
            )
        if t.ndim != 3 or getattr(t, "_ragged_idx", 1) != 1:
            raise ValueError(f"{name} must be (batch, ragged, width), not {tuple(t.shape)}")
        if t.lengths() is not None:
            raise ValueError(
                f"{name} has gaps between its rows (torch.nested.narrow leaves them); use {name}.contiguous()"
            )
    offsets, others = f.offsets(), x.offsets()
    if offsets is not others:
        if offsets.shape != others.shape:
            raise ValueError(f"f_{letter} and {letter} must have as many sequences; they have {len(f)} and {len(x)}")
        if offsets.device.type == "cpu" and not torch.equal(offsets, others):
            raise ValueError(f"f_{letter} and {letter} must have the same lengths, sequence by sequence")
    length = getattr(f, "_maybe_max_seqlen", None)
    if length is None:
        length = int(offsets.diff().max()) if len(offsets) > 1 else 0
    if f.values().size(0) > _MOST_ROWS:
        raise ValueError(f"f_{letter} has {f.values().size(0)} rows; a batch may have {_MOST_ROWS}: divide it")
    return Packed(f.values(), x.values(), offsets.int(), int(length))


def jagged(rows: Tensor, like: Any) -> Tensor:
    """Rows (total, ...) nested as `like` is."""
    nested: Tensor = torch.nested.nested_tensor_from_jagged(
        rows,
        like.offsets(),
        min_seqlen=getattr(like, "_maybe_min_seqlen", None),
        max_seqlen=getattr(like, "_maybe_max_seqlen", None),
    )
    return nested
