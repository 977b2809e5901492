"""Tables, made from stored results and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

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


class Ratio(NamedTuple):
    """One case in one direction, as text: the medians, and how many times as long the fastest peer takes."""

    case: str
    direction: str
    coalign: str
    fastest_peer: str
    ratio: str
    spread: str
    target: str
    memory: str


HEADINGS = Ratio("case", "pass", "coalign", "fastest peer", "ratio", "20–80 %", "target", "memory : peer's")


def ratios(lines: Iterable[dict[str, Any]]) -> list[Ratio]:
    """coalign against the fastest peer in each case and direction; the latest result of a kind counts."""
    groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["case"], line["direction"]), {})[line["contender"]] = line
    found = []
    for (case, direction), of in groups.items():
        peers = [name for name in of if name != "coalign"]
        if "coalign" not in of or not peers:
            continue
        name = min(peers, key=lambda peer: of[peer]["p50"])
        own, peer = of["coalign"], of[name]
        ratio = peer["p50"] / own["p50"]
        target = TARGETS[case][DIRECTIONS.index(direction)] if case in TARGETS else None
        found.append(
            Ratio(
                case,
                "both" if direction == "forward + backward" else direction,
                time(own["p50"]),
                f"{time(peer['p50'])} {name}",
                f"{ratio:.2f}",
                f"{peer['p20'] / own['p80']:.2f}–{peer['p80'] / own['p20']:.2f}",
                "" if target is None else f"{target:g} {'met' if ratio >= target else 'missed'}",
                f"{memory(own['memory'])} : {memory(peer['memory'])} MiB",
            )
        )
    return found


def table(rows: Iterable[Ratio]) -> Table:
    made = Table(*HEADINGS)
    for row in rows:
        made.add_row(*row)
    return made


def markdown(rows: Iterable[Ratio]) -> str:
    """The table for the README, which needs no targets."""
    keep = [i for i, name in enumerate(Ratio._fields) if name != "target"]
    lines = [HEADINGS, ["---"] * len(HEADINGS), *rows]
    return "\n".join("| " + " | ".join(line[i] for i in keep) + " |" for line in lines)


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
    return "?" if count is None else f"{count / 2**20:.1f}"
