"""Which positions of a batch of sentences are tokens, and whether it is packed: nothing but tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.ops import unobserved


def as_mask(side: str, x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """The mask of x (batch, length, width), from a mask or from lengths; None where everything is a token.

    Raises:
        TypeError, ValueError: naming mask_{side} or lengths_{side}.
    """
    check_mask(side, x, mask, lengths)
    if lengths is not None:
        return torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(-1)
    return mask


def check_mask(side: str, x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> None:
    """Hold a mask or lengths against x (batch, length, ...).

    Raises:
        TypeError, ValueError: naming mask_{side} or lengths_{side}.
    """
    if mask is not None and lengths is not None:
        raise ValueError(f"give mask_{side} or lengths_{side}, not both")
    if mask is not None:
        _check(f"mask_{side}", mask, x.shape[:2], (torch.bool,))
    if lengths is not None:
        _check(f"lengths_{side}", lengths, x.shape[:1], (torch.int32, torch.int64))
        if lengths.is_cpu and lengths.numel() and unobserved((lengths,)):
            least, most = (int(v) for v in lengths.aminmax())
            if least < 0 or most > x.shape[1]:
                raise ValueError(
                    f"lengths_{side} must lie between 0 and {x.shape[1]}, the width of side {side}; "
                    f"found {least} to {most}"
                )


def of_both(name: str, given: object) -> tuple[Tensor | None, Tensor | None]:
    """Masks or lengths of both sides, each or all of which may be None. Raises TypeError where they are no pair."""
    if given is None:
        return None, None
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        what = f"{len(given)} of them" if isinstance(given, (tuple, list)) else type(given).__name__
        raise TypeError(f"{name} must be a pair, the premises' and the hypotheses', not {what}")
    first, second = given
    return first, second


def are_packed(offsets_a: Tensor | None, offsets_b: Tensor | None, paddings: tuple[Tensor | None, ...]) -> bool:
    """Whether both sides come packed, as offsets say; paddings: the masks and lengths of padded ones.

    Raises:
        ValueError: only one side has offsets, or there are masks or lengths too.
    """
    if offsets_a is None and offsets_b is None:
        return False
    if offsets_a is None or offsets_b is None:
        raise ValueError("give offsets for both sides or for neither")
    if any(t is not None for t in paddings):
        raise ValueError("packed sentences have no padding: give offsets, or masks or lengths, not both")
    return True


def _check(name: str, t: object, shape: torch.Size, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(t).__name__}")
    if t.dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(map(str, dtypes))}, not {t.dtype}")
    if t.shape != shape:
        raise ValueError(f"{name} must be {tuple(shape)}, not {tuple(t.shape)}")
