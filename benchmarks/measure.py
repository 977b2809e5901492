"""How it is measured: contenders take turns in one process, on inputs that change from call to call.

Before anything is timed, every contender's outputs on the timed inputs are held against the same computation in
float64. One round gives every contender, in a changing order, a burst of calls; its time is the burst's mean, and
what is reported are the quantiles over the rounds. Inputs rotate, so that large ones are in no cache when used;
"hot" uses one all the time. On a GPU a case is measured twice: as calls, and as replayed CUDA graphs.

A contender that is so slow that its rounds would take more than PATIENCE takes part in fewer of them, spread over
all; one of which not even FEWEST calls fit in is called once, and that is its only sample: enough to say how many
times slower it is.
"""

from __future__ import annotations

import ctypes
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import contenders
from .cases import Case, Inputs, inputs_of
from .clock import Call, NotCaptured, graphed, in_turn, seconds
from .targets import Direction

BUDGET = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float64: 1e-12}
TF32_BUDGET = 4e-3
BURST = 0.03  # seconds
PATIENCE = 30.0  # seconds for all the rounds of a contender
FEWEST = 3  # samples, where a call leaves a choice


@dataclass(frozen=True)
class Timing:
    """Seconds a call, the mean of each round's burst; memory: bytes at the peak of one call beyond what was there
    before, where it can be told and a call for it can be afforded. absent: why there is no measurement."""

    contender: str
    samples: tuple[float, ...] = ()
    memory: int | None = None
    graph: bool = False
    hot: bool = False
    absent: str | None = None

    def quantile(self, q: float) -> float:
        """By linear interpolation between the samples next to it."""
        return float(torch.tensor(self.samples, dtype=torch.float64).quantile(q))


class Wrong(RuntimeError):
    """A contender's output is not what it should be: nothing of it may be timed."""


