"""A call of the operator as a description, and the seeded operands that it describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

Extent = Literal["full", "lengths", "mask", "packed"]
Strides = Literal["contiguous", "heads", "sliced", "columns", "expanded"]
Bias = Literal["none", "full", "shared", "rows"]


@dataclass(frozen=True)
class Case:
    """A call of the operator, without its data.

    m, n, h, d_a, d_b, batch: the shapes, as `coalign.soft_align` names them.
    tokens_a, tokens_b: how many tokens each pair has (one number a pair, in batch order); None: all m or n.
    extent_a, extent_b: how the call says so. "mask" scatters the tokens (see also `prefix`); "packed" (both
        sides, one batch dimension) stores them without padding.
    prefix: masks have their tokens at the start, as lengths would.
    magnitude: the standard deviation of the scores.
    clamp, dropout: as `coalign.soft_align` names them, dropout with a seed of its own.
    bias: "full" is (*batch, m, n); "shared" is (m, n), one for all pairs; "rows" is (*batch, m, 1).
    forbid: the share of pairings that the bias forbids by -inf.
    strides: how operands lie in memory. "heads": (batch, length, heads, width) transposed; "sliced": a slice
        of a wider tensor; "columns": a last dimension that is not contiguous; "expanded": one item, repeated.
    """

    name: str
    m: int
    n: int
    h: int = 8
    d_a: int = 6
    d_b: int = 5
    batch: tuple[int, ...] = (2,)
    dtype: torch.dtype = torch.float32
    tokens_a: tuple[int, ...] | None = None
    tokens_b: tuple[int, ...] | None = None
    extent_a: Extent = "full"
    extent_b: Extent = "full"
    prefix: bool = False
    scale: float = 1.0
    magnitude: float = 1.0
    clamp: float | None = None
    dropout: float | tuple[float, float] = 0.0
    bias: Bias = "none"
    bias_dtype: torch.dtype | None = None
    forbid: float = 0.0
    strides: Strides = "contiguous"
    seed: int = 0

    def but(self, **changes: Any) -> Case:
        """The same case but for some fields."""
        return replace(self, **changes)

    def operands(self, device: torch.device | str = "cpu") -> Operands:
        """Seeded operands, the same on every device.

        Padding holds NaN and infinities, in operands, bias and upstream gradients alike: nothing of it may
        show anywhere.
        """
        draw = torch.Generator().manual_seed(self.seed)
        pairs = prod(self.batch)
        packed = self.extent_a == "packed"
        if packed != (self.extent_b == "packed") or (packed and len(self.batch) != 1):
            raise ValueError("both sides are packed, with one batch dimension, or none is")
        places_a = _places(self.tokens_a, self.m, pairs, self.extent_a, self.prefix, draw)
        places_b = _places(self.tokens_b, self.n, pairs, self.extent_b, self.prefix, draw)
        rows_a = (sum(map(len, places_a)),) if packed else (*self.batch, self.m)
        rows_b = (sum(map(len, places_b)),) if packed else (*self.batch, self.n)

        def normal(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

        spread = (self.magnitude / (abs(self.scale or 1.0) * self.h**0.5)) ** 0.5
        f_a, f_b = normal(*rows_a, self.h) * spread, normal(*rows_b, self.h) * spread
        a, b = normal(*rows_a, self.d_a), normal(*rows_b, self.d_b)
        lse_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        upstream = (
            normal(*rows_a, self.d_b),
            normal(*rows_b, self.d_a),
            normal(*rows_a, dtype=lse_dtype),
            normal(*rows_b, dtype=lse_dtype),
        )
        bias = None
        if self.bias != "none":
            shape = {"full": (*rows_a, self.n), "shared": (self.m, self.n), "rows": (*rows_a, 1)}[self.bias]
            bias = normal(*shape, dtype=self.bias_dtype or self.dtype)
            bias[torch.rand(bias.shape, generator=draw) < self.forbid] = -torch.inf
        if not packed and self.strides != "expanded":
            padding_a, padding_b = (~_mask(p, r, self.batch) for p, r in ((places_a, self.m), (places_b, self.n)))
            for t in (f_a, a, upstream[0], upstream[2]):
                _poison(t, padding_a)
            for t in (f_b, b, upstream[1], upstream[3]):
                _poison(t, padding_b)
            if bias is not None and self.bias == "full":
                _poison(bias, padding_a.unsqueeze(-1) | padding_b.unsqueeze(-2))

        options: dict[str, Any] = {"scale": self.scale}
        if self.clamp is not None:
            options["clamp"] = self.clamp
        if self.dropout != 0:
            seed = torch.randint(-(1 << 63), (1 << 63) - 1, (), generator=draw)
            options |= {"dropout": self.dropout, "seed": seed.to(device)}
        for letter, extent, places, rows in (
            ("a", self.extent_a, places_a, self.m),
            ("b", self.extent_b, places_b, self.n),
        ):
            counts = [len(p) for p in places]
            if extent == "mask":
                options[f"mask_{letter}"] = _mask(places, rows, self.batch).to(device)
            elif extent == "lengths":
                options[f"lengths_{letter}"] = torch.tensor(counts, device=device).reshape(self.batch)
            elif extent == "packed":
                offsets = [0, *accumulate(counts)]
                options[f"offsets_{letter}"] = torch.tensor(offsets, dtype=torch.int32, device=device)
                options[f"max_length_{letter}"] = max(counts, default=0)
        return Operands(
            case=self,
            f_a=_lay_out(f_a.to(device), self.strides),
            f_b=_lay_out(f_b.to(device), self.strides),
            a=_lay_out(a.to(device), self.strides),
            b=_lay_out(b.to(device), self.strides),
            bias=None if bias is None else bias.to(device),
            options=options,
            upstream=tuple(t.to(device) for t in upstream),
            places_a=places_a,
            places_b=places_b,
        )


@dataclass(frozen=True, eq=False)
class Operands:
    """What a case describes.

    options: the call's other arguments. upstream: gradients for beta, alpha, lse_a and lse_b.
    places_a, places_b: for each pair, which of its rows are tokens.
    """

    case: Case
    f_a: Tensor
    f_b: Tensor
    a: Tensor
    b: Tensor
    bias: Tensor | None
    options: dict[str, Any]
    upstream: tuple[Tensor, ...]
    places_a: list[Tensor]
    places_b: list[Tensor]

    @property
    def packed(self) -> bool:
        return self.case.extent_a == "packed"

    def differentiable(self) -> dict[str, Tensor]:
        """f_a, f_b, a, b and, where there is one, bias: as leaves that require grad, strides kept."""
        named = {"f_a": self.f_a, "f_b": self.f_b, "a": self.a, "b": self.b}
        if self.bias is not None:
            named["bias"] = self.bias
        return {name: t.detach().requires_grad_() for name, t in named.items()}

    def padding(self, letter: str) -> Tensor | None:
        """(*batch, rows) bool, True where side a or b has no token; None when packed."""
        if self.packed:
            return None
        places, rows = (self.places_a, self.case.m) if letter == "a" else (self.places_b, self.case.n)
        return ~_mask(places, rows, self.case.batch)


def _places(
    tokens: Sequence[int] | None, rows: int, pairs: int, extent: Extent, prefix: bool, draw: torch.Generator
) -> list[Tensor]:
    """For each pair, the rows that are tokens, ascending."""
    counts = [rows] * pairs if tokens is None else list(tokens)
    if (
        len(counts) != pairs
        or any(not 0 <= c <= rows for c in counts)
        or (extent == "full" and any(c != rows for c in counts))
    ):
        raise ValueError(f"{pairs} pairs of {rows} rows ({extent}) can't have {counts} tokens")
    if extent == "mask" and not prefix:
        return [torch.randperm(rows, generator=draw)[:c].sort().values for c in counts]
    return [torch.arange(c) for c in counts]


def _mask(places: Sequence[Tensor], rows: int, batch: tuple[int, ...]) -> Tensor:
    mask = torch.zeros(len(places), rows, dtype=torch.bool)
    for row, place in zip(mask, places, strict=True):
        row[place] = True
    return mask.reshape(*batch, rows)


def _poison(t: Tensor, where: Tensor) -> None:
    """Fill t there with NaN, infinity and the largest number, in turns."""
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.finfo(t.dtype).max], dtype=t.dtype)
    t[where] = bad.repeat(t[where].numel() // 4 + 1)[: t[where].numel()].reshape(t[where].shape)


def _lay_out(t: Tensor, strides: Strides) -> Tensor:
    """The same values (but when expanded) in another layout."""
    if strides == "heads":
        return t.transpose(-3, -2).contiguous().transpose(-3, -2)
    if strides == "sliced":
        wide = t.new_full((*t.shape[:-1], t.shape[-1] + 3), torch.nan)
        wide[..., 2:-1] = t
        return wide[..., 2:-1]
    if strides == "columns":
        return t.mT.contiguous().mT
    if strides == "expanded":
        return t[:1].expand(t.shape)
    return t
