"""python -m benchmarks.tune: try the Triton kernels' tile choices on this GPU, and write down the fastest.

The table goes to kernels/triton/tuned/<architecture>.json, which dispatch reads: no user's call is ever spent on
trying things out. A choice is kept only if its results are right and it beats the one before by 2 % or more.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from coalign.kernels.gpu import architecture
from coalign.kernels.triton import choices, prepared
from rich.console import Console
from torch import Tensor
from triton.errors import TritonError

from coalign import FrozenDecomposableAttention, PairBatch

from . import contenders, warm_up
from .cases import Case, inputs_of
from .clock import Call, graphed, in_turn, seconds
from .measure import calls_of, check, check_gradients, hold
from .model_cases import Book, make_batch, ours

FOLDER = Path(__file__).parents[1] / "kernels" / "triton" / "tuned"
GAIN = 0.98
Value = list[int]


def search(
    candidates: dict[str, list[Value]],
    prepare: Callable[[str, list[Value]], None],
    time_of: Callable[[str, Value | None], float | None],
    until: float,
) -> Iterator[tuple[str, Value, float, float]]:
    """For each key the fastest value, where it beats the default: key, value, seconds, the default's seconds.

    prepare is called with each key and its values before any of them is timed. time_of(key, None) is the default's
    time; None of a value says that it can't be used. No key is begun after `until`, by time.monotonic, and none is left
    half searched.
    """
    for key, values in candidates.items():
        if time.monotonic() > until:
            return
        prepare(key, values)
        default = time_of(key, None)
        if default is None:
            continue
        timed = [(taken, value) for value in values if (taken := time_of(key, value)) is not None]
        if timed and min(timed)[0] < GAIN * default:
            yield key, min(timed)[1], min(timed)[0], default


def candidates() -> dict[str, list[Value]]:
    """What is worth trying, the benchmarks' most important kernels first."""
    found: dict[str, list[Value]] = {}
    for kind in ("half", "tf32", "ieee"):
        for size in (64, 32, 16, 128):
            for kernel, backward in itertools.product(("tile", "ragged"), (False, True)):
                most = choices.TILE_BACKWARD_MAX if backward else choices.TILE_FORWARD_MAX
                if size <= most and (size > 16 or kernel == "tile"):
                    found[choices.key(kernel, backward, kind, size)] = _tiles(kernel, size)  # type: ignore[arg-type]
        for widest, backward in itertools.product((64, 256, 128), (False, True)):
            blocks = itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (2, 3))
            found[choices.key("stream", backward, kind, widest)] = [  # type: ignore[arg-type]
                [m, n, widest, min(widest, 128), warps, stages] for m, n, warps, stages in blocks if n <= m
            ]
        for rows in (64, 128):
            sizes = itertools.product((4, 8, 16), (16, 32, 64))
            found[choices.key("frozen", False, kind, rows)] = [list(size) for size in sizes]  # type: ignore[arg-type]
    return found


def _tiles(kernel: str, size: int) -> list[Value]:
    """Warps, stages and the widest chunks of features and of values. Few for ragged tiles: each is several kernels."""
    warps = {16: (1, 2, 4), 32: (2, 4), 64: (4, 8), 128: (8,)}[size]
    chunks = ((32, 32), (64, 64), (128, 64), (256, 128))
    if kernel == "ragged":
        warps, chunks = (2, 4, 8), chunks[:3]
    stages = (1, 2, 3) if kernel == "tile" else (1, 2)
    return [[w, s, h, d] for w, s, (h, d) in itertools.product(warps, stages, chunks)]


def case_of(key: str) -> Case:
    """The sizes at which a choice is timed."""
    kernel, _, kind, size = key.split()
    dtype = torch.bfloat16 if kind == "half" else torch.float32
    if kernel in ("tile", "ragged"):
        rows = {16: 16, 32: 32, 64: 50, 128: 128}[int(size)]
        lengths = "full" if kernel == "tile" else "snli"
        return Case(key, 2048, rows, rows, dtype=dtype, tf32=kind == "tf32", lengths=lengths)  # type: ignore[arg-type]
    widths = {"64": (64, 64), "128": (128, 128), "256": (200, 100)}[size]
    return Case(key, 16, 1024, 1024, *widths, dtype=dtype, tf32=kind == "tf32")