def compare(
    case: Case,
    direction: Direction,
    *,
    device: str = "cpu",
    rounds: int = 15,
    sets: int = 3,
    graph: bool = False,
    only: tuple[str, ...] | None = None,
    without: tuple[str, ...] = (),
    backend: str | None = None,
    step: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time the contenders of a case.

    Args:
        rounds: at how many turns each contender is measured, unless it is too slow for so many.
        sets: how many inputs rotate; 1: hot. graph: replay CUDA graphs.
        only: contenders by name; None: all of them. without: contenders that are said to be absent. backend: coalign's.
        step: called after every round, for a progress bar.

    Raises:
        Wrong: a contender's result is off by more than its dtype's budget.
    """
    if device == "cpu":
        settle_allocator()
    inputs = inputs_of(case, sets, device)
    found = contenders.contenders(case, inputs[0], backend)
    timings, calls = [], {}
    for name, align in found.items():
        if only is not None and name not in only:
            continue
        reason = "left out for want of time" if name in without else contenders.absent(name, case, graph, device)
        if reason:
            timings.append(Timing(name, graph=graph, hot=sets == 1, absent=reason))
            continue
        check(case, name, align, inputs[0])
        of = calls_of(align, name, inputs, direction)
        if device != "cpu" or name in contenders.COMPILED:
            of[0]()  # compiles: must be done before turns begin, for a first call there may be the only sample
        try:
            calls[name] = [graphed(call) for call in of] if graph else of
        except NotCaptured as error:
            timings.append(Timing(name, graph=graph, hot=sets == 1, absent=str(error)))
    return timings + take_turns(calls, rounds, step, device, graph)


def take_turns(
    calls: dict[str, list[Call]],
    rounds: int,
    step: Callable[[], None] = lambda: None,
    device: str = "cpu",
    graph: bool = False,
) -> list[Timing]:
    """Time contenders, each ready to be called on the same number of inputs, in turns."""
    samples: dict[str, list[float]] = {}
    plans: dict[str, tuple[int, int]] = {}  # rounds to take part in, calls in each
    for name, of in calls.items():
        call = _warm_up(device, of)
        once = _too_slow(call)
        samples[name] = [call] if once else []
        plans[name] = (0, 0) if once else (min(rounds, int(PATIENCE / call)), _burst(device, of, call))
    order = random.Random(0)
    for at in range(rounds):
        for name in order.sample(sorted(calls), len(calls)):
            own, count = plans[name]
            if at * own % rounds < own:  # in so many rounds, evenly spread
                samples[name].append(seconds(device, in_turn(calls[name], at), count))
        step()
    return [
        Timing(
            name,
            tuple(of),
            peak_memory(device, calls[name][0]) if plans[name][0] else None,
            graph,
            len(calls[name]) == 1,
        )
        for name, of in samples.items()
    ]


def check(case: Case, name: str, align: contenders.Align, inputs: Inputs) -> None:
    """Hold a contender's outputs against eager PyTorch in float64, tokens only."""
    if not inputs.padded:
        return
    exact = contenders.eager(*(t.double() for t in inputs.padded), *(inputs.masks or (None, None)))
    for output, found, truth, at in zip(("beta", "alpha"), align(*_operands(name, inputs)), exact, (0, 1), strict=True):
        if inputs.masks is not None:
            truth = truth[inputs.masks[at]]
            found = found if found.ndim == 2 else found[inputs.masks[at][:, : found.shape[1]]]
        hold(f"{case.name}: {name}'s {output} is", found, truth, _budget(case))


def check_gradients(case: Case, align: contenders.Align, inputs: Inputs) -> None:
    """Hold coalign's gradients of padded inputs against eager PyTorch's in float64, where tokens' outputs matter."""
    leaves = [t.detach().requires_grad_() for t in inputs.padded]
    exact = [t.detach().double().requires_grad_() for t in inputs.padded]
    masks = inputs.masks or (None, None)
    generator = torch.Generator().manual_seed(0)
    arriving = [
        torch.randn(rows.shape[:-1] + value.shape[-1:], generator=generator).to(value)
        for rows, value in ((leaves[0], leaves[3]), (leaves[1], leaves[2]))
    ]
    if inputs.masks is not None:
        arriving = [t * mask[..., None] for t, mask in zip(arriving, inputs.masks, strict=True)]
    found = torch.autograd.grad(list(align(*leaves)), leaves, arriving)
    truths = torch.autograd.grad(list(contenders.eager(*exact, *masks)), exact, [t.double() for t in arriving])
    budget = 2 * _budget(case)  # P and Q, and what arrives at them, are rounded
    for name, gradient, truth in zip(("f_a", "f_b", "a", "b"), found, truths, strict=True):
        hold(f"{case.name}: coalign's gradient of {name} is", gradient, truth, budget)


def _budget(case: Case) -> float:
    return TF32_BUDGET if case.tf32 else BUDGET[case.dtype]


def hold(what: str, found: Tensor, truth: Tensor, budget: float) -> None:
    """Raise Wrong, which names `what` and its verb, where the relative error is beyond the budget or no number."""
    error = float((found.double() - truth).norm() / truth.norm())
    if not error <= budget:
        raise Wrong(f"{what} off by {error:.1e}, more than {budget:.0e}")


def settle_allocator() -> None:
    """Let glibc keep freed memory: until it has seen a large block freed, it gives every large tensor back to the
    system, and each call pays for fresh pages. Which contender that hits would depend on their order."""
    block = torch.empty(31 << 20, dtype=torch.uint8)
    del block


def peak_memory(device: str, call: Call) -> int | None:
    """Bytes by which one call raises the device's, or the process' resident, memory at most; None where that is not
    known."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    status = Path("/proc/self/status")
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _kilobytes(status, "VmRSS")
        call()
        return max(0, _kilobytes(status, "VmHWM") - before) * 1024
    except (OSError, AttributeError):
        return None


def _kilobytes(status: Path, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text())
    if found is None:
        raise OSError(f"{status} has no {name}")
    return int(found[1])


def _operands(name: str, inputs: Inputs) -> list[Tensor]:
    if name in contenders.TO_LONGEST:
        return inputs.to_longest().padded
    return inputs.tokens if name in contenders.PACKED else inputs.padded


def calls_of(align: contenders.Align, name: str, inputs: list[Inputs], direction: Direction) -> list[Call]:
    """The contender, ready to be called on each set of inputs."""
    if direction == "forward":
        return [_forward(align, _operands(name, i)) for i in inputs]
    return [_forward_backward(align, _operands(name, i)) for i in inputs]


def _forward(align: contenders.Align, operands: list[Tensor]) -> Call:
    def call() -> object:
        with torch.no_grad():
            return align(*operands)

    return call


def _forward_backward(align: contenders.Align, operands: list[Tensor]) -> Call:
    f_a, f_b, a, b = leaves = [t.detach().requires_grad_() for t in operands]
    outputs = ((*f_a.shape[:-1], b.shape[-1]), (*f_b.shape[:-1], a.shape[-1]))
    arriving = [torch.randn(shape, dtype=a.dtype, device=a.device) for shape in outputs]
    return lambda: torch.autograd.grad(list(align(*leaves)), leaves, arriving)


def _warm_up(device: str, calls: list[Call]) -> float:
    """Seconds of the last call. On each of the inputs once, as long as that does not take too long either."""
    spent = 0.0
    for call in calls:
        last = seconds(device, call, 1)
        spent += last
        if _too_slow(spent):
            break
    return last


def _too_slow(call: float) -> bool:
    return call * FEWEST > PATIENCE


def _burst(device: str, calls: list[Call], call: float) -> int:
    """How many calls make a burst that a clock can measure, where one takes about so many seconds."""
    if call > 1:  # far longer than a burst, even if something came between
        return 1
    return max(1, min(1000, round(BURST / seconds(device, in_turn(calls, 0), len(calls)))))


def directions() -> tuple[Direction, ...]:
    return "forward", "forward + backward"
