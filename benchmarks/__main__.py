"""python -m benchmarks: measure, print the table of ratios, add the results to a file; or show what is stored."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import layers, plots, predict, report, results, significance, whole_model
from .cases import Case
from .measure import compare, directions
from .model_cases import CASES as MODEL_CASES
from .model_cases import ModelCase
from .suites import SUITES
from .targets import Direction

console = Console() if Console().is_terminal else Console(width=130)


Item = TypeVar("Item")


def main(
    suite: Annotated[str, typer.Option(help=f"which cases: {', '.join(SUITES)}")] = "",
    only: Annotated[str, typer.Option(help="cases whose name holds this")] = "",
    rounds: Annotated[int, typer.Option(help="turns that each contender gets", min=1)] = 15,
    threads: Annotated[int, typer.Option(help="PyTorch's threads", min=1)] = 2,
    hot: Annotated[bool, typer.Option(help="the same inputs all the time, so that caches are warm")] = False,
    model: Annotated[bool, typer.Option(help="the whole model instead of the operator")] = False,
    of_layers: Annotated[bool, typer.Option("--layers", help="the drop-in layers instead of the operator")] = False,
    profile: Annotated[bool, typer.Option(help="of the whole model: where a training step's time goes")] = False,
    seconds: Annotated[float, typer.Option(help="begin no case after so many")] = float("inf"),
    resume: Annotated[bool, typer.Option(help="leave out what the file has from this commit")] = False,
    output: Annotated[Path | None, typer.Option(help="the file of JSON lines: added to, or shown")] = None,
    show: Annotated[bool, typer.Option("--report", help="measure nothing: print tables, draw pictures")] = False,
    markdown: Annotated[bool, typer.Option(help="measure nothing: print the README's table")] = False,
    compare_files: Annotated[
        tuple[Path, Path] | None, typer.Option("--compare", help="measure nothing: what became slower from A to B")
    ] = None,
    predictions: Annotated[bool, typer.Option("--predict", help="measure nothing: store GPU predictions")] = False,
) -> None:
    """Time soft alignment against what one would write in PyTorch, or the whole model against d2l's own.

    Results are kept in benchmarks/results/<device>/.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    suite = suite or ("gpu" if kind == "cuda" else "cpu")
    if suite not in SUITES:
        raise typer.BadParameter(f"{suite!r} is none of {', '.join(SUITES)}", param_hint="--suite")
    path = output or results.file_of(kind, "layers" if of_layers else "model" if model else "operator")
    until = time.monotonic() + seconds
    if (show or markdown) and not path.exists():
        others = ", ".join(str(found) for found in sorted(results.FOLDER.glob(f"*/{path.name}")))
        raise typer.BadParameter(f"there are no results in {path} yet; --output takes {others}", param_hint="--report")
    if markdown:
        print(report.heading(results.read(path)), end="\n\n")
    if profile:
        print(whole_model.profile(threads), whole_model.profile(threads, autocast=True), sep="\n\n")
    elif of_layers:
        _layers(path, only, rounds, threads, until, show, markdown)
    elif model and markdown:
        print(whole_model.markdown(results.read(path)))
    elif model and show:
        console.print(whole_model.table(results.read(path)))
    elif model:
        cases = [case for case in MODEL_CASES[kind] if only in case.name]
        _measure_model(cases, path, kind, rounds, threads, until, resume)
    elif predictions:
        console.print(f"stored {predict.store()}")
    elif compare_files is not None:
        _compare(*compare_files)
    elif markdown:
        print(report.markdown(report.ratios(results.read(path))))
    elif show:
        _show(results.read(path), path)
    else:
        cases = [case for case in SUITES[suite]() if only in case.name]
        if not cases:
            raise typer.BadParameter(f"no case's name holds {only!r}", param_hint="--only")
        if suite == "gpu" and kind == "cpu":
            console.print(f"[yellow]no GPU here: its {len(cases)} cases are skipped; the processor's follow")
            suite, cases = "cpu", SUITES["cpu"]()
        _measure(cases, suite, kind, path, rounds, threads, hot, until, resume)


