"""The commands `coalign train` and `coalign evaluate`."""

from __future__ import annotations

import inspect
import json
import math
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from .kernels import BackendUnavailable
from .model.nli import Columns, Corpus, DataError, Reading, Vocabulary, load_corpus, load_word_vectors
from .model.nli.checkpoint import NOT_FINITE, Checkpoint, load_checkpoint
from .model.nli.evaluation import Evaluation
from .model.nli.evaluation import evaluate as evaluated
from .model.nli.pairs import LABELS
from .model.nli.ranks import OtherRankFailed, are_launched, joined
from .model.nli.settings import PRESETS, Settings
from .model.nli.training import LAST, Training, TrainingError
from .model.nli.training import Progress as Reached
from .progress import pairs_bar
from .terminal import BackendOption, DeviceOption, JsonOption, complaints, console, device_named, fail, names_in, quiet

_ERRORS = (DataError, ValueError, OSError, ImportError, BackendUnavailable, TrainingError)
_NO_MEMORY = re.compile("tried to allocate|size calculation overflowed", re.IGNORECASE)  # torch's, on any device

Source = Annotated[
    str, typer.Argument(help="Pairs: .jsonl, SNLI's .txt, .tsv, .csv, or hf:NAME:SPLIT of Hugging Face.")
]
ColumnsOption = Annotated[
    str | None, typer.Option(help="premise,hypothesis,label: the columns' names; default: SNLI's, or those very names.")
]


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each of Settings' fields, where it has **settings; None where not given."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
    types = get_type_hints(Settings)
    for setting in fields(Settings):
        about = setting.metadata["help"]
        if setting.metadata["choices"]:
            about += f" One of {', '.join(setting.metadata['choices'])}."
        about += f" d2l: {setting.default}."
        option = typer.Option(help=about, show_default=False, rich_help_panel="Settings, in place of the preset's")
        kind: Any = Annotated[types[setting.name] | None, option]
        own.append(inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
    command.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in own}
    return command


