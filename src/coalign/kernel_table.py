"""The compiled kernels as a table: registers, spills, memory, matrix instructions, occupancy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table


def report(architectures: Sequence[str], only: str, as_json: bool, console: Console) -> bool:
    """Compile the kernels whose name or arithmetic contains `only`, and print what became of them.

    Returns:
        Whether all are without fault.

    Raises:
        ValueError: an architecture that is not known, no such kernel, or nothing here to compile with.
    """
    compilers, missing = _compilers()
    if not compilers:
        raise ValueError("; ".join(missing))
    if unknown := set(architectures) - {name for c in compilers for name in c.ARCHITECTURES}:
        known = dict.fromkeys(name for c in compilers for name in c.ARCHITECTURES)
        raise ValueError(f"{', '.join(sorted(unknown))} is none of {', '.join(known)}")
    work = [
        (compiler, case, compiler.ARCHITECTURES[name])
        for name in architectures
        for compiler in compilers
        if name in compiler.ARCHITECTURES
        for case in compiler.cases(compiler.ARCHITECTURES[name])
        if only in f"{case.name} {case.arithmetic}"
    ]
    if not work:
        raise ValueError(f"no kernel for {', '.join(architectures)} has {only!r} in its name or arithmetic")
    progress = track(work, "compiling", console=console, transient=True, disable=as_json)
    found = [compiler.compile_case(case, architecture) for compiler, case, architecture in progress]
    rows = [
        {
            "kernel": c.case.name,
            "arithmetic": c.case.arithmetic,
            "architecture": c.architecture.name,
            "warps": c.warps,
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
        for reason in missing:
            console.print(f"[yellow]left out: {reason}")
    return not any(row["faults"] for row in rows)


def _compilers() -> tuple[list[Any], list[str]]:
    """Of Triton's kernels and the native ones, the reports that can be had here, and why others can't."""
    found, missing = [], []
    try:
        from .kernels.triton import report as of_triton

        found.append(of_triton)
    except ImportError:
        missing.append("Triton's kernels (Triton is not installed)")
    from .kernels.native import build, build_cuda
    from .kernels.native import report as of_nvcc

    try:
        build_cuda.nvcc()
        found.append(of_nvcc)
    except build.BuildError as error:
        missing.append(f"the native CUDA kernels ({error})")
    return found, missing


def _print(rows: list[dict], console: Console) -> None:
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        caption="spilled and shared: bytes a program; matrix, instr: of native kernels in PTX; occupancy: an estimate",
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
