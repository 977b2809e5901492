"""What layers with several heads have in common: splitting, merging, and attention whose weights are needed."""

from __future__ import annotations

from torch import Tensor

from ...kernels.checks import check_kind


def check_sequences(**sequences: Tensor) -> None:
    """Raises TypeError or ValueError, by the name that its layer gives it: what is not (batch, length, width)."""
    for name, x in sequences.items():
        check_kind(name, x)
        if x.ndim != 3:
            raise ValueError(f"{name} must be (batch, length, width), not {tuple(x.shape)}")


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(batch, length, heads * width) to (batch, heads, length, width), as a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(batch, heads, length, width) to (batch, length, heads * width)."""
    return x.transpose(1, 2).flatten(2)


def per_head(mask: Tensor | None) -> Tensor | None:
    """(batch, length) to (batch, 1, length), which broadcasts over heads."""
    return None if mask is None else mask.unsqueeze(1)


def tokens_only(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (batch, heads, length, width) with padding replaced by 0, for weights of 0 can't silence a NaN."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0)
