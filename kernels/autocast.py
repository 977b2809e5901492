"""What autocast asks for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def enabled(kind: str) -> bool:
    """Whether autocast is on for devices of this kind; there are some that it knows nothing of."""
    if torch.compiler.is_compiling():  # PyTorch 2.11's compiler can't trace the question
        return kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def cast(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The operands as autocast would have them: float64 is left alone, as torch's own attention leaves it."""
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def off(kind: str) -> AbstractContextManager[object]:
    """Keeps autocast from rounding the float32 arithmetic in the block."""
    return torch.autocast(kind, enabled=False) if enabled(kind) else nullcontext()
