"""Tables, made from stored results and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table

# What the C++ kernels are to reach: the fastest peer's time in units of coalign's, forward and forward + backward.
TARGETS = {
    "d2l full": (1.5, 1.3),
    "SNLI padded": (8, 5.5),
    "SNLI packed": (12, 10),
    "SNLI padded bfloat16": (8, 5.5),
    "SNLI packed bfloat16": (8, 5.5),
    "stream": (1.9, 2.0),
    "stream bfloat16": (3, 3),
    "one pair 15 x 8": (1.5, 1.3),
    "one pair 50 x 50": (1.5, 1.3),
}
DIRECTIONS = ("forward", "forward + backward")


def ratios(lines: Iterable[dict[str, Any]]) -> Table:
    """One row a case and direction: coalign's time, the fastest peer's, their ratio beside the target."""
    table = Table("case", "direction", "coalign", "fastest peer", "ratio", "target", "20 % to 80 %", "memory")
    groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for line in lines:  # a later result replaces an earlier one of the same kind
        groups.setdefault((line["case"], line["direction"]), {})[line["contender"]] = line
    for (case, direction), found in groups.items():
        peers = {name: line for name, line in found.items() if name != "coalign"}
        if "coalign" not in found or not peers:
            continue
        own = found["coalign"]
        name = min(peers, key=lambda peer: peers[peer]["p50"])
        peer = peers[name]
        ratio = peer["p50"] / own["p50"]
        target = TARGETS[case][DIRECTIONS.index(direction)] if case in TARGETS else None
        table.add_row(
            case,
            direction,
            time(own["p50"]),
            f"{time(peer['p50'])} {name}",
            f"{ratio:.2f}",
            "" if target is None else f"{target:g} {'met' if ratio >= target else 'missed'}",
            f"{peer['p20'] / own['p80']:.2f} to {peer['p80'] / own['p20']:.2f}",
            f"{memory(own['memory'])} : {memory(peer['memory'])}",
        )
    return table


def scaling(lines: Iterable[dict[str, Any]]) -> Table:
    """The cost of a pair as pairs and threads become more."""
    table = Table("pairs", "direction", "threads", "per pair")
    for line in lines:
        if line["case"].endswith(" pairs"):
            pairs = int(line["case"].split()[0])
            table.add_row(str(pairs), line["direction"], str(line["threads"]), time(line["p50"] / pairs))
    return table


def time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def memory(count: int | None) -> str:
    return "?" if count is None else f"{count / 2**20:.1f} MiB"
