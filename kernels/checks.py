"""What arguments are held against before anything runs."""

from __future__ import annotations

import torch
from torch import Tensor


def check_tensor(name: str, value: object, like: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(value).__name__}")
    check_place(name, value.device, value.layout, like.device)


def check_place(name: str, device: torch.device, layout: torch.layout, expected: torch.device) -> None:
    if layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, not {layout}")
    if device != expected:
        raise TypeError(f"{name} must be on {expected}, like f_a, not on {device}")


def expand(name: str, t: Tensor, shape: tuple[int, ...], meaning: str) -> Tensor:
    if t.shape == torch.Size(shape):
        return t
    fits = t.ndim <= len(shape) and all(
        have in (1, want) for have, want in zip(t.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"{name} must broadcast to {tuple(shape)}, {meaning}; it is {tuple(t.shape)}")
    return t.expand(shape)
