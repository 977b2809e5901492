"""What arguments are held against before anything runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .problem import Side

OPERANDS = ("f_a", "f_b", "a", "b")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_kind(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(value).__name__}")
    if value.is_nested:  # which may have no shape to be checked by
        raise TypeError(f"{name} must be a dense (strided) tensor, not a nested one")


def check_tensor(name: str, value: Any, like: Tensor) -> None:
    check_kind(name, value)
    check_place(name, value.device, value.layout, like.device)


def check_place(name: str, device: torch.device, layout: torch.layout, expected: torch.device) -> None:
    if layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, not {layout}")
    if device != expected:
        raise TypeError(f"{name} must be on {expected}, like f_a, not on {device}")


def expand(name: str, t: Tensor, shape: tuple[int, ...], meaning: str) -> Tensor:
    if t.ndim == len(shape) and t.shape == torch.Size(shape):  # exporting, only sizes that mean the same are compared
        return t
    fits = t.ndim <= len(shape) and all(
        have in (1, want) for have, want in zip(t.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"{name} must broadcast to {tuple(shape)}, {meaning}; it is {tuple(t.shape)}")
    return t.expand(shape)


def check_operands(packed: bool, *described: Any) -> None:
    """Check the operands by their shapes, dtypes, devices and layouts, four of each."""
    sizes, dtypes, devices, layouts = (described[i : i + 4] for i in (0, 4, 8, 12))
    shapes = [tuple(size) for size in sizes]
    for name, device, layout in zip(OPERANDS, devices, layouts, strict=True):
        check_place(name, device, layout, devices[0])
    if dtypes[0] not in DTYPES:
        raise TypeError(f"f_a must be float32, bfloat16, float16 or float64, not {dtypes[0]}")
    for name, dtype, shape in zip(OPERANDS, dtypes, shapes, strict=True):
        if dtype != dtypes[0]:
            raise TypeError(f"{name} must be {dtypes[0]}, like f_a, not {dtype}; cast them alike")
        if len(shape) != 2 if packed else len(shape) < 2:
            expected = "(total, width) when packed" if packed else "(*batch, length, width)"
            raise ValueError(f"{name} must be {expected}, not {shape}")
        if shape[-1] < 1:
            raise ValueError(f"{name} must be at least 1 wide, but its shape is {shape}")
    of_f_a, of_f_b, of_a, of_b = shapes
    if of_f_a[-1] != of_f_b[-1]:
        raise ValueError(f"f_a and f_b must be equally wide to be multiplied; they are {of_f_a} and {of_f_b}")
    for values, x, features, f in (("a", of_a, "f_a", of_f_a), ("b", of_b, "f_b", of_f_b)):
        if x[:-1] != f[:-1]:
            raise ValueError(f"{values} must have {features}'s shape but for the last dimension; they are {x} and {f}")
    if of_f_a[:-2] != of_f_b[:-2]:
        raise ValueError(f"f_a and f_b must have the same batch dimensions; they are {of_f_a} and {of_f_b}")


def check_sides(a: Side, b: Side, bias: Tensor | None) -> None:
    """What `soft_align` checks, for programs that hold the operator without it."""
    operands = (a.f, b.f, a.x, b.x)
    described = ((t.shape, t.dtype, t.device, t.layout) for t in operands)
    check_operands(a.f.ndim == 2, *(part for of in zip(*described, strict=True) for part in of))
    if a.f.ndim == 2 and not all(
        t is not None and t.ndim == 1 and len(t) and t.dtype != torch.bool for t in (a.extent, b.extent)
    ):
        raise TypeError("extent_a and extent_b must be the offsets of packed operands, (pairs + 1,)")
    for letter, side in (("a", a), ("b", b)):
        if side.extent is None:
            continue
        check_tensor(f"extent_{letter}", side.extent, a.f)
        shape, dtypes = {
            "mask": (side.f.shape[:-1], (torch.bool,)),
            "lengths": (side.f.shape[:-2], (torch.int32, torch.int64)),
            "offsets": ((a.pairs + 1,), (torch.int32,)),
        }[side.kind]
        if side.extent.shape != shape or side.extent.dtype not in dtypes:
            what = f"{tuple(side.extent.shape)} of {side.extent.dtype}"
            raise TypeError(f"extent_{letter} must be {tuple(shape)} of {' or '.join(map(str, dtypes))}, not {what}")
    if bias is not None and bias.dtype not in (a.f.dtype, torch.float32):
        raise TypeError(f"bias must be {a.f.dtype}, like f_a, or torch.float32, not {bias.dtype}")
