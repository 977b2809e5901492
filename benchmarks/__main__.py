"""python -m benchmarks: measure, print the table of ratios, add the results to a file; or show what is stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from coalign.model.nli import load_corpus
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import layers, plots, predict, report, results, significance, trained, warm_up, whole_model
from .cases import Case
from .measure import compare, directions
from .model_cases import CASES as MODEL_CASES
from .model_cases import ModelCase, Subject, random_subject
from .suites import SUITES
from .targets import Direction

app = typer.Typer(add_completion=False)
console = Console() if Console().is_terminal else Console(width=130)

Item = TypeVar("Item")
Named = TypeVar("Named", Case, ModelCase, layers.LayerCase)


@app.command()
def main(
    suite: Annotated[str, typer.Option(help=f"which cases: {', '.join(SUITES)}")] = "",
    only: Annotated[str, typer.Option(help="cases whose name holds this")] = "",
    rounds: Annotated[int, typer.Option(help="turns that each contender gets", min=1)] = 15,
    threads: Annotated[int, typer.Option(help="PyTorch's threads", min=1)] = 2,
    hot: Annotated[bool, typer.Option(help="the same inputs all the time, so that caches are warm")] = False,
    model: Annotated[bool, typer.Option(help="the whole model instead of the operator")] = False,
    trained_on: Annotated[
        Path | None, typer.Option(help="the whole model trained on this file of pairs, with its sentences")
    ] = None,
    of_layers: Annotated[bool, typer.Option("--layers", help="the drop-in layers instead of the operator")] = False,
    profile: Annotated[bool, typer.Option(help="of the whole model: where a training step's time goes")] = False,
    seconds: Annotated[float, typer.Option(help="begin no case after so many")] = float("inf"),
    without: Annotated[
        list[str] | None, typer.Option(help="a contender that takes too long, by name; may be repeated")
    ] = None,
    processes: Annotated[int, typer.Option(help="on a GPU: compile beforehand, in so many processes", min=0)] = 0,
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
    model = model or trained_on is not None
    what = "layers" if of_layers else "model" if model else "operator"
    path = output or results.file_of("cpu" if of_layers else kind, what)
    until = time.monotonic() + seconds
    if profile:
        print(whole_model.profile(threads), whole_model.profile(threads, autocast=True), sep="\n\n")
    elif predictions:
        console.print(f"stored {predict.store()}")
    elif compare_files is not None:
        _compare(*compare_files)
    elif markdown:
        _print_markdown(_stored(path, what, "--markdown"), what)
    elif show:
        _show(_stored(path, what, "--report"), what, path)
    elif of_layers:
        _measure_layers(_holding(only, layers.CASES), path, rounds, threads, until)
    elif model:
        of_model = MODEL_CASES[kind] if trained_on is None else trained.cases(MODEL_CASES[kind])
        chosen = _holding(only, of_model)
        subject = random_subject if trained_on is None else _trained(trained_on, chosen)
        _measure_model(chosen, subject, path, kind, rounds, threads, until, resume, processes)
    else:
        cases = _holding(only, SUITES[suite]())
        if suite == "gpu" and kind == "cpu":
            console.print(f"[yellow]no GPU here: its {len(cases)} cases are skipped; the processor's follow")
            suite, cases = "cpu", _holding(only, SUITES["cpu"]())
        _measure(cases, suite, kind, path, rounds, threads, hot, until, resume, tuple(without or ()), processes)


def _holding(only: str, cases: Iterable[Named]) -> list[Named]:
    found = [case for case in cases if only in case.name]
    if not found:
        raise typer.BadParameter(f"no case's name holds {only!r}", param_hint="--only")
    return found


def _stored(path: Path, what: str, asked: str) -> list[dict[str, Any]]:
    """A file's results, of which there must be some. asked: the option that wants them."""
    lines = _read(path, what, asked) if path.exists() else []
    if not lines:
        others = ", ".join(str(found) for found in sorted(results.FOLDER.glob(f"*/{what}.jsonl")))
        raise typer.BadParameter(f"there are no results in {path}; there are some in {others}", param_hint=asked)
    return lines


def _read(path: Path, what: str, asked: str) -> list[dict[str, Any]]:
    try:
        return results.read(path, what)
    except (OSError, results.Unreadable) as error:
        raise typer.BadParameter(str(error), param_hint=asked) from None


def _trained(source: Path, cases: list[ModelCase]) -> trained.Trained:
    try:
        return trained.Trained(load_corpus(source), cases)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--trained-on") from None


def _measure_layers(cases: list[layers.LayerCase], path: Path, rounds: int, threads: int, until: float) -> None:
    lines = _each(
        [(case, direction) for case in cases for direction in directions()],
        lambda item: f"{item[0].name}, {item[1]}",
        lambda item, step: layers.run(*item, rounds, threads, step),
        path,
        rounds,
        until,
    )
    if lines:
        console.print(layers.table(lines))
    _print_added(lines, path, "cpu", threads)


