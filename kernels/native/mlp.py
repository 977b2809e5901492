"""d2l's feed-forward network and dropout in C++ (csrc/cpu/mlp.h, dropout.h). Contiguous tensors on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from . import build

FIRST, SECOND = 1, 2  # the network's dropouts, as `layer` of `dropout`


def available() -> bool:
    """Whether the C++ extension is there; the first call builds it."""
    return build.extension.reason() is None


def dropout(x: Tensor, p: float, seed: int, layer: int = 0) -> Tensor:
    """x / (1 - p) where a number stays, 0 elsewhere; which stay follows from seed, layer and place."""
    if reason := build.extension.reason():
        raise build.BuildError(reason)
    return torch.ops.coalign_native.dropout.default(x, p, seed, layer)


def forward(
    x: Tensor, x2: Tensor | None, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, p: float, seed: int, save: bool
) -> tuple[Tensor, Tensor]:
    """relu(h W2ᵀ + b2), h = dropout(relu(dropout([x, x2]) W1ᵀ + b1)): (rows, out), and h where it is to be saved.

    x (rows, d), x2 (rows, d2) or None: float32 or bfloat16, and so are the results. w1 (hidden, d + d2), w2 (out,
    hidden): the same, or float32, rounded as they are read.
    """
    return torch.ops.coalign_native.mlp.default(x, x2, w1, b1.float(), w2, b2.float(), p, seed, save)


def backward(
    dy: Tensor,
    y: Tensor,
    hidden: Tensor,
    x: Tensor,
    x2: Tensor | None,
    w1: Tensor,
    w2: Tensor,
    p: float,
    seed: int,
    want_x: bool,
    want_x2: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, x2 (like them; empty where they are not wanted), and of w1, b1, w2, b2, all float32 here."""
    return torch.ops.coalign_native.mlp_backward.default(dy, y, hidden, x, x2, w1, w2, p, seed, want_x, want_x2)
