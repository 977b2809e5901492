"""python -m benchmarks: measure, print the table of ratios, add the results to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from . import report, results
from .cases import Case, cpu_cases, scaling_cases
from .measure import Direction, compare, directions

DEFAULT = results.FOLDER / "cpu.jsonl"


def main(
    only: Annotated[str, typer.Option(help="cases whose name holds this")] = "",
    rounds: Annotated[int, typer.Option(help="turns that each contender gets", min=1)] = 15,
    threads: Annotated[int, typer.Option(help="PyTorch's threads", min=1)] = 2,
    scaling: Annotated[
        bool, typer.Option(help="the cost of a pair, from 1 to 100,000 pairs, on 1 thread and more")
    ] = False,
    output: Annotated[Path, typer.Option(help="the file of JSON lines that results are added to")] = DEFAULT,
    show: Annotated[bool, typer.Option("--report", help="measure nothing: print the tables of the file")] = False,
    markdown: Annotated[bool, typer.Option(help="print the table of ratios as the README has it")] = False,
) -> None:
    """Time soft alignment on the CPU against eager PyTorch, torch.compile and two calls of SDPA."""
    console = Console() if Console().is_terminal else Console(width=120)
    if markdown:
        print(report.markdown(report.ratios(results.read(output))))
        return
    if show:
        lines = results.read(output)
        console.print(report.table(report.ratios(lines)), report.scaling(lines))
        return
    cases = [case for case in (scaling_cases() if scaling else cpu_cases()) if only in case.name]
    if not cases:
        raise typer.BadParameter(f"no case's name holds {only!r}", param_hint="--only")
    counts = sorted({1, threads}) if scaling else [threads]
    with Progress(console=console) as progress:
        task = progress.add_task("", total=len(cases) * len(counts) * 2 * rounds)
        lines = []
        for count in counts:
            torch.set_num_threads(count)
            for case in cases:
                for direction in directions():
                    progress.update(task, description=f"{case.name}, {direction}")
                    found = measured(case, direction, rounds, scaling, count, lambda: progress.advance(task))
                    results.append(output, found)  # at once: what is measured is not lost when something stops
                    lines += found
    console.print(report.scaling(lines) if scaling else report.table(report.ratios(lines)))
    console.print(f"added to {output}: {results.device()}, {threads} threads, PyTorch {torch.__version__}")


def measured(case: Case, direction: Direction, rounds: int, alone: bool, threads: int, step) -> list[dict]:
    torch.compiler.reset()
    timings = compare(
        case,
        direction,
        rounds=rounds,
        sets=1 if case.pairs > 10_000 else 3,
        only=("coalign",) if alone else None,
        step=step,
    )
    return [results.record(case, direction, timing, threads) for timing in timings]


if __name__ == "__main__":
    typer.run(main)