@_with_settings
def train(
    training: Source,
    out: Annotated[Path, typer.Option(help="A folder for checkpoints and logs.")],
    validation: Annotated[str | None, typer.Option(help="Pairs to evaluate on after each epoch.")] = None,
    preset: Annotated[str | None, typer.Option(help=f"One of {', '.join(PRESETS)}; default: d2l.")] = None,
    vectors: Annotated[
        str | None, typer.Option(help="GloVe's or word2vec's text file, plain, .gz or .zip; default: random vectors.")
    ] = None,
    columns: ColumnsOption = None,
    labels: Annotated[
        str | None, typer.Option(help=f"The labels' names, in the order of their numbers; default: {','.join(LABELS)}.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    device: DeviceOption = None,
    backend: BackendOption = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard's files too.")] = False,
    **settings: Any,
) -> None:
    """Train the model. Ctrl-C saves and stops; --resume goes on, on the CPU to the same bits.

    On several devices, each process trains on its share of every batch:
    torchrun --nproc-per-node 2 -m coalign train ..., with the same options.
    """
    place = device_named(device)
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        with joined(place) as ranks, quiet(not ranks.first):
            named = LABELS if labels is None else names_in(labels)
            if resume:
                saved = _saved(out, given, preset)
                if labels is not None and named != saved.labels:
                    raise ValueError(f"a run goes on with its own labels, {','.join(saved.labels)}; leave out --labels")
                if vectors is not None:
                    complaints.print("the vectors are the run's own: --vectors is not read again")
            elif (out / LAST).exists():
                raise ValueError(f"{out} already holds a run: go on with --resume, or name another folder")
            else:
                saved = None
            chosen = saved.settings if saved else replace(_preset(preset or "d2l"), **given)
            names = saved.labels if saved else named
            reading = chosen.reading(_columns(columns), names)
            with ranks.first_goes_first():
                pairs = _read(training, reading)
                held_out = None if validation is None else _read(validation, reading)
                vocabulary = saved.vocabulary if saved else chosen.vocabulary(pairs)
                weight = None if vectors is None or saved else _vectors(vectors, vocabulary, chosen)
            with ranks.all_or_none():
                run = Training(
                    chosen,
                    pairs,
                    held_out,
                    out,
                    vectors=weight,
                    vocabulary=vocabulary,
                    resume=saved,
                    device=place,
                    backend=backend,
                    tensorboard=tensorboard,
                    ranks=ranks,
                )
            counted = sum(p.numel() for name, p in run.model.named_parameters() if name != "embedding.weight")
            _note(
                f"{len(pairs)} pairs, {len(vocabulary)} words, {counted} parameters without embeddings, on {place}"
                + (f" and {ranks.world_size - 1} more" if ranks.world_size > 1 else "")
            )
            if not _run(run):
                complaints.print(f"stopped after step {run.step}; go on with --resume", soft_wrap=True)
                raise typer.Exit(130)
            _note(f"best accuracy {run.best:.4f}; checkpoints in {out}")
    except _ERRORS as error:
        fail(str(error))
    except OtherRankFailed:  # which says why
        raise typer.Exit(1) from None
    except RuntimeError as error:
        if not _NO_MEMORY.search(str(error)):
            raise
        fail(
            f"not enough memory on {place}: make --embed-size, --num-hiddens, --projection-size or --batch-size smaller"
        )


def evaluate(
    model: Annotated[Path, typer.Argument(help="A folder that `coalign train` wrote, or a checkpoint's .json.")],
    data: Source,
    columns: ColumnsOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs at a time.")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Say how well a trained model classifies: accuracy, each class, confusions, by length."""
    place = device_named(device)
    try:
        saved = load_checkpoint(model)
        pairs = _read(data, saved.settings.reading(_columns(columns), saved.labels))
        built = saved.build().to(place)
        built.backend = backend
        batches = replace(saved.settings, batch_size=batch_size).batches(pairs, saved.vocabulary, training=False)
        with pairs_bar(as_json) as (progress, task):
            progress.update(task, total=len(pairs))
            found = evaluated(
                built, batches.epoch(), saved.labels, device=place, progress=lambda done: progress.advance(task, done)
            )
    except _ERRORS as error:
        fail(str(error))
    if not math.isfinite(found.loss):
        fail(NOT_FINITE)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _print_evaluation(found)


def _saved(out: Path, given: dict[str, Any], preset: str | None) -> Checkpoint:
    """The checkpoint to go on from. Raises ValueError where options say otherwise than it does."""
    saved = load_checkpoint(out / LAST)
    own = vars(saved.settings)
    others = [name for name, value in given.items() if name != "epochs" and value != own[name]]
    named = {} if preset is None else vars(_preset(preset))
    if any(value != own[name] for name, value in named.items() if name != "epochs" and name not in given):
        others.append("preset")
    if others:
        raise ValueError(f"a run goes on with its own settings; leave out {', '.join(sorted(others))}")
    saved.settings = replace(saved.settings, **given)
    return saved


def _preset(name: str) -> Settings:
    if name not in PRESETS:
        raise ValueError(f"{name!r} is no preset; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def _columns(names: str | None) -> Columns:
    if names is None:
        return Columns()
    if names.count(",") != 2:
        raise ValueError(f"--columns takes three names with commas between, not {names!r}")
    return Columns(*names_in(names))


def _read(source: str, reading: Reading) -> Corpus:
    with complaints.status(escape(f"reading {source}")):
        corpus = load_corpus(source, reading)
    if corpus.unlabelled:
        complaints.print(f"{source}: left out {corpus.unlabelled} pairs without a label", markup=False, soft_wrap=True)
    return corpus


def _vectors(source: str, vocabulary: Vocabulary, settings: Settings) -> Tensor:
    found = load_word_vectors(source, vocabulary)
    # of those that coverage is a share of: files have no <unk> and no <pad>
    _note(f"{found.coverage:.1%} of {len(vocabulary) - 2} words have a vector in {source}")
    return found.embedding(vocabulary, missing=settings.missing, normalize=settings.normalize, seed=settings.seed)


def _note(text: str) -> None:
    """Print a line. Training goes on where nobody reads it any more."""
    with suppress(SystemExit):  # rich's answer to a closed pipe
        console.print(text, markup=False, soft_wrap=True)


def _run(run: Training) -> bool:
    """Train with a bar, a line an epoch, and Ctrl-C as the wish to stop after the step."""
    done = len(run.history)
    with _interrupts() as interrupted, pairs_bar() as (progress, task):

        def report(reached: Reached) -> None:
            nonlocal done
            for numbers in run.history[done:]:
                complaints.print(_epoch_line(numbers), soft_wrap=True)
            done = len(run.history)
            progress.update(
                task,
                description=f"epoch {reached.epoch + 1}/{run.settings.epochs}",
                completed=reached.pairs,
                total=len(run.training),
                told=f"loss {reached.loss:.4f}  accuracy {reached.accuracy:.4f}",
            )

        finished = run.run(report, lambda: bool(interrupted))
    for numbers in run.history[done:]:
        complaints.print(_epoch_line(numbers), soft_wrap=True)
    return finished


def _epoch_line(numbers: dict[str, Any]) -> str:
    return "  ".join(
        f"{k.replace('_', ' ')} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items()
    )


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """What Ctrl-C was pressed, instead of KeyboardInterrupt; the second one ends the process as ever.

    To launched processes both the terminal and the launcher tell the same Ctrl-C, so that the second is no second wish.
    """
    pressed: list[int] = []

    def note(number: int, frame: object) -> None:
        pressed.append(number)
        if not are_launched():
            signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _print_evaluation(found: Evaluation) -> None:
    console.print(f"[bold]accuracy {found.accuracy:.4f}[/]  loss {found.loss:.4f}  {found.pairs} pairs")
    measures = _table("classes", "class", "precision", "recall", "f1", "pairs")
    confusions = _table("confusions", "class", *(escape(f"said {name}") for name in found.classes))
    for (name, numbers), row in zip(found.classes.items(), found.confusion, strict=True):
        shares = (f"{numbers[key]:.4f}" for key in ("precision", "recall", "f1"))
        measures.add_row(escape(name), *shares, str(numbers["pairs"]))
        confusions.add_row(escape(name), *map(str, row))
    lengths = _table("by length", "tokens of both", "pairs", "accuracy")
    for name, numbers in found.by_length.items():
        lengths.add_row(name, str(numbers["pairs"]), f"{numbers['accuracy']:.4f}")
    console.print(measures, confusions, lengths)


def _table(title: str, first: str, *others: str) -> Table:
    """Of numbers for what its first column names; what is too wide for the terminal is folded, never cut."""
    table = Table(title=title, title_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table
