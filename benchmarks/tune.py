"""python -m benchmarks.tune: try the Triton kernels' tile choices on this GPU, and write down the fastest.

The table goes to kernels/triton/tuned/<architecture>.json, which dispatch reads: no user's call is ever spent on
trying things out. A choice is kept only if its results are right and it beats the one before by 2 % or more.
"""

from __future__ import annotations

import datetime
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from coalign.kernels.gpu import architecture
from coalign.kernels.triton import choices
from rich.console import Console

from . import contenders
from .cases import Case, make
from .clock import Call, in_turn, seconds
from .measure import Wrong, calls_of, check
from .model_cases import Book, make_batch, ours

FOLDER = Path(__file__).parents[1] / "kernels" / "triton" / "tuned"
GAIN = 0.98
Value = list[int]


def search(
    candidates: dict[str, list[Value]], time_of: Callable[[str, Value | None], float | None], until: float
) -> Iterator[tuple[str, Value, float, float]]:
    """For each key the fastest value, where it beats the default: key, value, seconds, the default's seconds.

    time_of(key, None) is the default's time; None of a value says that it can't be used. No key is begun after
    `until`, by time.monotonic, and none is left half searched.
    """
    for key, values in candidates.items():
        if time.monotonic() > until:
            return
        default = time_of(key, None)
        if default is None:
            continue
        timed = [(taken, value) for value in values if (taken := time_of(key, value)) is not None]
        if timed and min(timed)[0] < GAIN * default:
            yield key, min(timed)[1], min(timed)[0], default


def candidates() -> dict[str, list[Value]]:
    """What is worth trying, the benchmarks' most important kernels first."""
    found: dict[str, list[Value]] = {}
    for kind, size in itertools.product(("half", "tf32", "ieee"), (64, 32, 16, 128)):
        for backward in (False, True):
            if size <= (choices.TILE_BACKWARD_MAX if backward else choices.TILE_FORWARD_MAX):
                warps = (1, 2, 4) if size == 16 else (2, 4, 8)
                found[choices.key("tile", backward, kind, size)] = [[w, s] for w in warps for s in (1, 2, 3)]  # type: ignore[arg-type]
    for kind, widest, backward in itertools.product(("half", "tf32", "ieee"), (64, 256, 128), (False, True)):
        blocks = itertools.product((32, 64, 128), (32, 64), (4, 8), (1, 2, 3))
        found[choices.key("stream", backward, kind, widest)] = [  # type: ignore[arg-type]
            [m, n, widest, min(widest, 128), warps, stages] for m, n, warps, stages in blocks if n <= m
        ]
    for kind, rows in itertools.product(("half", "tf32", "ieee"), (64, 128)):
        sizes = itertools.product((4, 8, 16), (16, 32, 64))
        found[choices.key("frozen", False, kind, rows)] = [list(size) for size in sizes]  # type: ignore[arg-type]
    return found


def case_of(key: str) -> Case:
    """The sizes at which a choice is timed."""
    kernel, _, kind, size = key.split()
    dtype = torch.bfloat16 if kind == "half" else torch.float32
    if kernel == "tile":
        rows = {16: 16, 32: 32, 64: 50, 128: 128}[int(size)]
        return Case(key, 2048, rows, rows, dtype=dtype, tf32=kind == "tf32", lengths="half")
    widths = {"64": (64, 64), "128": (128, 128), "256": (200, 100)}[size]
    return Case(key, 16, 1024, 1024, *widths, dtype=dtype, tf32=kind == "tf32")


def time_on_gpu(key: str, value: Value | None) -> float | None:
    """Seconds of a call with that choice; None where it does not compile, does not fit or is wrong."""
    torch.set_float32_matmul_precision("high" if " tf32 " in key else "highest")
    choices.trial.clear()
    if value is not None:
        choices.trial[key] = value
    try:
        calls = _frozen_calls(key) if key.startswith("frozen") else _operator_calls(key)
        for call in calls:
            call()
        return median(seconds("cuda", in_turn(calls, 0), 10) for _ in range(5))
    except (Wrong, RuntimeError, torch.OutOfMemoryError):
        return None
    except Exception as error:  # the compiler's own, of many kinds, when a choice needs more than there is
        if type(error).__module__.startswith("triton"):
            return None
        raise
    finally:
        choices.trial.clear()


def _operator_calls(key: str) -> list[Call]:
    case = case_of(key)
    inputs = [make(case, seed, "cuda") for seed in range(2)]
    align = contenders.contenders(case, inputs[0], "triton")["coalign"]
    check(case, "coalign", align, inputs[0])
    direction = "forward + backward" if " backward " in key else "forward"
    return calls_of(align, "coalign", inputs, direction)  # type: ignore[arg-type]


def _frozen_calls(key: str) -> list[Call]:
    torch.manual_seed(0)
    model = ours(Book().eval().to("cuda"))
    made = model.freeze(torch.bfloat16 if " half " in key else torch.float32)
    batches = [make_batch(4096, seed).packed.to("cuda") for seed in range(2)]
    made.backend = "reference"
    expected = made(batches[0])
    made.backend = "triton"
    error = float((made(batches[0]) - expected).norm() / expected.norm())
    if not error <= 2e-2:
        raise Wrong(f"a frozen model's scores are off by {error:.1e}")
    return [lambda batch=batch: made(batch) for batch in batches]  # type: ignore[misc]


def main(
    limit: Annotated[float, typer.Option("--seconds", help="begin no kernel after so many")] = 440.0,
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
    for key, value, taken, default in search(candidates(), time_on_gpu, time.monotonic() + limit):
        console.print(f"{key}: {value}, {default / taken:.2f} times as fast")
        about["choices"][key] = value
        about["date"] = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
        FOLDER.mkdir(exist_ok=True)
        path.write_text(json.dumps(about, indent=1) + "\n")  # at once: what is found is not lost when something stops
    choices.tuned.cache_clear()
    console.print(f"{len(about['choices'])} choices in {path}")


if __name__ == "__main__":
    typer.run(main)
