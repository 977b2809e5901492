"""Tables, made from stored results and from nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from . import predict
from .contenders import TO_LONGEST
from .targets import share_of_floor, target


class Ratio(NamedTuple):
    """One case in one direction, as text: the medians, and how many times as long the fastest peer takes."""

    case: str
    direction: str
    coalign: str
    fastest_peer: str
    ratio: str
    longest: str
    spread: str
    target: str
    floor: str
    memory: str


HEADINGS = Ratio(
    "case", "pass", "coalign", "fastest peer", "ratio", "× longest", "20–80 %", "target", "of floor", "memory : peer's"
)


class Compared(NamedTuple):
    """What was measured of one case in one direction in one way: coalign's line and each peer's."""

    own: dict[str, Any]
    peers: dict[str, dict[str, Any]]

    @property
    def fastest(self) -> dict[str, Any]:
        """Of those that get what the case says: padded to its rows."""
        return min((line for name, line in self.peers.items() if name not in TO_LONGEST), key=lambda line: line["p50"])

    @property
    def to_longest(self) -> float | None:
        """The ratio where peers pad no further than the batch's longest sentences; None: not measured."""
        if not any(name in TO_LONGEST for name in self.peers):
            return None
        return min(line["p50"] for line in self.peers.values()) / self.own["p50"]

    @property
    def ratio(self) -> float:
        return self.fastest["p50"] / self.own["p50"]

    @property
    def target(self) -> float | None:
        return target(self.own["kind"], self.own["case"], self.own["direction"], self.own["graph"])


def runs(lines: Iterable[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], list[dict[str, dict[str, Any]]]]:
    """What was measured, without the contenders that were absent: for each of the values that lines have under these
    names, its runs in their order, and in each the line of every contender.

    A run is what took turns: its lines follow one another in the file, from one commit, command, day and device.
    """
    found: dict[tuple[Any, ...], list[dict[str, dict[str, Any]]]] = {}
    for line in lines:
        of = found.setdefault(tuple(line[name] for name in names), [])
        if not of or line["contender"] in of[-1] or _occasion(line) != _occasion(next(iter(of[-1].values()))):
            of.append({})
        of[-1][line["contender"]] = line
    return {key: [_present(run) for run in of] for key, of in found.items()}


def _occasion(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line.get(name) for name in ("commit", "command", "date", "device"))


def _present(run: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: line for name, line in run.items() if "absent" not in line}


def compared(lines: Iterable[dict[str, Any]]) -> list[Compared]:
    """coalign and its peers in the latest run of each kind; runs without a peer, or without coalign, are left out."""
    found = []
    for of in runs(lines, "case", "direction", "graph", "hot", "threads", "device").values():
        if complete := [run for run in of if "coalign" in run and len(run) > 1]:
            latest = complete[-1]
            found.append(Compared(latest["coalign"], {name: latest[name] for name in latest if name != "coalign"}))
    return found


def ratios(lines: Iterable[dict[str, Any]]) -> list[Ratio]:
    """coalign against the fastest peer in each case and direction."""
    found = compared(lines)
    rows = [_ratio(each) for each in found]
    told = distinctions([each.own for each in found])
    return [row._replace(direction=", ".join([row.direction, *of])) for row, of in zip(rows, told, strict=True)]


def distinctions(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    """For each of a table's lines what its row must say besides: threads and device, where the table has several."""
    several = [name for name in ("threads", "device") if len({line[name] for line in lines}) > 1]
    return [[_distinction(name, line[name]) for name in several] for line in lines]


def _distinction(name: str, value: Any) -> str:
    return f"{value} thread{'s' * (value != 1)}" if name == "threads" else str(value)


def _ratio(found: Compared) -> Ratio:
    own, peer = found.own, found.fastest
    how = [name for name in ("graph", "hot") if own[name]]
    return Ratio(
        own["case"],
        ", ".join(["both" if own["direction"] == "forward + backward" else own["direction"], *how]),
        time(own["p50"]),
        f"{time(peer['p50'])} {peer['contender']}{', once' * (len(peer['samples']) == 1)}",
        f"{found.ratio:.2f}",
        "" if found.to_longest is None else f"{found.to_longest:.2f}",
        f"{peer['p20'] / own['p80']:.2f}–{peer['p80'] / own['p20']:.2f}",
        _target(found),
        f"{own['floor'] / own['p50']:.2f}",
        f"{memory(own['memory'])} : {memory(peer['memory'])} MiB",
    )


def _target(found: Compared) -> str:
    """What became of the goal: a ratio, or a share of the floor."""
    own = found.own
    if found.target is not None:
        return verdict(f"{found.target:g}", found.ratio >= found.target)
    share = share_of_floor(own["kind"], own["case"], own["direction"], own["graph"])
    if share is None:
        return ""
    return verdict(f"{share:g} of floor", own["floor"] / own["p50"] >= share)


def verdict(goal: str, reached: bool) -> str:
    """What a table says of a goal."""
    return f"{goal} {'met' if reached else 'missed'}"


def heading(lines: Iterable[dict[str, Any]]) -> str:
    """Whose results these are, to stand above their table: processors differ in instructions, and so in all ratios."""
    return f"**{'; '.join(dict.fromkeys(line['device'] for line in lines))}**"


def as_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """For a terminal."""
    made = Table(*headings)
    for row in rows:
        made.add_row(*row)
    return made


def as_markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(rows: Iterable[Ratio]) -> Table:
    return as_table(HEADINGS, rows)


def markdown(rows: Iterable[Ratio]) -> str:
    """The table for the README, in fewer columns."""
    keep = [i for i, name in enumerate(Ratio._fields) if name not in ("target", "spread")]
    return as_markdown([HEADINGS[i] for i in keep], ([row[i] for i in keep] for row in rows))


PREDICTED = ("case", "pass", "kernel", "regs", "spill", "shared", "occup", "floor", "predicted", "measured", "of it")


def predicted(lines: Iterable[dict[str, Any]]) -> Table | None:
    """What was foreseen of each GPU case and what the compiler made of its kernels, beside what was measured."""
    made = Table(*PREDICTED)
    for found in compared(lines):
        own = found.own
        told = predict.stored(own.get("architecture", "")).get((own["case"], own["direction"]))
        if told is None or own["hot"]:
            continue
        seconds = told["graph" if own["graph"] else "calls"]
        kernels = told["kernels"]
        columns = ["\n".join(str(k[name]) for k in kernels) for name in PREDICTED_OF_KERNELS]
        how = ", graph" if own["graph"] else ""
        numbers = (time(told["floor"]), time(seconds), time(own["p50"]), f"{own['p50'] / seconds:.2f}")
        made.add_row(own["case"], own["direction"] + how, *columns, *numbers)
    return made if made.row_count else None


PREDICTED_OF_KERNELS = ("name", "registers", "spilled", "shared", "occupancy")


def scaling(lines: Iterable[dict[str, Any]]) -> Table | None:
    """The cost of a pair as pairs and threads become more, where that was measured."""
    table = Table("pairs", "direction", "threads", "per pair")
    for line in lines:
        if found := re.fullmatch(r"(\d+) pairs", line["case"]):
            table.add_row(found[1], line["direction"], str(line["threads"]), time(line["p50"] / int(found[1])))
    return table if table.row_count else None


def time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def memory(count: int | None) -> str:
    return "?" if count is None else f"{count / 2**20:.1f}"
