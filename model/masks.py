"""Which positions of a batch of sentences are tokens, and whether it is packed: nothing but tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.ops import unobserved


def as_mask(side: str, x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """The mask of x (batch, length, width), from a mask or from lengths; None where everything is a token.

    Raises:
        TypeError, ValueError: naming mask_{side} or lengths_{side}, or mask or lengths where the side is "".
    """
    check_mask(side, x, mask, lengths)
    if lengths is not None:
        return torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(-1)
    return mask


def check_mask(side: str, x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> None:
    """Hold a mask or lengths against x (batch, length, ...).

    Raises:
        TypeError, ValueError: as `as_mask`.
    """
    mask_name, lengths_name = _of_side("mask", side), _of_side("lengths", side)
    if mask is not None and lengths is not None:
        raise ValueError(f"give {mask_name} or {lengths_name}, not both")
    if mask is not None:
        _check(mask_name, mask, x.shape[:2], (torch.bool,))
    if lengths is not None:
        _check(lengths_name, lengths, x.shape[:1], (torch.int32, torch.int64))
        if lengths.is_cpu and lengths.numel() and unobserved((lengths,)):
            least, most = (int(v) for v in lengths.aminmax())
            if least < 0 or most > x.shape[1]:
                raise ValueError(
                    f"{lengths_name} must lie between 0 and {x.shape[1]}, the positions of a sentence; "
                    f"found {least} to {most}"
                )


def check_dtype(name: str, t: object, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    """t itself. Raises TypeError: it is no tensor of one of these dtypes."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(t).__name__}")
    if t.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be {expected}, not {t.dtype}")
    return t


def check_sentences(name: str, x: Tensor, packed: bool) -> None:
    """Raises TypeError, ValueError: x is not (total, width) where sentences are packed, or (batch, length, width)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    if x.ndim != (2 if packed else 3):
        expected = "(total, width) when packed" if packed else "(batch, length, width)"
        raise ValueError(f"{name} must be {expected}, not {tuple(x.shape)}")


def check_offsets(side: str, offsets: Tensor, total: int, max_length: int | None = None) -> None:
    """Hold offsets against the tokens there are; max_length: that no sentence may exceed.

    Raises:
        TypeError, ValueError: naming offsets_{side} or max_length_{side}, or without the side where it is "".
    """
    name, longest = _of_side("offsets", side), _of_side("max_length", side)
    if not isinstance(offsets, Tensor) or offsets.dtype != torch.int32:
        what = offsets.dtype if isinstance(offsets, Tensor) else type(offsets).__name__
        raise TypeError(f"{name} must be an int32 tensor, not {what}")
    if offsets.ndim != 1 or offsets.shape[0] < 1:
        raise ValueError(f"{name} must be (sentences + 1,), not {tuple(offsets.shape)}")
    if max_length is not None and (not isinstance(max_length, (int, torch.SymInt)) or isinstance(max_length, bool)):
        raise TypeError(f"{longest} must be an int, not {type(max_length).__name__}")
    if not offsets.is_cpu or not unobserved((offsets,)):
        return
    steps = offsets.diff()
    least, most = (int(v) for v in steps.aminmax()) if len(steps) else (0, 0)
    if int(offsets[0]) != 0 or int(offsets[-1]) != total or least < 0:
        raise ValueError(
            f"{name} must start at 0, never fall, and end at {total}, the number of tokens; found a start of "
            f"{int(offsets[0])}, a smallest step of {least} and an end of {int(offsets[-1])}"
        )
    if max_length is not None and most > max_length:
        raise ValueError(f"{longest} must be {most} or more, the words of the longest sentence, not {max_length}")


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


def _of_side(name: str, side: str) -> str:
    return f"{name}_{side}" if side else name


def _check(name: str, t: object, shape: torch.Size, dtypes: tuple[torch.dtype, ...]) -> None:
    found = check_dtype(name, t, dtypes).shape
    if found != shape:
        raise ValueError(f"{name} must be {tuple(shape)}, not {tuple(found)}")