def _layers(path: Path, only: str, rounds: int, threads: int, until: float, show: bool, markdown: bool) -> None:
    if markdown:
        print(layers.markdown(results.read(path)))
        return
    if not show:
        work = [(case, direction) for case in layers.CASES if only in case.name for direction in directions()]
        if not work:
            raise typer.BadParameter("no case's name holds that", param_hint="--only")
        _each(
            work,
            lambda item: f"{item[0].name}, {item[1]}",
            lambda item, step: layers.run(*item, rounds, threads, step),
            path,
            rounds,
            until,
        )
    console.print(layers.table(results.read(path)))


def _measure_model(
    cases: list[ModelCase], path: Path, kind: str, rounds: int, threads: int, until: float, resume: bool
) -> None:
    if not cases:
        raise typer.BadParameter("no case's name holds that", param_hint="--only")
    known = results.model_keys(results.read(path)) if resume and path.exists() else set()
    work = [(case, graph) for graph in ((False, True) if kind == "cuda" else (False,)) for case in cases]
    work = [(case, graph) for case, graph in work if results.model_key(case.name, graph) not in known]

    def measure(item: tuple[ModelCase, bool], step: Callable[[], None]) -> list[dict[str, Any]]:
        return whole_model.run(item[0], rounds, threads, step, device=kind, graph=item[1])

    lines = _each(work, lambda item: item[0].name, measure, path, rounds, until)
    console.print(whole_model.table(lines))
    console.print(f"added to {path}: {results.device(kind)}, {threads} threads, PyTorch {torch.__version__}")


def _each(
    work: list[Item],
    name: Callable[[Item], str],
    measure: Callable[[Item, Callable[[], None]], list[dict[str, Any]]],
    path: Path,
    rounds: int,
    until: float,
) -> list[dict[str, Any]]:
    """Measure one thing after another, keeping what is found at once: it is not lost when something stops."""
    lines: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(work) * rounds)
        for place, item in enumerate(work):
            if time.monotonic() > until:
                console.print(f"[yellow]out of time: {len(work) - place} of {len(work)} measurements were not begun")
                break
            progress.update(task, description=name(item))
            found = measure(item, lambda: progress.advance(task))
            results.append(path, found)
            lines += found
    return lines


def _measure(
    cases: list[Case],
    suite: str,
    kind: str,
    path: Path,
    rounds: int,
    threads: int,
    hot: bool,
    until: float,
    resume: bool,
) -> None:
    counts = sorted({1, threads}) if suite == "scaling" else [threads]
    work = [
        (case, direction, graph, count)
        for count in counts
        for case in cases
        for direction in directions()
        for graph in ((False, True) if kind == "cuda" else (False,))
    ]
    known = results.keys(results.read(path)) if resume and path.exists() else set()
    work = [item for item in work if results.key(*item, hot) not in known]
    lines = _each(
        work,
        lambda item: f"{item[0].name}, {item[1]}",
        lambda item, step: _one(*item, kind, hot, rounds, suite == "scaling", step),
        path,
        rounds,
        until,
    )
    _print(lines)
    console.print(f"added to {path}: {results.device(kind)}, {threads} threads, PyTorch {torch.__version__}")


def _one(
    case: Case,
    direction: Direction,
    graph: bool,
    threads: int,
    kind: str,
    hot: bool,
    rounds: int,
    alone: bool,
    step: Callable[[], None],
) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    torch.compiler.reset()
    torch.set_float32_matmul_precision("high" if case.tf32 else "highest")
    timings = compare(
        case,
        direction,
        device=kind,
        rounds=rounds,
        sets=1 if hot or case.pairs > 10_000 else 3,
        graph=graph,
        only=("coalign",) if alone else None,
        step=step,
    )
    return [results.record(case, direction, timing, threads, kind) for timing in timings]


def _print(lines: list[dict[str, Any]]) -> None:
    if rows := report.ratios(lines):
        console.print(report.table(rows))
    for table in (report.predicted(lines), report.scaling(lines)):
        if table is not None:
            console.print(table)


def _show(lines: list[dict[str, Any]], path: Path) -> None:
    _print(lines)
    for picture in plots.draw(lines, path.parent):
        console.print(f"wrote {picture}")


def _compare(before: Path, after: Path) -> None:
    found = significance.changes(results.read(before), results.read(after))
    table = Table("case", "pass", "time, of before", "p", "")
    for change in found:
        table.add_row(
            change.case, change.direction, f"{change.factor:.3f}", f"{change.probability:.2g}", change.verdict
        )
    console.print(table)
    if any(change.verdict == "SLOWER" for change in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
