"""python -m benchmarks --model: inference, one pair and a training step of the whole model against d2l's own.

Every contender's scores are held against float64 before it is timed; then they take turns as in `measure`. A training
step is zero_grad, forward with dropout 0.2, cross entropy, backward and PyTorch's fused Adam, for all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.table import Table
from torch import nn

from . import measure, results
from .clock import NotCaptured, graphed
from .model_cases import (
    BASELINE,
    CASES,
    COMPILED,
    TARGETS,
    TO_LONGEST,
    Batch,
    Book,
    Contender,
    ModelCase,
    Subject,
    contenders,
    ours,
    random_subject,
)
from .report import as_markdown, as_table, distinctions, runs, time, verdict


def run(
    case: ModelCase,
    rounds: int,
    threads: int,
    step: Callable[[], None] = lambda: None,
    compiled: bool = True,
    device: str = "cpu",
    graph: bool = False,
    subject: Callable[[ModelCase], Subject] = random_subject,
) -> list[dict[str, Any]]:
    """Time the contenders of a case: records for `results`, in seconds a call.

    graph: replay CUDA graphs. subject: gives the weights and the sentences.
    """
    torch.set_num_threads(threads)
    torch.compiler.reset()
    if device == "cpu":
        measure.settle_allocator()
    else:
        torch.set_float32_matmul_precision("high")
    book, batches, weights = subject(case)
    book, batches = book.to(device), [batch.to(device) for batch in batches]
    found = contenders(case, book, compiled)
    make = _training if case.trains else _inference
    calls, absent = {}, {}
    for name, contender in found.items():
        try:
            check({name: contender}, book, batches[0])
        except measure.Wrong as error:
            if device == "cpu":
                raise
            absent[name] = str(error)  # the others' numbers are not lost with it, where a device is there for minutes
            continue
        of = make(contender, batches)
        if device != "cpu" or name.startswith(COMPILED):
            of[0]()  # compiles: as in `measure.compare`
        try:
            calls[name] = [graphed(call) for call in of] if graph else of
        except NotCaptured as error:
            absent[name] = str(error)
    timings = {timing.contender: timing for timing in measure.take_turns(calls, rounds, step, device, graph)}
    tokens = sum(len(b.packed.ids_a) + len(b.packed.ids_b) for b in batches) / len(batches) / case.pairs
    return [
        {
            "case": case.name,
            "size": f"{case.pairs} pairs of {tokens:.1f} tokens",
            "weights": weights,
            "contender": name,
            "peer": contender.peer,
            "kind": device,
            "graph": graph,
            **(_numbers(timings[name]) if name in timings else {"absent": absent[name]}),
            "threads": threads,
            **results.environment(device),
        }
        for name, contender in found.items()
    ]


def _numbers(timing: measure.Timing) -> dict[str, Any]:
    return {
        **{f"p{round(100 * q)}": timing.quantile(q) for q in (0.2, 0.5, 0.8)},
        "samples": [float(f"{t:.4g}") for t in timing.samples],
        "memory": timing.memory,
    }


def check(found: dict[str, Contender], book: Book, batch: Batch) -> None:
    """Hold every contender's scores against the plain model in float64.

    Raises:
        measure.Wrong: they differ by more than the contender's budget.
    """
    for name, contender in found.items():
        plain = ours(book, contender.masked).double()
        plain.backend = "reference"
        form = batch.to_longest if name.startswith(TO_LONGEST) else batch.to_fifty
        with torch.no_grad():
            truth, scores = plain(form), contender.scores(batch)
        measure.hold(f"{name}'s scores are", scores, truth, contender.budget)


def _inference(contender: Contender, batches: list[Batch]) -> list[Callable[[], object]]:
    def call(batch: Batch) -> object:
        with torch.no_grad():
            return contender.scores(batch)

    return [lambda batch=batch: call(batch) for batch in batches]


def _training(contender: Contender, batches: list[Batch]) -> list[Callable[[], object]]:
    contender.model.train()
    parameters = list(contender.model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True, capturable=parameters[0].is_cuda)

    def call(batch: Batch) -> object:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(contender.scores(batch).float(), batch.labels)
        loss.backward()
        optimizer.step()
        return loss

    return [lambda batch=batch: call(batch) for batch in batches]


HEADINGS = ("case", "model", "time", "pairs/s", f"× {BASELINE}", "× longest", "× compile", "× fastest", "target")


def table(lines: list[dict[str, Any]]) -> Table:
    """Each contender's ratio to the three peers; the latest result of a kind counts."""
    return as_table(HEADINGS, _rows(lines))


