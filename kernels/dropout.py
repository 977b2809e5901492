"""Which weights a dropout keeps: a hash of their place and a seed, so that no pass stores a mask.

A weight's place is its pair, its row i of side a and its row j of side b, padding counted; P (side 0) and Q (side 1)
drop by themselves. All backends hash alike, so one may serve the forward pass and another the backward pass. With
`mix`, Wellons' 32-bit "lowbias32", and sums and products modulo 2^32:

    key  = mix(high ^ mix(low + 0x9e3779b9 (side + 1)))         high, low: the halves of the seed
    of a pair: pair = mix(key ^ pair)        of a row: row = mix(pair + i)
    kept where mix(mix(row ^ j) + pair) >> 1  >=  least,  least = dropout * 2^31
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .problem import Rule

_WORD = 0xFFFFFFFF


class Dropped(NamedTuple):
    """A weight is kept where its hash is `least` or more, and then multiplied by `factor`."""

    least: int
    factor: float


def dropped(share: float) -> Dropped:
    """What kernels need to know of a dropout: 31 bits of it, and 1 / (1 - dropout); 0 where nothing is kept."""
    return Dropped(min(int(share * 2**31), 2**31 - 1), 0.0 if share >= 1 else 1.0 / (1.0 - share))


def factors(rule: Rule, pairs: int, m: int, n: int) -> tuple[Tensor | None, Tensor | None]:
    """What P's and Q's weights (pairs, m, n) are multiplied by, float64; None where nothing is dropped."""
    assert rule.seed is not None
    device = rule.seed.device
    pair = torch.arange(pairs, device=device)[:, None, None]
    i, j = torch.arange(m, device=device)[:, None], torch.arange(n, device=device)
    low, high = rule.seed & _WORD, rule.seed >> 32 & _WORD
    found: list[Tensor | None] = []
    for side, share in enumerate((rule.dropout_a, rule.dropout_b)):
        if share == 0:
            found.append(None)
            continue
        of_pair = _mix(_mix(high ^ _mix(low + 0x9E3779B9 * (side + 1) & _WORD)) ^ pair)
        place = _mix(_mix(_mix(of_pair + i & _WORD) ^ j) + of_pair & _WORD)
        least, factor = dropped(share)
        found.append((place >> 1 >= least) * torch.full((), factor, dtype=torch.float64, device=device))
    return found[0], found[1]


def _mix(x: Tensor) -> Tensor:
    """lowbias32 of 32-bit words in int64, whose products may wrap: their low halves are right."""
    x = x ^ x >> 16
    x = x * 0x7FEB352D & _WORD
    x = x ^ x >> 15
    x = x * 0x846CA68B & _WORD
    return x ^ x >> 16
