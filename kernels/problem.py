"""What a call is: the two sides as operands, and the description that backends decide from.

The operator is symmetric. Swap the two sides and transpose the bias, and α becomes β. So everything below
the public functions speaks of two `Side`s, never of eight loose tensors.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Extent = Literal["full", "mask", "lengths", "offsets"]
MOST_ROWS = 2**63 - 1  # that a pair may be said to have: what operators and kernels can be told


class Side(NamedTuple):
    """One of the two sequences of every pair.

    f: (*batch, rows, h), or (total, h) when packed: what the scores are made of.
    x: (*batch, rows, d), or (total, d): the values that the other side receives.
    extent: which rows are tokens: None (all), bool (*batch, rows), integers (*batch,) or, packed,
        integer offsets (pairs + 1,).
    length: rows per pair; when packed, the rows of the longest pair.
    """

    f: Tensor
    x: Tensor
    extent: Tensor | None
    length: int

    @property
    def kind(self) -> Extent:
        if self.extent is None:
            return "full"
        if self.extent.dtype == torch.bool:
            return "mask"
        return "offsets" if self.f.ndim == 2 and self.extent.ndim == 1 else "lengths"

    def keep(self) -> Tensor | None:
        """Which rows of a padded side are tokens: (*batch, rows) bool, or None where all are."""
        if self.extent is None or self.kind == "mask":
            return self.extent
        return torch.arange(self.length, device=self.f.device) < self.extent.unsqueeze(-1)

    @property
    def pairs(self) -> int:
        if self.f.ndim == 2:
            assert self.extent is not None
            return self.extent.shape[0] - 1
        return self.f.shape[:-2].numel()


class Rule(NamedTuple):
    """How scores are made of products, and what happens to weights.

    scale: a factor on f_a · f_b. clamp: what is held within ±clamp after it, or None. dropout_a, dropout_b: the share
    of P's and of Q's weights that are dropped (see `dropout`). seed: () int64 on the operands' device, where any are.
    """

    scale: float = 1.0
    clamp: float | None = None
    dropout_a: float = 0.0
    dropout_b: float = 0.0
    seed: Tensor | None = None


PLAIN = Rule()


class Alignment(NamedTuple):
    """What a forward pass gives: beta like f_a's rows, d_b wide; alpha like f_b's rows, d_a wide; LSEs."""

    beta: Tensor
    alpha: Tensor
    lse_a: Tensor
    lse_b: Tensor


def sum_dtype(f: Tensor) -> torch.dtype:
    """What scores, LSEs and the bias' gradient are kept in."""
    return torch.float64 if f.dtype == torch.float64 else torch.float32


class AlignmentGrads(NamedTuple):
    """Gradients that arrive: for beta and alpha always, for the LSEs where they were used."""

    beta: Tensor
    alpha: Tensor
    lse_a: Tensor | None
    lse_b: Tensor | None


class OperandGrads(NamedTuple):
    """Gradients that leave. bias: (*batch, m, n) where it was asked for, in the dtype of the LSEs."""

    f_a: Tensor
    f_b: Tensor
    a: Tensor
    b: Tensor
    bias: Tensor | None


class Problem(NamedTuple):
    """A call without its data: all that dispatch and `unsupported` look at."""

    device: torch.device
    dtype: torch.dtype
    pairs: int
    length_a: int
    length_b: int
    width: int
    width_a: int
    width_b: int
    extent_a: Extent
    extent_b: Extent
    bias: bool
    backward: bool

    @classmethod
    def of(cls, a: Side, b: Side, bias: Tensor | None, backward: bool = False) -> Problem:
        f, shape = a.f, a.f.shape
        return cls(
            f.device,
            f.dtype,
            shape[0] if len(shape) == 3 else a.pairs,  # this runs in every call, hence the short cuts
            a.length,
            b.length,
            shape[-1],
            a.x.shape[-1],
            b.x.shape[-1],
            "full" if a.extent is None else a.kind,
            "full" if b.extent is None else b.kind,
            bias is not None,
            backward,
        )

    @property
    def packed(self) -> bool:
        return self.extent_a == "offsets"

    def __str__(self) -> str:
        layout = "packed" if self.packed else f"{self.extent_a} x {self.extent_b}"
        return (
            f"{'backward' if self.backward else 'forward'}, {self.pairs} pairs of up to "
            f"{self.length_a} x {self.length_b} ({layout}), h={self.width}, d_a={self.width_a}, "
            f"d_b={self.width_b}, {str(self.dtype).removeprefix('torch.')} on {self.device}"
            f"{', bias' if self.bias else ''}"
        )