def _measure_model(
    cases: list[ModelCase],
    subject: Callable[[ModelCase], Subject],
    path: Path,
    kind: str,
    rounds: int,
    threads: int,
    until: float,
    resume: bool,
    processes: int,
) -> None:
    known = results.model_keys(_read(path, "model", "--resume")) if resume and path.exists() else set()
    work = [(case, graph) for case in cases for graph in ((False, True) if kind == "cuda" else (False,))]
    work = [(case, graph) for case, graph in work if results.model_key(case.name, graph, threads) not in known]
    if kind == "cuda" and processes:
        warm_up.model(list(dict.fromkeys(case for case, _ in work)), processes)

    def measure(item: tuple[ModelCase, bool], step: Callable[[], None]) -> list[dict[str, Any]]:
        return whole_model.run(item[0], rounds, threads, step, device=kind, graph=item[1], subject=subject)

    lines = _each(work, lambda item: item[0].name, measure, path, rounds, until)
    if lines:
        console.print(whole_model.table(lines))
    _print_added(lines, path, kind, threads)


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
    without: tuple[str, ...],
    processes: int,
) -> None:
    counts = sorted({1, threads}) if suite == "scaling" else [threads]
    work = [
        (case, direction, graph, count)
        for count in counts
        for case in cases
        for direction in directions()
        for graph in ((False, True) if kind == "cuda" else (False,))
    ]
    known = results.keys(_read(path, "operator", "--resume")) if resume and path.exists() else set()
    work = [item for item in work if results.key(*item, hot) not in known]
    if kind == "cuda" and processes:
        warm_up.operator(list(dict.fromkeys(case for case, *_ in work)), processes, without)
    compiled: set[tuple[Case, Direction]] = set()

    def measure(item: tuple[Case, Direction, bool, int], step: Callable[[], None]) -> list[dict[str, Any]]:
        if item[:2] not in compiled:  # a graph replays what the calls before it have compiled
            compiled.add(item[:2])
            torch.compiler.reset()
        return _one(*item, kind, hot, rounds, suite == "scaling", without, step)

    lines = _each(
        work,
        lambda item: f"{item[0].name}, {item[1]}",
        measure,
        path,
        rounds,
        until,
    )
    _print(lines)
    _print_added(lines, path, kind, threads)


def _one(
    case: Case,
    direction: Direction,
    graph: bool,
    threads: int,
    kind: str,
    hot: bool,
    rounds: int,
    alone: bool,
    without: tuple[str, ...],
    step: Callable[[], None],
) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if case.tf32 else "highest")
    timings = compare(
        case,
        direction,
        device=kind,
        rounds=rounds,
        sets=1 if hot or case.pairs > 10_000 else 3,
        graph=graph,
        only=("coalign",) if alone else None,
        without=without,
        step=step,
    )
    return [results.record(case, direction, timing, threads, kind) for timing in timings]


def _print(lines: list[dict[str, Any]]) -> None:
    if rows := report.ratios(lines):
        console.print(report.table(rows))
    for table in (report.predicted(lines), report.scaling(lines)):
        if table is not None:
            console.print(table)


def _print_added(lines: list[dict[str, Any]], path: Path, kind: str, threads: int) -> None:
    if lines:
        console.print(f"added to {path}: {results.device(kind)}, {threads} threads, PyTorch {torch.__version__}")
    else:
        console.print(f"nothing was measured, and nothing added to {path}")


def _print_markdown(lines: list[dict[str, Any]], what: str) -> None:
    tables = {
        "layers": layers.markdown,
        "model": whole_model.markdown,
        "operator": lambda lines: report.markdown(report.ratios(lines)),
    }
    table = tables[what](lines)
    if table.count("\n") < 2:
        raise typer.BadParameter("none of the results has anything to be compared with", param_hint="--markdown")
    print(report.heading(lines), table, sep="\n\n")


def _show(lines: list[dict[str, Any]], what: str, path: Path) -> None:
    if what != "operator":
        console.print((layers if what == "layers" else whole_model).table(lines))
        return
    _print(lines)
    try:
        pictures = plots.draw(lines, path.parent)
    except ImportError as error:
        typer.echo(f"no pictures: {error}", err=True)
        raise typer.Exit(1) from None
    for picture in pictures:
        console.print(f"wrote {picture}")


def _compare(before: Path, after: Path) -> None:
    found = significance.changes(*(_stored(path, "operator", "--compare") for path in (before, after)))
    if not found:
        raise typer.BadParameter(
            f"no case was measured in both {before} and {after} on one device, in one way and with a common peer",
            param_hint="--compare",
        )
    table = Table("case", "pass", "time, of before", "p", "", caption=significance.RULE)
    for change in found:
        table.add_row(
            change.case, change.direction, f"{change.factor:.3f}", f"{change.probability:.2g}", change.verdict
        )
    console.print(table)
    if any(change.verdict == "SLOWER" for change in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
