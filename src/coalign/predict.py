"""The command `coalign predict`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import torch
import typer
from rich.progress import Progress, TaskID

from .kernels import BackendUnavailable
from .model.atomic import check_writable, replacing
from .model.nli import Columns, JsonPairs, Predictor, Reached, predict_lines, record
from .model.nli.prediction_shards import predict_shard
from .model.nli.ranks import joined
from .model.nli.training import BEST, FAILED, LAST
from .progress import pairs_bar
from .terminal import BackendOption, DeviceOption, JsonOption, complaints, console, device_named, fail, names_in, quiet

_ERRORS = (ValueError, OSError, BackendUnavailable, RuntimeError)
_TOLD = 20  # malformed lines that are named; the others are counted
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

CheckpointArgument = Annotated[
    Path, typer.Argument(help="A folder that `coalign train` wrote, or a checkpoint's .json.", show_default=False)
]


def predict(
    model: CheckpointArgument,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            help="A premise and a hypothesis, each in quotes; or a file of JSON lines; - or nothing: standard input."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A file for the answers; default: standard output.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="premise,hypothesis: the fields' names; default: SNLI's, or those very names.")
    ] = None,
    precision: Annotated[str, typer.Option(help=f"Of the frozen model: {' or '.join(PRECISIONS)}.")] = "float32",
    device: DeviceOption = None,
    backend: BackendOption = None,
    as_json: JsonOption = False,
) -> None:
    """Label pairs of sentences with a trained model: one pair, or a JSON line for each JSON line, in order.

    A malformed line's answer says what is wrong with it, and the exit status
    is then 1. Several processes share a file's lines:
    torchrun --nproc-per-node 2 -m coalign predict MODEL FILE --out OUT
    """
    given = texts or ["-"]
    if len(given) > 2:
        fail(f"give a premise and a hypothesis, each in quotes, or one file; not {len(given)} arguments")
    if len(given) == 2 and out is not None:
        fail("--out is for a file's answers; a pair's is printed")
    if precision not in PRECISIONS:
        fail(f"--precision must be {' or '.join(PRECISIONS)}, not {precision!r}")
    out = None if str(out) == "-" else out
    if len(given) == 2 and os.path.isfile(given[0]):  # Path.is_file fails where a sentence is too long for a name
        fail(f"{given[0]} is a file: give it alone, and --out for its answers")
    if out is not None:
        try:
            _check_out(out, model, given[0])
        except OSError as error:
            fail(str(error))
    if given == ["-"] and sys.stdin is None:
        fail("standard input is closed; give a file, or a premise and a hypothesis")
    if out is None and sys.stdout is None:
        fail("standard output is closed; give --out a file")
    place = device_named(device)
    try:
        with joined(place) as ranks, quiet(not ranks.first):
            pairs = JsonPairs(_columns(columns))
            predictor = Predictor.load(model, dtype=PRECISIONS[precision], backend=backend).to(place)
            if len(given) == 2:
                if ranks.first:
                    _print_pair(predictor, given[0], given[1], as_json)
                return
            path = None if given[0] == "-" else Path(given[0])
            with _telling(path, ranks.first and not (out is None and sys.stdout.isatty())) as told:
                if ranks.world_size > 1:
                    if path is None or out is None:
                        raise ValueError("several processes need a file to share, and --out")
                    reached = predict_shard(predictor, path, out, pairs, ranks, complain=told.complain, progress=told)
                else:
                    with _source(path) as file, _sink(out) as written:
                        reached = predict_lines(
                            predictor, file, written, pairs=pairs, complain=told.complain, progress=told
                        )
            complaints.print(f"{reached.lines} lines, {reached.malformed} of them malformed", highlight=False)
    except BrokenPipeError:  # who reads the answers has enough of them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except _ERRORS as error:
        fail(str(error))
    if reached.malformed:
        raise typer.Exit(1)


def _check_out(out: Path, model: Path, source: str) -> None:
    """That answers can be written, and take the place of nothing that is read."""
    if out.is_dir():
        fail(f"--out {out} is a folder")
    check_writable(out)
    if not out.exists():
        return
    if _is_read(out, source):
        fail(f"--out {out} is the file that is read")
    if _is_of_a_model(out.resolve(), model):
        fail(f"--out {out} is a part of the model")


def _is_read(out: Path, source: str) -> bool:
    """Whether out is the source, or where that is standard input, the file that comes from there."""
    if source == "-":
        return sys.stdin is not None and out.is_file() and os.path.samestat(out.stat(), os.fstat(0))
    return os.path.exists(source) and out.samefile(source)


def _is_of_a_model(file: Path, model: Path) -> bool:
    """Whether a file is the model's checkpoint, another of its run's, or tensors beside it."""
    if model.is_file() and file.samefile(model):
        return True
    folder = model if model.is_dir() else model.parent
    return file.parent == folder.resolve() and (file.suffix == ".safetensors" or file.name in (BEST, LAST, FAILED))


def _columns(names: str | None) -> Columns:
    if names is None:
        return Columns()
    if names.count(",") != 1:
        raise ValueError(f"--columns takes two names with a comma between, not {names!r}")
    return Columns(*names_in(names))


def _print_pair(predictor: Predictor, premise: str, hypothesis: str, as_json: bool) -> None:
    labels, probabilities = predictor([premise], [hypothesis])
    if as_json:
        print(record(predictor.labels, probabilities[0]), end="")
        return
    console.print(labels[0], style="bold", markup=False, highlight=False)
    for name, probability in zip(predictor.labels, probabilities[0].tolist(), strict=True):
        console.print(f"  {probability:.4f}  {name}", markup=False, highlight=False)


@contextmanager
def _source(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdin.buffer
    else:
        with path.open("rb") as file:
            yield file


@contextmanager
def _sink(out: Path | None) -> Iterator[Callable[[bytes], object]]:
    """What takes the answers, and keeps none back from a reader; a file takes its name when all is written."""
    if out is None:
        yield _at_once(sys.stdout.buffer)
    else:
        with replacing(out) as unfinished, unfinished.open("wb") as file:
            yield file.write if unfinished.is_file() else _at_once(file)


def _at_once(stream: BinaryIO) -> Callable[[bytes], object]:
    return lambda text: (stream.write(text), stream.flush())


class _Told:
    """A bar whose total follows from the file's size, and malformed lines by number."""

    def __init__(self, progress: Progress, task: TaskID, size: int | None) -> None:
        self._bar, self._task, self._size, self._complaints = progress, task, size, 0

    def __call__(self, reached: Reached) -> None:
        total = self._size and round(reached.lines * self._size / max(reached.bytes, 1))
        told = f"{reached.malformed} malformed" if reached.malformed else ""
        self._bar.update(self._task, completed=reached.lines, total=total, told=told)

    def complain(self, number: int, reason: str) -> None:
        """Name a line, whichever process reads it."""
        self._complaints += 1
        with quiet(False):
            if self._complaints <= _TOLD:
                complaints.print(f"line {number}: {reason}", markup=False, highlight=False, soft_wrap=True)
            if self._complaints == _TOLD + 1:
                complaints.print("more malformed lines follow; each one's answer says what is wrong with it")


@contextmanager
def _telling(path: Path | None, bar: bool) -> Iterator[_Told]:
    size = path.stat().st_size if path is not None and path.is_file() else None
    with pairs_bar(disable=not bar) as (progress, task):
        yield _Told(progress, task, size)
