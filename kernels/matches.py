"""Matches by dual softmax without its matrix: the log-sum-exps come from the fused operator, e by chunks of rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import autocast
from .api import padded_features, soft_align


class Matches(NamedTuple):
    """partner (*batch, m) int64: j for each i, or -1. score (*batch, m): P_ij Q_ij, 0 where there is none."""

    partner: Tensor
    score: Tensor


# fmt: off
@torch.no_grad()
def dual_softmax_matches(
    f_a: Tensor, f_b: Tensor, *,
    mask_a: Tensor | None = None, mask_b: Tensor | None = None,
    lengths_a: Tensor | None = None, lengths_b: Tensor | None = None,
    scale: float | Tensor = 1.0, threshold: float = 0.0, chunk: int = 512, backend: str | None = None,
) -> Matches:
    # fmt: on
    """Mutual best matches: i and j where P_ij Q_ij is the largest of its row and of its column.

    The same as taking both maxima of `dual_softmax`, in memory of chunk x n in place of m x n; but a score's relative
    error grows with e, to 1e-4 where e is 1,000 and to all of it from a million on: scale features so that e stays
    in the thousands. Ties go to the smaller index. Not differentiable.

    Args:
        threshold: a match must score more than this; between 0 and 1.
        chunk: rows of a taken at a time, at least 1.
        Others as of `soft_align`, without the values.

    Returns:
        Matches(partner, score): partner (*batch, m) int64, -1 where i has no match; score (*batch, m), float32 or,
        for float64, float64.

    Raises:
        TypeError, ValueError, BackendUnavailable: as in `soft_align`.
    """
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be a whole number, at least 1, not {chunk}")
    if not isinstance(threshold, (int, float)):
        raise TypeError(f"threshold must be a number, not {type(threshold).__name__}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie between 0 and 1, not {threshold}")
    if not (isinstance(f_a, Tensor) and isinstance(f_b, Tensor)):
        raise TypeError(f"f_a and f_b must be tensors, not {type(f_a).__name__} and {type(f_b).__name__}")
    a, b, _, factor = padded_features(f_a, f_b, mask_a, mask_b, lengths_a, lengths_b, scale, None)
    given = {"mask_a": mask_a, "mask_b": mask_b, "lengths_a": lengths_a, "lengths_b": lengths_b, "backend": backend}
    with autocast.off(a.f.device.type):
        return _matches(a.f, b.f, given, factor, threshold, chunk)


def _matches(f_a: Tensor, f_b: Tensor, given: dict[str, Any], scale: float, threshold: float, chunk: int) -> Matches:
    found = soft_align(f_a, f_b, f_a[..., :1], f_b[..., :1], scale=scale, return_lse=True, **given)
    lse_a, lse_b = found.lse_a, found.lse_b
    m, n = lse_a.shape[-1], lse_b.shape[-1]
    row_best, row_index = torch.full_like(lse_a, -torch.inf), torch.zeros_like(lse_a, dtype=torch.long)
    if m == 0 or n == 0:
        return Matches(row_index - 1, torch.zeros_like(lse_a))
    column_best, column_index = torch.full_like(lse_b, -torch.inf), torch.zeros_like(lse_b, dtype=torch.long)
    known_b = lse_b > -torch.inf
    f_b = f_b.to(lse_b.dtype).masked_fill(~known_b.unsqueeze(-1), 0)
    for start in range(0, m, chunk):
        rows = slice(start, start + chunk)
        known_a = lse_a[..., rows] > -torch.inf
        f = f_a[..., rows, :].to(lse_a.dtype).masked_fill(~known_a.unsqueeze(-1), 0)
        e = scale * (f @ f_b.mT)
        # no weight is above 1: the log-sum-exps are of another product, and large scores differ by their rounding
        both = (e - lse_a[..., rows].unsqueeze(-1)).clamp(max=0) + (e - lse_b.unsqueeze(-2)).clamp(max=0)
        both = both.masked_fill(~(known_a.unsqueeze(-1) & known_b.unsqueeze(-2)), -torch.inf)
        row_best[..., rows], row_index[..., rows] = both.max(-1)
        best, index = both.max(-2)
        better = best > column_best
        column_best = torch.where(better, best, column_best)
        column_index = torch.where(better, index + start, column_index)
    mutual = column_index.gather(-1, row_index) == torch.arange(m, device=f_a.device)
    score = row_best.exp()
    good = mutual & (row_best > -torch.inf) & (score > threshold)
    return Matches(row_index.masked_fill(~good, -1), score.masked_fill(~good, 0))
