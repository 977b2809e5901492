"""The masks of layers, which pass them on in other shapes and under other names."""

from __future__ import annotations

from torch import Tensor

from ...kernels.checks import check_kind


def check_masks(**masks: Tensor | None) -> None:
    """Raises TypeError, by the name that its layer gives it: a mask is no tensor."""
    for name, mask in masks.items():
        if mask is not None:
            check_kind(name, mask)
