"""The numbers of a call checked: what makes scores of products, and what is dropped of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import check_tensor
from .problem import Rule, sum_dtype


def check_scale(scale: float | Tensor) -> None:
    if isinstance(scale, Tensor):
        return
    if not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a number or a tensor, not {type(scale).__name__}")
    if not _finite(scale):
        raise ValueError(f"scale must be finite, not {scale}")


def _finite(number: float) -> bool:
    """Whether a number is finite as a float, too: an int may be larger than any. A compiler's symbol is taken to be."""
    if torch.compiler.is_compiling():
        return True
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


# fmt: off
def make_rule(
    scale: float, clamp: float | None, dropout: float | tuple[float, float], seed: Tensor | None, like: Tensor
) -> Rule:
    # fmt: on
    """The rule of checked numbers, with a seed where one is needed and none was given."""
    if clamp is seed is None and dropout.__class__ is float and dropout == 0.0:
        return Rule(scale)
    if clamp is not None:
        if not isinstance(clamp, (int, float)) or isinstance(clamp, bool):
            raise TypeError(f"clamp must be a number or None, not {type(clamp).__name__}")
        if not clamp > 0:
            raise ValueError(f"clamp must be above 0, not {clamp}")
        clamp = float(clamp) if clamp <= torch.finfo(sum_dtype(like)).max else None  # no score is beyond
    shares = dropout if isinstance(dropout, tuple) else (dropout, dropout)
    if len(shares) != 2 or any(not isinstance(p, (int, float)) or isinstance(p, bool) for p in shares):
        raise TypeError(f"dropout must be a number or two of them, (of β's weights, of α's), not {dropout!r}")
    if any(not 0 <= p <= 1 for p in shares):
        raise ValueError(f"dropout must lie between 0 and 1, not {dropout}")
    if seed is not None:
        check_tensor("seed", seed, like)
        if seed.dtype != torch.int64 or seed.ndim != 0:
            raise TypeError(f"seed must be a tensor () of int64, not {tuple(seed.shape)} of {seed.dtype}")
    if not any(shares):
        return Rule(scale, clamp)
    if seed is None:
        seed = torch.randint(1 << 62, (), device=like.device)
    return Rule(scale, clamp, float(shares[0]), float(shares[1]), seed)
