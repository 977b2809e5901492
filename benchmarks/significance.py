"""Whether coalign became slower from one result file to another, or the machine was only in another mood."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import NormalDist, median
from typing import Any, NamedTuple

from .report import Compared, compared

LEAST = 1.03  # a change smaller than that is none
PROBABILITY = 0.01


class Change(NamedTuple):
    """How many times as long a case takes now, and how probable it is to see such samples if nothing had changed."""

    case: str
    direction: str
    factor: float
    probability: float

    @property
    def verdict(self) -> str:
        if self.probability >= PROBABILITY or 1 / LEAST < self.factor < LEAST:
            return "as before"
        return "SLOWER" if self.factor > 1 else "faster"


def changes(before: Iterable[dict[str, Any]], after: Iterable[dict[str, Any]]) -> list[Change]:
    """For every case that both have. Times are taken in units of the peers' in the same run, which had the same
    machine in the same mood."""
    earlier = {_key(found): found for found in compared(before)}
    return [
        Change(
            found.own["case"],
            found.own["direction"],
            median(now) / median(then),
            mann_whitney(then, now),
        )
        for found in compared(after)
        if _key(found) in earlier
        for then, now in [(_relative(earlier[_key(found)]), _relative(found))]
    ]


def mann_whitney(x: list[float], y: list[float]) -> float:
    """The two-sided probability that samples of one distribution differ so much in rank (normal approximation)."""
    merged = sorted([(v, 0) for v in x] + [(v, 1) for v in y])
    ranks, ties, at = 0.0, 0.0, 0
    while at < len(merged):
        end = at
        while end < len(merged) and merged[end][0] == merged[at][0]:
            end += 1
        ranks += sum(of == 0 for _, of in merged[at:end]) * (at + end + 1) / 2  # alike values share their mean rank
        ties += (end - at) ** 3 - (end - at)
        at = end
    n, m, total = len(x), len(y), len(merged)
    deviation = ranks - n * (n + 1) / 2 - n * m / 2
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    z = max(0.0, abs(deviation) - 0.5) / variance**0.5
    return 2 * (1 - NormalDist().cdf(z))


def _key(found: Compared) -> tuple[Any, ...]:
    return tuple(found.own[name] for name in ("case", "direction", "graph", "hot", "threads", "device"))


def _relative(found: Compared) -> list[float]:
    peers = median([line["p50"] for line in found.peers.values()])
    return [t / peers for t in found.own["samples"]]