def time_on_gpu(key: str, value: Value | None) -> float | None:
    """Seconds of a replayed graph of a call with that choice; None where it does not compile, does not fit or is wrong.

    Of graphs, for of calls one would see the processor's part, which the choice does not change.
    """
    try:
        with _tried(key, value):
            calls = [graphed(call) for call in _calls(key)]
        return median(seconds("cuda", in_turn(calls, 0), 20) for _ in range(5))
    except _UNUSABLE:
        return None


_UNUSABLE = (RuntimeError, TritonError)  # Wrong and no memory; and the compiler's, where a choice needs too much


def _compile(key: str, value: Value) -> None:
    with contextlib.suppress(*_UNUSABLE), _tried(key, value):
        for call in _calls(key)[:1]:
            call()


@contextlib.contextmanager
def _tried(key: str, value: Value | None) -> Iterator[None]:
    """While it lasts, launches take that choice."""
    torch.set_float32_matmul_precision("high" if " tf32 " in key else "highest")
    if value is not None:
        choices.trial[key] = value
    prepared.forget()
    try:
        yield
    finally:
        choices.trial.clear()
        prepared.forget()


def _calls(key: str) -> list[Call]:
    return _frozen_calls(key) if key.startswith("frozen") else _operator_calls(key)


def _operator_calls(key: str) -> list[Call]:
    case = case_of(key)
    inputs = inputs_of(case, 2, "cuda")
    align = contenders.contenders(case, inputs[0], "triton")["coalign"]
    check(case, "coalign", align, inputs[0])
    if " backward " not in key:
        return calls_of(align, "coalign", inputs, "forward")
    check_gradients(case, align, inputs[0])
    return calls_of(align, "coalign", inputs, "forward + backward")


def _frozen_calls(key: str) -> list[Call]:
    made, batches, expected = _frozen(" half " in key)
    hold("a frozen model's scores are", made(batches[0]), expected, 2e-2)
    return [lambda batch=batch: made(batch) for batch in batches]  # type: ignore[misc]


@lru_cache(maxsize=1)
def _frozen(half: bool) -> tuple[FrozenDecomposableAttention, list[PairBatch], Tensor]:
    """A frozen model, batches, and its scores of the first of them."""
    torch.manual_seed(0)
    model = ours(Book().eval().to("cuda"))
    made = model.freeze(torch.bfloat16 if half else torch.float32)
    batches = [make_batch(4096, seed).packed.to("cuda") for seed in range(2)]
    made.backend = "reference"
    expected = made(batches[0])
    made.backend = "triton"
    return made, batches, expected


def main(
    limit: Annotated[float, typer.Option("--seconds", help="begin no kernel after so many")] = 440.0,
    processes: Annotated[int, typer.Option(help="that compile at the same time; 0: one a core", min=0)] = 0,
    only: Annotated[str, typer.Option(help="kernels whose name holds this, as in 'tile forward half 64'")] = "",
) -> None:
    """Tune the Triton kernels for this GPU."""
    console = Console()
    if not torch.cuda.is_available():
        console.print("[yellow]no GPU here: nothing to tune")
        return
    name = architecture(torch.device("cuda", torch.cuda.current_device()))
    path = FOLDER / f"{name}.json"
    about: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "choices": {}}
    if path.exists():
        about["choices"] = json.loads(path.read_text())["choices"]
    until = time.monotonic() + limit  # compiling counts too
    work = {key: values for key, values in candidates().items() if only in key}
    with warm_up.Processes(processes or os.cpu_count() or 1) as pool:

        def compile_all(key: str, values: list[Value]) -> None:  # into Triton's cache: that is what takes the time
            pool.each(_compile, [(key, value) for value in values])

        for key, value, taken, default in search(work, compile_all, time_on_gpu, until):
            console.print(f"{key}: {value}, {default / taken:.2f} times as fast")
            about["choices"][key] = value
            about["date"] = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
            FOLDER.mkdir(exist_ok=True)
            path.write_text(json.dumps(about, indent=1) + "\n")  # at once: not lost when something stops
    choices.tuned.cache_clear()
    prepared.forget()
    console.print(f"{len(about['choices'])} choices in {path}")


if __name__ == "__main__":
    typer.run(main)
