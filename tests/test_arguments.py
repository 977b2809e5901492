"""Every bad argument: an error that names it, says what it is and what it must be, before anything runs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from coalign import explain, soft_align, soft_align_packed

GOOD: dict[str, Any] = {
    "f_a": torch.randn(2, 5, 3),
    "f_b": torch.randn(2, 4, 3),
    "a": torch.randn(2, 5, 6),
    "b": torch.randn(2, 4, 7),
}
PACKED: dict[str, Any] = {
    "f_a": torch.randn(5, 3),
    "f_b": torch.randn(4, 3),
    "a": torch.randn(5, 6),
    "b": torch.randn(4, 7),
    "offsets_a": torch.tensor([0, 2, 5], dtype=torch.int32),
    "offsets_b": torch.tensor([0, 4, 4], dtype=torch.int32),
    "max_length_a": 3,
    "max_length_b": 4,
}


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


STRIDED = torch.nested.nested_tensor([torch.zeros(5, 8)] * 2)  # which has no shape

OPERANDS = [
    ({"f_a": [[1.0]]}, TypeError, "f_a must be a tensor, not list"),
    ({"b": None}, TypeError, "b must be a tensor, not NoneType"),
    ({"a": torch.eye(5).to_sparse()}, TypeError, "a must be a dense (strided) tensor, not torch.sparse_coo"),
    ({"a": torch.empty(2, 5, 6, device="meta")}, TypeError, "a must be on cpu, like f_a, not on meta"),
    ({"f_a": torch.ones(2, 5, 3, dtype=torch.int64)}, TypeError, "f_a must be float32, bfloat16, float16 or float64"),
    ({"f_b": torch.ones(2, 4, 3).double()}, TypeError, "f_b must be torch.float32, like f_a, not torch.float64"),
    (
        {"scale": torch.tensor(1)},
        TypeError,
        "scale must be a number or a tensor of a dtype that f_a may have, not of torch.int64",
    ),
    ({"scale": torch.ones(2).to(torch.float8_e4m3fn)}, TypeError, "that f_a may have, not of torch.float8_e4m3fn"),
    ({"a": STRIDED}, TypeError, "a must be a dense (strided) tensor, not a nested one"),
    ({"b": STRIDED}, TypeError, "b must be a dense (strided) tensor, not a nested one"),
    ({"f_b": STRIDED}, TypeError, "f_b must be a dense (strided) tensor, not a nested one"),
    ({"scale": STRIDED}, TypeError, "scale must be a dense (strided) tensor, not a nested one"),
    ({"dropout": torch.tensor([0.1, 0.2])}, TypeError, "dropout must be a number or two of them"),
    ({"dropout": np.zeros(2)}, TypeError, "dropout must be a number or two of them"),
    ({"dropout": torch.tensor(0.0)}, TypeError, "dropout must be a number or two of them"),
    ({"dropout": False}, TypeError, "dropout must be a number or two of them"),
    ({"scale": torch.ones(5, 7)}, ValueError, "scale must broadcast to ("),
    ({"scale": "1"}, TypeError, "scale must be a number or a tensor, not str"),
    ({"scale": float("nan")}, ValueError, "scale must be finite, not nan"),
    ({"scale": float("-inf")}, ValueError, "scale must be finite, not -inf"),
    ({"scale": 10**400}, ValueError, "scale must be finite, not 10"),
    ({"backend": "cuda"}, ValueError, "backend='cuda' is no backend; choose from"),
]
PADDED_ONLY = [
    ({"f_a": torch.ones(3)}, ValueError, "f_a must be (*batch, length, width), not (3,)"),
    ({"b": torch.ones(2, 4, 0)}, ValueError, "b must be at least 1 wide, but its shape is (2, 4, 0)"),
    ({"f_b": torch.ones(2, 4, 9)}, ValueError, "f_a and f_b must be equally wide to be multiplied; they are (2, 5, 3)"),
    ({"a": torch.ones(2, 6, 6)}, ValueError, "a must have f_a's shape but for the last dimension; they are (2, 6, 6)"),
    ({"b": torch.ones(1, 4, 7)}, ValueError, "b must have f_b's shape but for the last dimension"),
    (
        {"f_b": torch.ones(3, 4, 3), "b": torch.ones(3, 4, 7)},
        ValueError,
        "f_a and f_b must have the same batch dimensions; they are (2, 5, 3) and (3, 4, 3)",
    ),
    (
        {"mask_a": torch.ones(2, 5).bool(), "lengths_a": int32(1, 2)},
        ValueError,
        "give mask_a or lengths_a, not both",
    ),
    (
        {"mask_b": torch.ones(2, 4).bool(), "lengths_b": int32(1, 2)},
        ValueError,
        "give mask_b or lengths_b, not both",
    ),
    ({"mask_a": torch.ones(2, 5)}, TypeError, "mask_a must be bool, True for a token, not torch.float32"),
    ({"mask_b": [True]}, TypeError, "mask_b must be a tensor, not list"),
    ({"mask_b": torch.ones(2, 5).bool()}, ValueError, "mask_b must broadcast to (2, 4)"),
    ({"mask_a": STRIDED.bool()}, TypeError, "mask_a must be a dense (strided) tensor, not a nested one"),
    ({"mask_a": torch.ones(1, 2, 5).bool()}, ValueError, "mask_a must broadcast to (2, 5)"),
    ({"lengths_a": torch.ones(2)}, TypeError, "lengths_a must be int32 or int64, not torch.float32"),
    ({"lengths_a": [1, 2]}, TypeError, "lengths_a must be a tensor, not list"),
    ({"lengths_b": int32(1, 2, 3)}, ValueError, "lengths_b must broadcast to (2,), f_b's batch dimensions; it is (3,)"),
    ({"lengths_a": int32(6, 1)}, ValueError, "lengths_a must lie between 0 and 5, the rows of f_a; found 6"),
    ({"lengths_b": int32(0, -1)}, ValueError, "lengths_b must lie between 0 and 4, the rows of f_b; found -1"),
    ({"bias": 1.0}, TypeError, "bias must be a tensor, not float"),
    ({"bias": torch.zeros(5, 4).half()}, TypeError, "bias must be torch.float32, like f_a, not torch.float16"),
    ({"bias": torch.zeros(4, 5)}, ValueError, "bias must broadcast to (2, 5, 4), (*batch, m, n); it is (4, 5)"),
    ({"bias": torch.zeros(5, 4, device="meta")}, TypeError, "bias must be on cpu, like f_a, not on meta"),
]
PACKED_ONLY = [
    ({"f_a": torch.ones(1, 5, 3)}, ValueError, "f_a must be (total, width) when packed, not (1, 5, 3)"),
    ({"a": torch.ones(4, 6)}, ValueError, "a must have f_a's shape but for the last dimension"),
    ({"offsets_a": [0, 2, 5]}, TypeError, "offsets_a must be a tensor, not list"),
    ({"offsets_a": torch.tensor([0, 2, 5])}, TypeError, "offsets_a must be int32, not torch.int64; use offsets.int()"),
    ({"offsets_b": int32()}, ValueError, "offsets_b must be (pairs + 1,), not (0,)"),
    ({"offsets_b": int32(0, 4)[None]}, ValueError, "offsets_b must be (pairs + 1,), not (1, 2)"),
    ({"offsets_b": int32(0, 4)}, ValueError, "same number of pairs; they have 3 and 2 entries"),
    ({"max_length_a": 3.0}, TypeError, "max_length_a must be an int, not float"),
    ({"max_length_b": True}, TypeError, "max_length_b must be an int, not bool"),
    ({"max_length_b": -1}, ValueError, "max_length_b must be 0 or more, not -1"),
    ({"max_length_a": 2**63}, ValueError, "max_length_a must be below 2**63, not 9223372036854775808"),
    ({"f_a": STRIDED}, TypeError, "f_a must be a dense (strided) tensor, not a nested one"),
    ({"offsets_b": STRIDED}, TypeError, "offsets_b must be a dense (strided) tensor, not a nested one"),
    ({"max_length_a": 2}, ValueError, "max_length_a is 2, but the longest pair has 3 rows"),
    ({"offsets_a": int32(1, 2, 5)}, ValueError, "offsets_a must start at 0, never fall, and end at 5"),
    ({"offsets_a": int32(0, 2, 4)}, ValueError, "found a start of 0, an end of 4"),
    ({"offsets_b": int32(0, 5, 4)}, ValueError, "an end of 4 and a smallest step of -1"),
]


def name(value: object) -> str | None:
    return value if isinstance(value, str) else None


@pytest.mark.parametrize(("changes", "kind", "message"), OPERANDS + PADDED_ONLY, ids=name)
def test_padded(changes, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        soft_align(**(GOOD | changes))


@pytest.mark.parametrize(("changes", "kind", "message"), OPERANDS + PACKED_ONLY, ids=name)
def test_packed(changes, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        soft_align_packed(**(PACKED | changes))


@pytest.mark.parametrize(("changes", "kind", "message"), PADDED_ONLY[:3], ids=name)
def test_explain_checks_too(changes, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        explain(**(GOOD | changes))


def test_good_arguments_are_good():
    """What the cases above change is right before they change it."""
    assert soft_align(**GOOD).beta.shape == (2, 5, 7)
    assert soft_align_packed(**PACKED).alpha.shape == (4, 6)


@pytest.mark.gpu
def test_tensors_on_two_devices():
    with pytest.raises(TypeError, match="lengths_a must be on cuda:0, like f_a, not on cpu"):
        soft_align(**{k: t.cuda() for k, t in GOOD.items()}, lengths_a=int32(1, 2))


@pytest.mark.gpu
def test_lengths_on_a_gpu_are_clamped():
    """Looking at them would stall the stream."""
    good = {k: t.cuda() for k, t in GOOD.items()}
    wild = soft_align(**good, lengths_a=int32(99, -3).cuda())
    tame = soft_align(**good, lengths_a=int32(5, 0).cuda())
    assert torch.equal(wild.beta, tame.beta)
    assert torch.equal(wild.alpha, tame.alpha)
