"""The weights themselves, for those who need the two matrices: to look at, to drop out, to mix heads, to match with.

These store m x n numbers. Where only the aligned values are needed, `soft_align` does without.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from . import reference
from .api import padded_features
from .rules import make_rule


class AlignmentWeights(NamedTuple):
    """p (*batch, m, n): softmax of e over j, beta = p @ b. q (*batch, m, n): softmax over i, alpha = q.mT @ a."""

    p: Tensor
    q: Tensor


# fmt: off
def alignment_weights(
    f_a: Tensor, f_b: Tensor, *,
    mask_a: Tensor | None = None, mask_b: Tensor | None = None,
    lengths_a: Tensor | None = None, lengths_b: Tensor | None = None,
    scale: float | Tensor = 1.0, bias: Tensor | None = None, clamp: float | None = None,
    dropout: float | tuple[float, float] = 0.0, seed: Tensor | None = None,
) -> AlignmentWeights:
    # fmt: on
    """The two weight matrices of `soft_align`, from the same arguments; in plain PyTorch, differentiable to any order.

    Args:
        As of `soft_align`, without the values. Compiled programs don't check the values of lengths.

    Returns:
        AlignmentWeights(p, q), (*batch, m, n) each, in the operands' dtype. A row of p sums to 1, and so does a
        column of q, but for dropout; both are 0 wherever a token of either side is missing.

    Raises:
        TypeError, ValueError: as in `soft_align`.
    """
    a, b, bias, factor = padded_features(f_a, f_b, mask_a, mask_b, lengths_a, lengths_b, scale, bias)
    p, q = reference.weights(a, b, bias, make_rule(factor, clamp, dropout, seed, f_a))
    dtype = a.f.dtype
    return AlignmentWeights(p.to(dtype), q.to(dtype))


# fmt: off
def dual_softmax(
    f_a: Tensor, f_b: Tensor, *,
    mask_a: Tensor | None = None, mask_b: Tensor | None = None,
    lengths_a: Tensor | None = None, lengths_b: Tensor | None = None,
    scale: float | Tensor = 1.0, bias: Tensor | None = None, clamp: float | None = None, log: bool = False,
) -> Tensor:
    # fmt: on
    """The product of both softmaxes: how surely i and j belong together, seen from both sides.

        P_ij Q_ij,   or with log=True   log P_ij + log Q_ij = 2 e_ij - lse_a_i - lse_b_j

    Sun et al. 2021, "LoFTR: Detector-Free Local Feature Matching with Transformers", section 3.3, equation 2;
    its logarithm is in Lindenberger et al. 2023, "LightGlue: Local Feature Matching at Light Speed", section 3.3.

    Args:
        log: the logarithm, -inf where there is no weight. Others as of `soft_align`, without the values; compiled
            programs don't check the values of lengths.

    Returns:
        (*batch, m, n), in the dtype of the log-sum-exps: float32, or float64 for float64. Differentiable.

    Raises:
        TypeError, ValueError: as in `soft_align`.
    """
    a, b, bias, factor = padded_features(f_a, f_b, mask_a, mask_b, lengths_a, lengths_b, scale, bias)
    p, q = reference.weights(a, b, bias, make_rule(factor, clamp, 0.0, None, f_a), log)
    return p + q if log else p * q
