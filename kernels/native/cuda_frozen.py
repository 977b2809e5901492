"""A frozen model's sums in CUDA C++ (csrc/cuda/frozen.cuh): tables of words, packed ids, and the layer between."""

from __future__ import annotations

import torch
from torch import Tensor

from . import cuda


def unsupported(table: Tensor, most: int) -> list[str]:
    """Why CUDA C++ can't serve this table, (words, 3 h), and pairs of up to `most` tokens."""
    if table.dtype not in (torch.float32, torch.bfloat16):
        return [f"frozen models run in CUDA C++ in float32 and bfloat16, not {table.dtype}"]
    if reasons := cuda.unavailable(table.device):
        return reasons
    return too_large(cuda.machine(table), table, most)


def too_large(machine: cuda.Machine, table: Tensor, most: int) -> list[str]:
    """Whether a block's shared memory is too little; the hidden rows of a tile of tokens must lie there."""
    holds = torch.ops.coalign_cuda.frozen_holds.default(table, int(machine.tensor_cores), machine.shared)
    if most <= holds:
        return []
    return [
        f"a pair has {most} tokens; the CUDA kernel holds {holds} or less "
        f"where num_hiddens is {table.shape[1] // 3} and a block has {machine.shared // 1024} KB of shared memory"
    ]


def sums(
    table: Tensor,
    ids: tuple[Tensor, Tensor],
    offsets: tuple[Tensor, Tensor],
    weight: Tensor,
    bias: Tensor,
    most: int,
    machine: cuda.Machine | None = None,
) -> Tensor:
    """V_a and V_b side by side, (pairs, 2 h) float32; NaN for pairs with a word outside the table.

    table: (words, 3 h), weight: (h, h), of g's second layer, bias: (h,) float32; ids: (total,), offsets: (pairs + 1,)
    int32, for each side; all contiguous. most: the most tokens that a pair has, both sides together. machine: what to
    run on; None: what the table is on.
    """
    machine = machine or cuda.machine(table)
    found: Tensor = torch.ops.coalign_cuda.frozen_sums.default(
        *(table, *ids, *offsets, weight, bias, most, owned(offsets[0].shape[0] - 1)),
        *(int(machine.tensor_cores), machine.shared, machine.stream),
    )
    return found


def owned(pairs: int) -> int:
    """How many pairs a block takes: several, once blocks suffice for a large GPU. An estimate, not measured."""
    return min(8, max(1, pairs // 256))
