"""The formula itself, in float64 through the reference: first and second derivatives against finite differences."""

from __future__ import annotations

import pytest
import torch

from coalign import soft_align, soft_align_packed
from coalign.testing import Case

CASES = [
    Case("full", 3, 4, h=2, d_a=2, d_b=3),
    Case("scaled, with a bias", 3, 2, h=2, d_a=2, d_b=1, scale=-0.7, bias="shared"),
    Case("forbidden pairings", 3, 3, h=2, d_a=1, d_b=1, bias="full", forbid=0.3),
    Case("lengths", 3, 2, h=2, d_a=1, d_b=2, tokens_a=(3, 1), extent_a="lengths"),
    Case("masks", 3, 3, h=1, d_a=1, d_b=1, tokens_a=(2, 0), tokens_b=(1, 3), extent_a="mask", extent_b="mask"),
    Case("clamped", 3, 3, h=2, d_a=2, d_b=1, clamp=0.6, bias="full", seed=1),
    Case("dropout", 3, 4, h=2, d_a=2, d_b=1, dropout=(0.5, 0.3), tokens_a=(3, 1), extent_a="lengths"),
    Case("packed, dropout", 3, 3, h=2, d_a=1, d_b=2, tokens_a=(3, 1), tokens_b=(2, 3), dropout=0.4).but(
        extent_a="packed", extent_b="packed"
    ),
    Case("packed", 3, 3, h=2, d_a=1, d_b=2, tokens_a=(3, 1), tokens_b=(2, 3), extent_a="packed", extent_b="packed"),
]


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck], ids=["first", "second"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_against_finite_differences(case, check):
    operands = case.but(dtype=torch.float64).operands()
    leaves = operands.differentiable()
    fixed = {}
    for name, t in leaves.items():  # finite differences can't take a step from NaN or infinity
        finite = t.detach().nan_to_num(0.5, 0.5, 0.5) if name != "bias" else t.detach().nan_to_num(0.5, 0.5, -torch.inf)
        fixed[name] = finite.requires_grad_(bool(finite.isfinite().all()))
    call = soft_align_packed if operands.packed else soft_align

    def outputs(*moving):
        moved = dict(zip([n for n, t in fixed.items() if t.requires_grad], moving, strict=True))
        found = call(**(fixed | moved), **operands.options, return_lse=True, backend="reference")
        return tuple(t[t > -torch.inf] if t.isinf().any() else t for t in found)

    assert check(outputs, tuple(t for t in fixed.values() if t.requires_grad))
