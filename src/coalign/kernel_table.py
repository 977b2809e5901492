"""The compiled kernels as a table: registers, spills, memory, matrix instructions, occupancy."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.progress import track
from rich.table import Table


def report(architectures: Sequence[str], only: str, as_json: bool, console: Console) -> bool:
    """Compile the kernels whose name or arithmetic contains `only`, and print what became of them.

    Returns:
        Whether all are without fault.

    Raises:
        ImportError: Triton is not installed.
        ValueError: an architecture that is not known.
    """
    from .kernels.triton.report import ARCHITECTURES, cases, compile_case

    if unknown := set(architectures) - set(ARCHITECTURES):
        raise ValueError(f"{', '.join(sorted(unknown))} is none of {', '.join(ARCHITECTURES)}")
    work = [
        (case, ARCHITECTURES[name])
        for name in architectures
        for case in cases(ARCHITECTURES[name])
        if only in f"{case.name} {case.arithmetic}"
    ]
    progress = track(work, "compiling", console=console, transient=True, disable=as_json)
    found = [compile_case(case, architecture) for case, architecture in progress]
    rows = [
        {
            "kernel": c.case.name,
            "arithmetic": c.case.arithmetic,
            "architecture": c.architecture.name,
            "warps": c.case.launch.choice.num_warps,
            "registers": c.registers,
            "spilled": c.spilled,
            "shared": c.shared,
            "matrix": c.matrix,
            "instructions": c.instructions,
            "occupancy": round(c.occupancy, 2),
            "faults": c.faults(),
        }
        for c in found
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _print(rows, console)
    return not any(row["faults"] for row in rows)


def _print(rows: list[dict], console: Console) -> None:
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        caption="spilled and shared: bytes a program; matrix: tensor-core instructions; occupancy: an estimate",
    )
    headers = ("kernel", "math", "arch", "warps", "regs", "spill", "shared", "matrix", "instr", "occup")
    for place, name in enumerate(headers):
        table.add_column(name, no_wrap=True, justify="right" if place > 2 else "left")
    for row in rows:
        style = "red" if row["faults"] else "yellow" if row["spilled"] else ""
        table.add_row(*(str(value) for name, value in row.items() if name != "faults"), style=style)
    console.print(table)
    for row in rows:
        for fault in row["faults"]:
            console.print(f"[red]{row['kernel']}, {row['arithmetic']}, {row['architecture']}: {fault}")
