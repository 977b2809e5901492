"""How many operations the operators are, for torch.utils.flop_counter, which knows PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import is_fake

from . import ops
from .names import NAMESPACE
from .problem import Side


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """How many operations coalign's operators are, for PyTorch's counter of operations.

        with FlopCounterMode(custom_mapping=coalign.flop_formulas()):
            model(pairs)

    As in PyTorch's own formulas only products count, a multiply-add for two: 3 products forward, and 7 backward, of
    which one makes the scores again. Padding counts as tokens do; packed pairs have none, and where their offsets are
    fake or on the meta device, all are taken for as long as the longest.

    Returns:
        A table for torch.utils.flop_counter.FlopCounterMode: operators to functions.
    """
    packets = getattr(torch.ops, NAMESPACE)
    return {packets.soft_align: _forward, packets.soft_align_backward: _backward}


def _forward(*operands: Any, **_: Any) -> int:
    a, b, *_rest = ops.sides(*operands)
    return 2 * _scores(a, b) * (a.f.shape[-1] + a.x.shape[-1] + b.x.shape[-1])


def _backward(*arguments: Any, **_: Any) -> int:
    a, b, *_rest = ops.sides(*arguments[: ops.OPERANDS])
    return 2 * _scores(a, b) * (3 * a.f.shape[-1] + 2 * a.x.shape[-1] + 2 * b.x.shape[-1])


def _scores(a: Side, b: Side) -> int:
    offsets = [side.extent for side in (a, b) if side.kind == "offsets"]
    if not offsets or any(t is None or t.device.type == "meta" or is_fake(t) for t in offsets):
        return a.pairs * a.length * b.length
    rows_a, rows_b = (t.long().diff() for t in offsets if t is not None)
    return int((rows_a * rows_b).sum())


# the counter's word for "give it tensors, not their shapes"
_forward._get_raw = _backward._get_raw = True  # type: ignore[attr-defined]
