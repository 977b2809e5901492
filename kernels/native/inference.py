"""A model's scores in C++ (csrc/cpu/inference.h), from its own parameters and packed ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def scores(
    embedding: Tensor,
    projection: Tensor | None,
    ids: tuple[Tensor, Tensor],
    offsets: tuple[Tensor, Tensor],
    linears: Sequence[nn.Linear],
) -> tuple[Tensor, int]:
    """Scores (pairs, classes) float32, and a status as `frozen.scores` has it, or BAD_SIZES: layers of other sizes.

    embedding: (words, width), contiguous, float32 or bfloat16, like all weights. projection: (projected, width).
    ids: packed, (total,), int32 or int64. offsets: (pairs + 1,). linears: f's two layers, g's, h's, and the classifier,
    with their biases.
    """
    layers = [t for linear in linears for t in (linear.weight.contiguous(), linear.bias.float().contiguous())]
    return torch.ops.coalign_native.inference_scores.default(
        embedding,
        None if projection is None else projection.contiguous(),
        *(t.contiguous() for t in (*ids, *offsets)),
        *layers,
    )
