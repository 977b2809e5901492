"""The compiled kernels, Triton's and CUDA's, as a table: registers, spills, memory, matrix instructions, occupancy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from .kernels.native import report as cuda

Row = dict[str, Any]


def report(architectures: Sequence[str], only: str, as_json: bool, console: Console) -> bool:
    """Compile the kernels whose name or arithmetic contains `only`, and print what became of them.

    Kernels of a compiler that is missing are left out, with a note.

    Returns:
        Whether all are without fault.

    Raises:
        ImportError: neither Triton nor nvcc is installed.
        ValueError: an architecture that is not known.
    """
    notes = []
    try:
        from .kernels.triton.report import ARCHITECTURES as FOR_TRITON
    except ImportError as error:
        FOR_TRITON = {}
        notes.append(f"without the Triton kernels: {error}")
    known = dict.fromkeys((*FOR_TRITON, *cuda.ARCHITECTURES))
    if unknown := set(architectures) - set(known):
        raise ValueError(f"{', '.join(sorted(unknown))} is none of {', '.join(known)}")
    rows = list(_triton(architectures, only, console, as_json)) if FOR_TRITON else []
    for_cuda = [cuda.ARCHITECTURES[name] for name in architectures if name in cuda.ARCHITECTURES]
    if for_cuda and cuda.compiles(only):
        if reason := cuda.reason():
            notes.append(f"without the CUDA kernels: {reason}")
        else:
            rows += [row for row in map(_cuda_row, cuda.compile_all(for_cuda)) if only in _label(row)]
    if len(notes) == 2:
        raise ImportError("; ".join(notes))
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _print(rows, console)
        for note in notes:
            console.print(f"[yellow]{note}")
    return not any(row["faults"] for row in rows)


def _label(row: Row) -> str:
    return f"{row['kernel']} {row['arithmetic']}"


def _triton(architectures: Sequence[str], only: str, console: Console, quiet: bool) -> Iterator[Row]:
    from .kernels.triton.report import ARCHITECTURES, cases, compile_case

    work = [
        (case, ARCHITECTURES[name])
        for name in architectures
        if name in ARCHITECTURES
        for case in cases(ARCHITECTURES[name])
        if only in f"{case.name} {case.arithmetic}"
    ]
    for case, architecture in track(work, "compiling", console=console, transient=True, disable=quiet):
        c = compile_case(case, architecture)
        yield {
            "kernel": case.name,
            "arithmetic": case.arithmetic,
            "architecture": architecture.name,
            "warps": case.launch.choice.num_warps,
            "registers": c.registers,
            "spilled": c.spilled,
            "shared": c.shared,
            "matrix": c.matrix,
            "instructions": c.instructions,
            "occupancy": round(c.occupancy, 2),
            "faults": c.faults(),
        }


def _cuda_row(c: cuda.Compiled) -> Row:
    return {
        "kernel": c.name,
        "arithmetic": c.arithmetic,
        "architecture": c.architecture.name,
        "warps": c.warps,
        "registers": c.registers,
        "spilled": c.spilled,
        "shared": c.shared,
        "matrix": c.counts.matrix,
        "instructions": c.counts.instructions,
        "occupancy": round(c.occupancy, 2),
        "faults": c.faults(),
    }


def _print(rows: list[Row], console: Console) -> None:
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
