"""Which backend serves a call.

A backend is a module with four names:

    name                                    what users write in backend= and COALIGN_BACKEND
    unsupported(problem) -> list[str]       why it can't serve; empty when it can
    forward(a, b, bias, rule)               -> Alignment
    backward(a, b, bias, rule, saved, grads, bias_grad) -> OperandGrads

It may also have `extents_fit`, and what quick.py asks for. Backends stand in an order, fastest first; the first
without a reason against it serves. The log-sum-exps mean the same in every backend, so one may serve the forward pass
and another the backward pass. A backend that was asked for by name never falls back, and no exception is swallowed on
the way.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from .names import BACKENDS
from .problem import Alignment, AlignmentGrads, OperandGrads, Problem, Rule, Side


class Backend(Protocol):
    name: str

    def unsupported(self, problem: Problem) -> list[str]: ...

    def forward(self, a: Side, b: Side, bias: Tensor | None, rule: Rule) -> Alignment: ...

    def backward(
        self,
        a: Side,
        b: Side,
        bias: Tensor | None,
        rule: Rule,
        saved: Alignment,
        grads: AlignmentGrads,
        bias_grad: bool,
    ) -> OperandGrads: ...


class BackendUnavailable(RuntimeError):
    """The backend that was asked for by name can't serve this call; the message says why."""


_order = list(BACKENDS)
_backends: dict[str, Backend] = {}  # those registered, and those imported so far
remembered: dict[tuple[Any, ...], Any] = {}  # what served calls without options, by shapes and dtype: quick.py


def register(added: Backend, before: str = "reference") -> Callable[[], None]:
    """Let a backend of one's own serve calls, ahead of another one.

    Args:
        added: anything with the four names that a backend has. before: the name of what it goes ahead of.

    Returns:
        A function that takes it away again.

    Raises:
        ValueError: there is a backend of its name, or none of the other.
    """
    if added.name in _order:
        raise ValueError(f"there is a backend {added.name!r} already")
    if before not in _order:
        raise ValueError(f"before={before!r} is no backend; choose from {', '.join(map(repr, _order))}")
    _backends[added.name] = added
    _order.insert(_order.index(before), added.name)
    remembered.clear()

    def take_away() -> None:
        remembered.clear()
        _order.remove(added.name)
        del _backends[added.name]

    return take_away


def backend(name: str) -> Backend:
    """The backend of that name, its module imported when first asked for."""
    found = _backends.get(name)
    if found is None:
        found = _backends[name] = importlib.import_module(f".{name}", __package__)
    return found


def requested(name: str | None) -> str | None:
    """The name that the caller or COALIGN_BACKEND gave, checked; None leaves the choice to dispatch."""
    source = "backend="
    if name is None:
        name, source = os.environ.get("COALIGN_BACKEND") or None, "COALIGN_BACKEND="
    if name is not None and name not in _order:
        raise ValueError(f"{source}{name!r} is no backend; choose from {', '.join(map(repr, _order))}")
    return name


def choose(problem: Problem, name: str | None = None) -> Backend:
    """The backend that serves the problem.

    Raises BackendUnavailable when one was asked for by name, here or in COALIGN_BACKEND, and can't.
    """
    name = requested(name)
    if name is not None:
        chosen = backend(name)
        if reasons := chosen.unsupported(problem):
            raise BackendUnavailable(
                f"backend {name!r} can't serve this call ({problem}): {'; '.join(reasons)}. "
                "Leave backend=None to let coalign choose."
            )
        return chosen
    for name in _order:
        candidate = _backends.get(name) or backend(name)
        if not candidate.unsupported(problem):
            return candidate
    raise AssertionError("the reference serves every call")


def extents_fit(chosen: Any, a: Side, b: Side) -> bool:
    """Whether the backend says, faster than ops.py can, that the values of lengths and offsets fit the shapes."""
    look = getattr(chosen, "extents_fit", None)
    return look is not None and a.f.device.type == "cpu" and look(a, b)


def explain(problem: Problem, name: str | None = None) -> str:
    """One line a backend, in order: what serves the problem, and why the others don't."""
    name = requested(name)
    lines = [str(problem)]
    served = False
    for candidate in map(backend, _order):
        reasons = candidate.unsupported(problem)
        if name is not None and candidate.name != name:
            verdict = f"not asked for ({name!r} was named)"
        elif reasons:
            verdict = "no: " + "; ".join(reasons)
        else:
            verdict = "could serve" if served else "serves"
            served = True
        lines.append(f"  {candidate.name:<10} {verdict}")
    return "\n".join(lines)
