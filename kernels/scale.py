"""A scale that is learned: a tensor, which has a gradient.

Scores are linear in f_a, so a tensor scale is one multiplication of f_a ahead of every kernel, and its gradient is
autograd's. It costs m h operations a pair; the scores cost m n h.
"""

from __future__ import annotations

from torch import Tensor

from .problem import Side


def scaled(side: Side, scale: Tensor, packed: bool) -> Side:
    """The side with its f multiplied by scale (*batch), in float32 and rounded once where f is of half precision.

    Padding becomes 0 first: the gradient of the scale is a sum over rows, in which 0 * NaN would be NaN.
    """
    keep = None if packed else side.keep()
    f = side.f if keep is None else side.f.masked_fill(~keep.unsqueeze(-1), 0)
    return side._replace(f=(f * scale[..., None, None]).to(f.dtype))
