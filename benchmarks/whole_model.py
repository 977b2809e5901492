"""python -m benchmarks --model: inference, one pair and a training step of the whole model against d2l's own.

Every contender's scores are held against float64 before it is timed; then they take turns as in `measure`. A training
step is zero_grad, forward with dropout 0.2, cross entropy, backward and PyTorch's fused Adam, for all alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.table import Table
from torch import nn

from . import measure, results
from .model_cases import BASELINE, CASES, TARGETS, Batch, Book, Contender, contenders, make_batch, ours
from .report import time

SETS = 4


def run(
    case: str, rounds: int, threads: int, step: Callable[[], None] = lambda: None, compiled: bool = True
) -> list[dict[str, Any]]:
    """Time the contenders of a case of `CASES`: records for `results`, in seconds a call."""
    torch.set_num_threads(threads)
    torch.compiler.reset()
    torch.manual_seed(0)
    measure.settle_allocator()
    book = Book().eval()
    batches = [make_batch(CASES[case], seed) for seed in range(SETS)]
    found = contenders(case, book, compiled)
    check(found, book, batches[0])
    make = _training if case == "training step" else _inference
    calls = {name: make(contender, batches) for name, contender in found.items()}
    tokens = sum(len(b.packed.ids_a) + len(b.packed.ids_b) for b in batches) / SETS / CASES[case]
    return [
        {
            "case": case,
            "size": f"{CASES[case]} pairs of {tokens:.1f} tokens",
            "contender": timing.contender,
            **{f"p{round(100 * q)}": timing.quantile(q) for q in (0.2, 0.5, 0.8)},
            "samples": [float(f"{t:.4g}") for t in timing.samples],
            "memory": timing.memory,
            "threads": threads,
            **results.environment("cpu"),
        }
        for timing in measure.take_turns(calls, rounds, step)
    ]


def check(found: dict[str, Contender], book: Book, batch: Batch) -> None:
    """Hold every contender's scores against the plain model in float64.

    Raises:
        measure.Wrong: they differ by more than the contender's budget.
    """
    for name, contender in found.items():
        plain = ours(book, contender.masked).double()
        plain.backend = "reference"
        form = batch.to_longest if name == "d2l, padded to the longest" else batch.to_fifty
        with torch.no_grad():
            truth, scores = plain(form), contender.scores(batch).double()
        error = float((scores - truth).norm() / truth.norm())
        if not error <= contender.budget:
            raise measure.Wrong(f"{name}'s scores are off by {error:.1e}, more than {contender.budget:.0e}")


def _inference(contender: Contender, batches: list[Batch]) -> list[Callable[[], object]]:
    def call(batch: Batch) -> object:
        with torch.no_grad():
            return contender.scores(batch)

    return [lambda batch=batch: call(batch) for batch in batches]


def _training(contender: Contender, batches: list[Batch]) -> list[Callable[[], object]]:
    contender.model.train()
    optimizer = torch.optim.Adam(contender.model.parameters(), lr=1e-3, fused=True)

    def call(batch: Batch) -> object:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(contender.scores(batch).float(), batch.labels)
        loss.backward()
        optimizer.step()
        return loss

    return [lambda batch=batch: call(batch) for batch in batches]


HEADINGS = ("case", "model", "time", "pairs/s", f"× {BASELINE}", "× longest", "× compile", "target")


def table(lines: list[dict[str, Any]]) -> Table:
    """Each contender's ratio to the three peers; the latest result of a kind counts."""
    made = Table(*HEADINGS)
    for row in _rows(lines):
        made.add_row(*row)
    return made


def markdown(lines: list[dict[str, Any]]) -> str:
    """The table for the README, without targets."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *_rows(lines)]
    return "\n".join("| " + " | ".join(row[:-1]) + " |" for row in rows)


def _rows(lines: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    latest: dict[str, dict[str, dict[str, Any]]] = {}
    for line in lines:
        latest.setdefault(line["case"], {})[line["contender"]] = line
    for case, of in latest.items():
        for name, line in of.items():
            ratios = {peer: of[peer]["p50"] / line["p50"] for peer in list(of)[:3] if peer in of}
            target = TARGETS.get((case, name))
            ratio = ratios.get(BASELINE, float("nan"))
            yield (
                case,
                name,
                time(line["p50"]),
                f"{CASES[case] / line['p50']:,.0f}",
                f"{ratio:.2f}",
                *(f"{ratios[p]:.2f}" if p in ratios else "" for p in ("d2l, padded to the longest", COMPILED)),
                "" if target is None else f"{target:g} {'met' if ratio >= target else 'missed'}",
            )


COMPILED = "torch.compile, padded to 50"


def profile(threads: int, autocast: bool = False, steps: int = 8, operators: int | None = 20) -> str:
    """Where a training step's time goes, as text: a line for each of the longest operators (None: for all)."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    batches = [make_batch(CASES["training step"], seed) for seed in range(SETS)]
    contender = contenders("training step", Book().eval(), compiled=False)["packed, autocast" if autocast else "packed"]
    calls = _training(copy.copy(contender), batches)
    for call in calls:
        call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for k in range(steps):
            calls[k % SETS]()
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    lines = [f"{'operator':42} {'ms a step':>9} {'share':>6} {'calls':>6}"]
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:operators]:
        share = event.self_cpu_time_total / total
        milliseconds = event.self_cpu_time_total / 1000 / steps
        lines.append(f"{event.key[:42]:42} {milliseconds:9.3f} {share:6.1%} {event.count / steps:6.0f}")
    lines.append(f"{'all':42} {total / 1000 / steps:9.3f}")
    return "\n".join(lines)
