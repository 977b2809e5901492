"""Whether coalign became slower from one result file to another, or the machine was only in another mood."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from statistics import NormalDist, median
from typing import Any, NamedTuple

from .report import Compared, compared, distinctions

LEAST = 1.15  # of the medians: between two runs of unchanged code they were seen to differ by 1.13
PROBABILITY = 0.01
RULE = f"a change has p below {PROBABILITY:g} and a factor of at least {LEAST:g}: smaller ones were seen with no cause"


class Change(NamedTuple):
    """How many times as long a case takes now, how probable it is to see such samples if nothing had changed, and the
    smallest probability that so many samples can have.

    The probability takes rounds as independent. Those of one run are not, for a whole run's level shifts against
    another's: so a change must have a factor of at least LEAST too.
    """

    case: str
    direction: str
    factor: float
    probability: float
    smallest: float

    @property
    def verdict(self) -> str:
        if self.smallest >= PROBABILITY:
            return "too few samples"
        if self.probability >= PROBABILITY or 1 / LEAST < self.factor < LEAST:
            return "as before"
        return "SLOWER" if self.factor > 1 else "faster"


def changes(before: Iterable[dict[str, Any]], after: Iterable[dict[str, Any]]) -> list[Change]:
    """For every case that both have with a peer in common. Times are taken in units of those peers' in the same run,
    which had the same machine in the same mood."""
    earlier = {_key(found): found for found in compared(before)}
    pairs = [(earlier[_key(found)], found) for found in compared(after) if _key(found) in earlier]
    pairs = [(one, other) for one, other in pairs if one.peers.keys() & other.peers.keys()]
    told = distinctions([found.own for _, found in pairs])
    return [_change(*pair, extra) for pair, extra in zip(pairs, told, strict=True)]


def _change(before: Compared, after: Compared, told: list[str]) -> Change:
    common = before.peers.keys() & after.peers.keys()
    then, now = (_relative(found, common) for found in (before, after))
    own = after.own
    n, m = len(then), len(now)
    return Change(
        own["case"],
        ", ".join([own["direction"], *(name for name in ("graph", "hot") if own[name]), *told]),
        median(now) / median(then),
        mann_whitney(then, now),
        mann_whitney(range(n), range(n, n + m)),
    )


def mann_whitney(x: Sequence[float], y: Sequence[float]) -> float:
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


def _relative(found: Compared, peers_of_both: Set[str]) -> list[float]:
    peers = median([found.peers[name]["p50"] for name in peers_of_both])
    return [t / peers for t in found.own["samples"]]
