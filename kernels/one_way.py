"""One direction alone, for those who want β and no α."""

from __future__ import annotations

import torch
from torch import Tensor

from .api import soft_align


# fmt: off
def soft_align_one_way(
    f_a: Tensor, f_b: Tensor, b: Tensor, *,
    mask_a: Tensor | None = None, mask_b: Tensor | None = None,
    lengths_a: Tensor | None = None, lengths_b: Tensor | None = None,
    scale: float | Tensor = 1.0, bias: Tensor | None = None, clamp: float | None = None,
    dropout: float = 0.0, seed: Tensor | None = None, backend: str | None = None,
) -> Tensor:
    # fmt: on
    """b aligned to each a_i, and nothing the other way; for α swap the sides (and transpose the bias).

    The kernels still take both softmaxes, but α is made one column wide, and a's values need not exist.

    Args:
        As of `soft_align`, without a; dropout is one number, of β's weights.

    Returns:
        beta (*batch, m, d_b).

    Raises:
        TypeError, ValueError, BackendUnavailable: as in `soft_align`.
    """
    if not isinstance(dropout, (int, float)) or isinstance(dropout, bool):
        raise TypeError(f"dropout must be a number, of β's weights, not {dropout!r}")
    column = f_a.detach()[..., :1] if _has_columns(f_a) else f_a
    return soft_align(
        f_a, f_b, column, b, mask_a=mask_a, mask_b=mask_b, lengths_a=lengths_a, lengths_b=lengths_b, scale=scale,
        bias=bias, clamp=clamp, dropout=(dropout, 0.0), seed=seed, backend=backend,
    ).beta  # fmt: skip


def _has_columns(f_a: Tensor) -> bool:
    """Whether there is one to be cut from it; `soft_align` says what is wrong with anything else."""
    if not isinstance(f_a, Tensor) or f_a.ndim == 0:
        return False
    return f_a.layout is torch.jagged or (f_a.layout is torch.strided and not f_a.is_nested)
