"""The demonstration: the model's fast path against its plain one, on real sentences, forward and backward.

A ReLU's gradient jumps at 0. Where rounding puts a unit on one side of 0 in one path and on the other side in the
other, both gradients are right, and they differ by that unit's whole share: about 1e-3 for one in a million. Such
batches are counted, and their gradients compared no further.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

from . import kernels
from .model import DecomposableAttention
from .model.nli import Batch, Pair, Vocabulary, batches
from .testing.accuracy import error

BUDGET = 1e-5  # of ‖fast − plain‖ / ‖plain‖ in float32, as in the tests


@dataclass
class Outcome:
    """What a run found: which backend served, each tensor's worst error over the batches, seconds a batch.

    batches, torn: how many batches ran, and in how many the paths disagree on the side of 0 of some ReLU.
    """

    device: str
    backend: str
    explanation: str
    pairs: int
    batches: int = 0
    torn: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.torn < self.batches and all(e <= BUDGET for e in self.errors.values())

    def median_seconds(self, name: str) -> float:
        return median(self.seconds[name])

    def to_json(self) -> str:
        return json.dumps({**vars(self), "budget": BUDGET, "passed": self.passed}, indent=2)


def run(
    pairs: Sequence[Pair],
    vocabulary: Vocabulary,
    *,
    batch_size: int,
    backend: str | None,
    device: torch.device,
    seed: int,
    rounds: int | None = None,
    progress: Callable[[int], None] = lambda pairs: None,
) -> Outcome:
    """Run all pairs through both paths of one model of d2l's sizes with random parameters and no dropout.

    rounds: how often to go through the pairs; None: once, and again until each time has ten measurements.

    Raises:
        coalign.BackendUnavailable: the backend named can't serve.
    """
    torch.manual_seed(seed)
    model = DecomposableAttention.from_sizes(len(vocabulary), padding_idx=vocabulary.padding).eval().to(device)
    serving, explanation = _serving(model, device, backend)
    outcome = Outcome(_device_name(device), serving, explanation, len(pairs))
    if rounds is None:
        rounds = -(-10 // -(-len(pairs) // batch_size))
        warm_up = next(batches(pairs, vocabulary, batch_size)).to(device)
        _time(model, warm_up, "warm-up", {})
    again = (batch for _ in range(rounds) for batch in batches(pairs, vocabulary, batch_size))
    for number, cpu_batch in enumerate(again):
        batch = cpu_batch.to(device)
        results: dict[str, dict[str, Tensor]] = {}
        active: dict[str, list[Tensor]] = {"fast": [], "plain": []}
        paths = [("fast", backend), ("plain", "reference")]
        for name, path in paths if number % 2 else paths[::-1]:
            model.backend = path
            with _watching_relus(model, active[name]):
                results[name] = _step(model, batch)
            _time(model, batch, name, outcome.seconds)  # unwatched: watching takes a network apart into its layers
        torn = any(not torch.equal(a, b) for a, b in zip(active["fast"], active["plain"], strict=True))
        outcome.batches += 1
        outcome.torn += torn
        for name, truth in results["plain"].items():
            if torn and name.startswith("gradient"):
                continue
            outcome.errors[name] = max(
                outcome.errors.get(name, 0.0), error(results["fast"][name], truth.cpu().double())
            )
        progress(len(batch.labels))
    return outcome


def run_interpreted(data: Sequence[str], pairs: int, seed: int) -> Outcome:
    """The same with the Triton kernels, run by Triton's interpreter in a process of its own, on the CPU.

    data: the options that say which pairs to take.

    Raises:
        RuntimeError: the process failed; with its last lines.
    """
    command = [sys.executable, "-m", "coalign", "demo", "--json", "--device", "cpu", "--backend", "triton"]
    command += ["--pairs", str(pairs), "--batch-size", str(pairs), "--seed", str(seed)]
    command += ["--rounds", "1", *data]
    child = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    try:
        found = json.loads(child.stdout)
    except json.JSONDecodeError:
        raise RuntimeError(f"{' '.join(command)} failed:\n{child.stderr.strip()[-2000:]}") from None
    return Outcome(**{name: found[name] for name in Outcome.__dataclass_fields__})


def _time(model: DecomposableAttention, batch: Batch, path: str, seconds: dict[str, list[float]]) -> None:
    """Adds to seconds what a forward pass took, as users call it, and what both passes took."""
    model.zero_grad()
    start = _now(batch.premises)
    scores = model((batch.premises, batch.hypotheses), lengths=batch.lengths)
    forward = _now(scores)
    torch.nn.functional.cross_entropy(scores, batch.labels).backward()
    both = _now(scores)
    seconds.setdefault(f"{path} forward", []).append(forward - start)
    seconds.setdefault(f"{path} forward + backward", []).append(both - start)


def _step(model: DecomposableAttention, batch: Batch) -> dict[str, Tensor]:
    """One forward and backward pass, part by part: its tensors by name."""
    model.zero_grad()
    extents = {"lengths_a": batch.lengths[0], "lengths_b": batch.lengths[1]}
    A, B = model.embedding(batch.premises), model.embedding(batch.hypotheses)
    beta, alpha = model.attend(A, B, **extents)
    V_A, V_B = model.compare(A, B, beta, alpha, **extents)
    scores = model.aggregate(V_A, V_B)
    torch.nn.functional.cross_entropy(scores, batch.labels).backward()
    outputs = {"beta": beta, "alpha": alpha, "V_A": V_A, "V_B": V_B, "class scores": scores}
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: t.detach() for name, t in (outputs | gradients).items()}


@contextmanager
def _watching_relus(model: nn.Module, active: list[Tensor]) -> Iterator[None]:
    """Collect, in the order of their calls, which units each ReLU lets through."""
    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    hooks = [relu.register_forward_hook(lambda _m, _i, output: active.append(output > 0)) for relu in relus]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _serving(model: DecomposableAttention, device: torch.device, backend: str | None) -> tuple[str, str]:
    """Which backend serves the model's alignment there, and dispatch's own account of it."""
    width, d = model.aggregate.linear.in_features, model.embedding.embedding_dim
    f, x = (torch.zeros(1, 8, w, device=device, requires_grad=True) for w in (width, d))
    lengths = torch.full((1,), 8, device=device)
    explanation = kernels.explain(f, f, x, x, lengths_a=lengths, lengths_b=lengths, backend=backend)
    serves = [line.split()[0] for line in explanation.splitlines() if line.endswith(" serves")]
    return serves[0] if serves else str(backend), explanation


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _now(after: Tensor) -> float:
    """The time once all the work that leads to a tensor is done."""
    if after.device.type == "cuda":
        torch.cuda.synchronize(after.device)
    return time.perf_counter()
