"""One direction alone, for those who want β and no α."""

from __future__ import annotations

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
        As of `soft_align`, without a.

    Returns:
        beta (*batch, m, d_b).

    Raises:
        TypeError, ValueError, BackendUnavailable: as in `soft_align`.
    """
    column = f_a.detach()[..., :1] if isinstance(f_a, Tensor) else f_a
    return soft_align(
        f_a, f_b, column, b, mask_a=mask_a, mask_b=mask_b, lengths_a=lengths_a, lengths_b=lengths_b, scale=scale,
        bias=bias, clamp=clamp, dropout=(dropout, 0.0), seed=seed, backend=backend,
    ).beta  # fmt: skip
