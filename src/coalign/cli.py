"""The command line: each command a thin layer over a module of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import __version__
from .demo import BUDGET, Outcome
from .explain_command import explain
from .kernels import BackendUnavailable
from .lexical import align_words
from .model.nli import DataError, Pair, Vocabulary, read_snli
from .model.nli.examples import example_pairs
from .predict import predict
from .terminal import BackendOption, JsonOption, complaints, console, device_named, fail
from .train import evaluate, train

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(train)
app.command()(evaluate)
app.command()(predict)
app.command()(explain)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fast bidirectional soft alignment, and the Decomposable Attention model built on it."""


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Pairs in SNLI's JSON lines; default: a small embedded set.")
    ] = None,
    pairs: Annotated[int | None, typer.Option(min=1, help="Use no more than so many pairs.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs at a time.")] = 256,
    backend: BackendOption = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    seed: Annotated[int, typer.Option(help="Of the model's random parameters.")] = 0,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Go through the pairs so often; default: enough for steady times.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the fast model and the plain one on real sentences, and compare all they compute."""
    from . import demo as demonstration

    examples = _read(data, pairs)
    vocabulary = Vocabulary([s for pair in examples for s in (pair.premise, pair.hypothesis)])
    place = device_named(device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=complaints, transient=True, disable=as_json) as progress:
        task = progress.add_task("pairs", total=len(examples))
        try:
            outcome = demonstration.run(
                examples,
                vocabulary,
                batch_size=batch_size,
                backend=backend,
                device=place,
                seed=seed,
                rounds=rounds,
                progress=lambda done: progress.advance(task, done),
            )
        except (BackendUnavailable, ValueError) as error:
            fail(str(error))
    if as_json:
        print(outcome.to_json())
        raise typer.Exit(0 if outcome.passed else 1)

    source = "the embedded set" if data is None else str(data)
    console.print(
        f"\n[bold]{outcome.pairs} pairs[/] of {escape(str(source))}, {len(vocabulary)} words, on {outcome.device}"
    )
    console.print(f"The fast path ran on the backend [bold]{outcome.backend}[/]:")
    console.print(outcome.explanation, style="dim", highlight=False, soft_wrap=True)
    if outcome.backend == "reference":
        console.print(
            "That is plain PyTorch too, so there is no speed to see in these times; Triton's kernels need a GPU."
        )
    outcomes = [outcome]
    if outcome.backend != "triton":
        interpreted = _interpreted(data, seed)
        outcomes += [interpreted] if interpreted else []
    _print_errors(outcomes)
    _print_times(outcome)
    _print_example(examples, backend)
    if not all(o.passed for o in outcomes):
        fail(f"an error exceeds {BUDGET:g}")


def _interpreted(data: Path | None, seed: int, pairs: int = 12) -> Outcome | None:
    from . import demo as demonstration

    with console.status(f"running the Triton kernels on {pairs} pairs in Triton's interpreter"):
        try:
            return demonstration.run_interpreted([] if data is None else ["--data", str(data)], pairs, seed)
        except RuntimeError as error:
            complaints.print(f"[yellow]The Triton kernels could not be interpreted here.[/] {escape(str(error))}")
            return None


def _print_errors(outcomes: list[Outcome]) -> None:
    """One row a tensor, one column a run."""
    table = Table(
        title="relative error against plain PyTorch, worst batch",
        caption=f"‖fast − plain‖ / ‖plain‖ in float32; allowed: {BUDGET:g}",
        title_style="bold",
    )
    table.add_column("tensor")
    for outcome in outcomes:
        where = " (interpreted)" if outcome.backend == "triton" and outcome.device == "cpu" else ""
        table.add_column(f"{outcome.backend}{where}\n{outcome.pairs} pairs", justify="right")
    for name in outcomes[0].errors:
        cells = []
        for outcome in outcomes:
            error = outcome.errors[name]
            cells.append(f"{error:.1e} " + ("[green]ok[/]" if error <= BUDGET else "[red]TOO LARGE[/]"))
        table.add_row(name, *cells)
    console.print(table)
    for outcome in outcomes:
        if outcome.torn:
            console.print(
                f"In {outcome.torn} of {outcome.batches} batches rounding moved some ReLU across 0; "
                "their gradients are not compared."
            )


def _print_times(outcome: Outcome) -> None:
    table = Table(
        title="time a batch of the whole model",
        caption="median over the batches, in turn; a demonstration, not a benchmark",
        title_style="bold",
    )
    for name in ("", "plain", f"fast ({outcome.backend})", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    for stage in ("forward", "forward + backward"):
        plain, fast = (outcome.median_seconds(f"{path} {stage}") for path in ("plain", "fast"))
        table.add_row(stage, f"{1e3 * plain:.2f} ms", f"{1e3 * fast:.2f} ms", f"{plain / fast:.2f}")
    console.print(table)


def _print_example(examples: list[Pair], backend: str | None) -> None:
    """The alignment of the pair that shares most words, among those that fit a terminal, if any has words to align."""
    from .draw import print_alignment

    worded = [p for p in examples if p.premise and p.hypothesis]
    if not worded:
        console.print("\nNo pair has words on both sides to align.")
        return
    short = [p for p in worded if 4 <= len(p.hypothesis) <= 9 and 4 <= len(p.premise) <= 12] or worded
    pair = max(short, key=lambda p: (len({*p.premise} & {*p.hypothesis} - {"a", "the", "."}), -p.label))
    console.print("\nThe operator on one of the pairs. Nothing is trained: words match by their spelling.")
    print_alignment(align_words(pair.premise, pair.hypothesis, backend=backend), console)


@app.command()
def align(
    premise: Annotated[str, typer.Argument(help="The first sentence, in quotes.")],
    hypothesis: Annotated[str, typer.Argument(help="The second one.")],
    plot: Annotated[Path | None, typer.Option(help="Also write a heat map: .png, .svg or .pdf.")] = None,
    scale: Annotated[float, typer.Option(help="How sharply: a factor on the scores.")] = 8.0,
    lower: Annotated[bool, typer.Option(help="Lower-case first.")] = True,
    backend: BackendOption = None,
) -> None:
    """Align two sentences and draw it. Words match by their spelling: nothing here is trained."""
    from .draw import check_picture, plot_alignment, print_alignment

    if lower:
        premise, hypothesis = premise.lower(), hypothesis.lower()
    try:
        if plot is not None:
            check_picture(plot)
        alignment = align_words(premise.split(), hypothesis.split(), scale, backend)
        print_alignment(alignment, console)
        if plot is not None:
            plot_alignment(alignment, plot)
            console.print(f"wrote {plot}", markup=False)
    except (ValueError, ImportError, OSError, BackendUnavailable) as error:
        fail(str(error))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Print versions, devices and compilers, and each backend's state with the reason where one is off."""
    from .doctor import examine

    found = examine()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for title, content in found.items():
        console.print(f"[bold]{title}[/]" + ("" if isinstance(content, dict) else f"  {content}"), highlight=False)
        for name, value in content.items() if isinstance(content, dict) else ():
            for part in [f"{k}: {v}" for k, v in value.items()] if isinstance(value, dict) else [value or "-"]:
                console.print(f"  {name:<22}{part}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def kernels(
    arch: Annotated[
        list[str] | None,
        typer.Option(help="sm_75, sm_80, sm_86, sm_90, sm_100, sm_120 or gfx942; may be repeated; default: sm_90."),
    ] = None,
    only: Annotated[str, typer.Option(help="Only kernels whose name or arithmetic contains this.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Compile the GPU kernels, Triton's and nvcc's, for GPUs that need not be here, and print what became of them."""
    from .kernel_table import report

    try:
        clean = report(arch or ["sm_90"], only, as_json, console)
    except ValueError as error:
        fail(str(error))
    raise typer.Exit(0 if clean else 1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Time soft alignment against PyTorch on this machine, or show stored results; --help lists the options."""
    home = Path(__file__).parents[2]
    if not (home / "benchmarks" / "__main__.py").exists():
        fail("the benchmarks are in the repository, not in the package: clone it and pip install -e .")
    # found there, but run here: paths among the arguments are the caller's, but no modules are
    start = (
        "import sys; sys.path = [sys.argv.pop(1), *filter(None, sys.path)]; "
        "from benchmarks.__main__ import app; app(prog_name='coalign bench')"
    )
    done = subprocess.run([sys.executable, "-c", start, str(home), *context.args], check=False)
    raise typer.Exit(done.returncode)


def _read(data: Path | None, limit: int | None) -> list[Pair]:
    if data is None:
        return example_pairs()[:limit]
    try:
        found = read_snli(data, lower=True, limit=limit)
    except (OSError, DataError) as error:
        fail(str(error))
    if found.unlabelled:
        complaints.print(f"left out {found.unlabelled} pairs without a label")
    return found.pairs
