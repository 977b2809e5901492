"""Counting what matters in NVIDIA machine code, as cuobjdump and nvdisasm print it."""

from __future__ import annotations

import re
from typing import NamedTuple

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", re.MULTILINE)
_MATRIX = re.compile(r"HMMA|HGMMA|UTC\w*MMA|UTCHMMA|OMMA|QMMA")


class Counts(NamedTuple):
    """A kernel's instructions: all, those of tensor cores, those for local memory (spills), and traps."""

    instructions: int
    matrix: int
    local: int
    traps: int


def count(code: str) -> Counts:
    """Count the instructions of one kernel's disassembly."""
    names = _INSTRUCTION.findall(code)
    return Counts(
        instructions=len(names),
        matrix=sum(bool(_MATRIX.match(name)) for name in names),
        local=sum(name.startswith(("LDL", "STL")) for name in names),
        traps=sum("TRAP" in name for name in names),
    )


def resources(usage: str) -> tuple[int, int]:
    """Registers and bytes of stack a thread, from one kernel's line of `cuobjdump --dump-resource-usage`."""
    found = dict(re.findall(r"\b(REG|STACK):(\d+)", usage))
    return int(found["REG"]), int(found["STACK"])