def markdown(lines: list[dict[str, Any]]) -> str:
    """The table for the README, without targets."""
    return as_markdown(HEADINGS[:-1], (row[:-1] for row in _rows(lines)))


IN_HEADLINE = (
    ("training step", "packed"),
    ("training step", "packed, autocast"),
    ("inference", "packed"),
    ("inference", "frozen"),
    ("inference", "frozen, bfloat16"),
)


def headline(lines: list[dict[str, Any]]) -> list[str]:
    """What the README says first, of the latest results on a processor: a table's row for each kind of weights.

    With the most threads that all of it has.
    """
    found = runs(lines, "threads", "case")
    rows = []
    for weights in ("", ", trained"):
        cases = [(f"{case}{weights}", name) for case, name in IN_HEADLINE]
        counts = [n for n, _ in found if all((n, case) in found for case, _ in cases)]
        if not counts:
            continue
        latest = {case: of[-1] for (n, case), of in found.items() if n == max(counts)}
        ratios = (latest[case][BASELINE]["p50"] / latest[case][name]["p50"] for case, name in cases)
        rows.append(f"| {lines[-1]['device']}{weights} | {' | '.join(f'{ratio:.1f}' for ratio in ratios)} |")
    return rows


def _rows(lines: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    latest = [of[-1] for of in runs(lines, "case", "graph", "threads", "device").values() if of[-1]]
    first = [next(iter(of.values())) for of in latest]
    for of, any_of, told in zip(latest, first, distinctions(first), strict=True):
        case, how = any_of["case"], ["graph"] if any_of["graph"] else []
        fastest = min((line["p50"] for line in of.values() if line["peer"]), default=None)
        for name, line in of.items():
            ratios = [
                of[peer]["p50"] / line["p50"] if peer in of else None for peer in (BASELINE, TO_LONGEST, COMPILED)
            ]
            ratios.append(fastest and fastest / line["p50"])
            target = TARGETS[line["kind"]].get((case, name))
            ratio = (ratios[0] if line["kind"] == "cpu" else ratios[-1]) or 0.0
            yield (
                ", ".join([case, *how, *told]),
                name,
                time(line["p50"]),
                f"{int(line['size'].split()[0]) / line['p50']:,.0f}",
                *("" if r is None else f"{r:.2f}" for r in ratios),
                "" if target is None else verdict(f"{target:g}", ratio >= target),
            )


def profile(threads: int, autocast: bool = False, steps: int = 8, operators: int | None = 20) -> str:
    """Where a training step's time goes, as text: a line for each of the longest operators (None: for all)."""
    torch.set_num_threads(threads)
    case = next(case for case in CASES["cpu"] if case.trains)
    book, batches, _ = random_subject(case)
    contender = contenders(case, book, compiled=False)["packed, autocast" if autocast else "packed"]
    calls = _training(contender, batches)
    for call in calls:
        call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for k in range(steps):
            calls[k % len(calls)]()
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    lines = [f"{'operator':42} {'ms a step':>9} {'share':>6} {'calls':>6}"]
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:operators]:
        share = event.self_cpu_time_total / total
        milliseconds = event.self_cpu_time_total / 1000 / steps
        lines.append(f"{event.key[:42]:42} {milliseconds:9.3f} {share:6.1%} {event.count / steps:6.0f}")
    lines.append(f"{'all':42} {total / 1000 / steps:9.3f}")
    return "\n".join(lines)
