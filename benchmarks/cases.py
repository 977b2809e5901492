"""What is measured: sizes, dtypes, lengths; and the inputs made from them. `suites.py` lists the cases.

Lengths of real sentences are drawn from `snli_lengths.csv`, which counts the pairs of SNLI's development set (those
with a label, 9,842) by the lengths of premise and hypothesis in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One size of the operator.

    lengths: "full" (every row a token), "snli" (real sentences' lengths, cut to m and n rows), or "half" (between
        half and all of the rows).
    packed: whether coalign gets the tokens packed; the peers, which know no such thing, get them padded and masked.
    tf32: whether float32 may be multiplied as TF32, on GPUs that can.
    """

    name: str
    pairs: int
    m: int
    n: int
    h: int = 200
    d: int = 100
    dtype: torch.dtype = torch.float32
    lengths: Literal["full", "snli", "half"] = "full"
    packed: bool = False
    tf32: bool = False

    @property
    def size(self) -> str:
        dtype = "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")
        return f"{self.pairs} x {self.m} x {self.n}, h={self.h}, d={self.d}, {dtype}"


@dataclass
class Inputs:
    """Inputs of a case, padded; with lengths also masks, and packed where the case says so."""

    padded: list[Tensor]
    lengths: tuple[Tensor, Tensor] | None = None
    masks: tuple[Tensor, Tensor] | None = None
    packed: list[Tensor] | None = None
    offsets: tuple[Tensor, Tensor] | None = None

    @property
    def tokens(self) -> list[Tensor]:
        """f_a, f_b, a, b as coalign takes them in this case."""
        return self.padded if self.packed is None else self.packed

    def to_longest(self) -> Inputs:
        """Padded to the longest sentences only, as who pads batch by batch has them. Inputs with lengths."""
        assert self.lengths is not None
        assert self.masks is not None
        m, n = (int(length.max()) for length in self.lengths)
        padded = [t[:, :rows].contiguous() for t, rows in zip(self.padded, (m, n, m, n), strict=False)]
        return Inputs(padded, self.lengths, (self.masks[0][:, :m], self.masks[1][:, :n]))


@lru_cache(maxsize=1)  # a case is measured in several ways, one after another
def inputs_of(case: Case, sets: int, device: str) -> list[Inputs]:
    """So many inputs of a case, which nobody changes."""
    return [make(case, seed, device) for seed in range(sets)]


def make(case: Case, seed: int = 0, device: torch.device | str = "cpu") -> Inputs:
    """Inputs of the case on a device; the same for the same seed. No number is a special one: data of zeros lets
    processors run faster than real data does."""
    made = _make(case, seed)
    if torch.device(device).type == "cpu":
        return made

    def moved(tensors):
        return None if tensors is None else type(tensors)(t.to(device) for t in tensors)

    return Inputs(*(moved(getattr(made, own.name)) for own in fields(made)))


def _make(case: Case, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    size_f, size_x = case.h**-0.25, 1.0  # scores of order 1, as a trained model's are
    shapes = ((case.m, case.h, size_f), (case.n, case.h, size_f), (case.m, case.d, size_x), (case.n, case.d, size_x))
    if case.lengths == "full":
        made = (torch.randn(case.pairs, rows, w, generator=generator) * size for rows, w, size in shapes)
        return Inputs([t.to(case.dtype) for t in made])
    lengths = (len_a, len_b) = lengths_of(case)
    masks = (torch.arange(case.m) < len_a[:, None], torch.arange(case.n) < len_b[:, None])
    kept = (masks[0], masks[1], masks[0], masks[1])
    if not case.packed:
        made = (torch.randn(case.pairs, rows, w, generator=generator) * size for rows, w, size in shapes)
        return Inputs([t.to(case.dtype) for t in made], lengths, masks)
    packed = [
        (torch.randn(int(keep.sum()), w, generator=generator) * size).to(case.dtype)
        for keep, (_, w, size) in zip(kept, shapes, strict=True)
    ]
    offsets = tuple(torch.nn.functional.pad(length.cumsum(0), (1, 0)).int() for length in lengths)
    padded = []
    if case.pairs * case.m * case.h <= 1 << 27:  # the peers' form; too large to make for the longest series
        for t, keep, (rows, w, _) in zip(packed, kept, shapes, strict=True):
            whole = torch.zeros(case.pairs, rows, w, dtype=case.dtype)
            whole[keep] = t
            padded.append(whole)
    return Inputs(padded, lengths, masks, packed, (offsets[0], offsets[1]))


def lengths_of(case: Case) -> tuple[Tensor, Tensor]:
    """How many tokens each pair has on either side; the same for all inputs of a case."""
    if case.lengths == "full":
        return torch.full((case.pairs,), case.m), torch.full((case.pairs,), case.n)
    if case.lengths == "snli":
        return snli_lengths(case.pairs, case.m, case.n, seed=0)
    generator = torch.Generator().manual_seed(0)
    len_a, len_b = (torch.randint((k + 1) // 2, k + 1, (case.pairs,), generator=generator) for k in (case.m, case.n))
    return len_a, len_b


def snli_lengths(pairs: int, m: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Lengths of so many premises and hypotheses, drawn together."""
    counted = _counted_lengths()
    drawn = np.random.default_rng(seed).choice(len(counted), size=pairs, p=counted[:, 2] / counted[:, 2].sum())
    lengths = torch.from_numpy(counted[drawn, :2].copy())
    return lengths[:, 0].clamp(max=m), lengths[:, 1].clamp(max=n)


@cache
def _counted_lengths() -> np.ndarray:
    return np.loadtxt(Path(__file__).with_name("snli_lengths.csv"), delimiter=",", skiprows=1, dtype=np.int64)
