"""A frozen model's sums in Triton (frozen_tile.py): tables of words, packed ids, and the layer between."""

from __future__ import annotations

from torch import Tensor

from .. import gpu
from . import on_device, shared_memory, target, unsupported_on


def unsupported(table: Tensor, most: int) -> list[str]:
    """Why Triton can't serve this table, (words, 3 h), and pairs of up to `most` tokens."""
    if reasons := unsupported_on(table.device, table.dtype):
        return reasons
    from . import choices

    kind = choices.arithmetic(table.dtype, choices.frozen_tf32(gpu.tf32_allowed(), table.shape[1] // 3))
    holds = max(choices.frozen_tiles(kind, shared_memory(table.device)), default=0)
    reasons = []
    if table.shape[1] > 3 * choices.FROZEN_WIDTH:
        reasons.append(f"num_hiddens is {table.shape[1] // 3}; the kernel holds {choices.FROZEN_WIDTH} or less")
    if most > holds:
        reasons.append(f"a pair has {most} tokens; the kernel holds {holds} or less of such numbers")
    return reasons


def sums(
    table: Tensor,
    ids: tuple[Tensor, Tensor],
    offsets: tuple[Tensor, Tensor],
    weight: Tensor,
    bias: Tensor,
    most: int,
) -> Tensor:
    """V_a and V_b side by side, (pairs, 2 h) float32; NaN for pairs with a word outside the table.

    table: (words, 3 h), weight: (h, h), of g's second layer, bias: (h,) float32; ids: (total,), offsets: (pairs + 1,)
    int32, for each side; all contiguous. most: the most tokens that a pair has, both sides together.
    """
    from . import prepared
    from .launch import frozen_tensors, plan_frozen, room_frozen

    tf32 = gpu.tf32_allowed()
    found = room_frozen(weight, bias, offsets)
    kinds = (*table.shape, table.dtype, ids[0].dtype, ids[1].dtype, offsets[0].shape[0])
    with on_device(table):
        prepared.launch(
            ("frozen", kinds, most, table.device.index, tf32),
            frozen_tensors(table, ids, offsets, weight, bias, found),
            lambda: plan_frozen(table, ids, offsets, weight, bias, most, found, target(table.device, tf32)),
        )
    return found
