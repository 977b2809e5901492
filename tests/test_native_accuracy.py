"""Where the C++ backward pass would lose digits: gradients of f in float32 against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from coalign import BackendUnavailable, soft_align
from coalign.testing import Case, assert_accurate, run

BUDGET = 2e-6


def errors(operands, bias=None, size=1.0):
    """‖found − truth‖ / ‖truth‖ of each operand's gradient; size: of what arrives for them to be made of."""
    draw = torch.Generator().manual_seed(2)
    arriving = [
        torch.randn(operands[0].shape[1], operands[3].shape[2], generator=draw, dtype=torch.float64)[None],
        torch.randn(operands[1].shape[1], operands[2].shape[2], generator=draw, dtype=torch.float64)[None],
    ]
    arriving = [t * size for t in arriving]
    found = []
    for dtype, backend in ((torch.float32, "native"), (torch.float64, "reference")):
        leaves = [t.to(dtype).requires_grad_() for t in operands]
        outputs = soft_align(*leaves, bias=None if bias is None else bias.to(dtype), backend=backend)
        found.append(torch.autograd.grad(outputs, leaves, [t.to(dtype) for t in arriving]))
    return [float((one - truth).norm() / truth.norm()) for one, truth in zip(*found, strict=True)]


def made(m, n):
    draw = torch.Generator().manual_seed(1)
    sizes = ((m, 16), (n, 16), (m, 8), (n, 8))
    return [torch.randn(1, *size, generator=draw, dtype=torch.float64) * 0.3 for size in sizes]


@pytest.mark.parametrize("place", [0, 7])
@pytest.mark.parametrize("side", ["b", "a"])
@pytest.mark.parametrize("how", ["forbidden", "unlikely"])
@pytest.mark.parametrize("size", [1e2, 1e6])
def test_a_large_value_without_weight(size, how, side, place):
    """Sums under the weights are taken from some number on: not one that drowns the others."""
    m, n = (12, 20) if side == "b" else (20, 12)
    operands, bias = made(m, n), torch.zeros(m, n, dtype=torch.float64)
    operands[3 if side == "b" else 2][:, place] *= size
    line = bias[:, place] if side == "b" else bias[place]
    line.fill_(-torch.inf if how == "forbidden" else -40)
    assert max(errors(operands, bias)) <= BUDGET


@pytest.mark.parametrize("length", [64, 65, 500, 5000])
@pytest.mark.parametrize("side", ["b", "a"])
def test_one_token_against_many(length, side):
    """All the weight is on it, and nothing of that softmax is left in its scores' gradient."""
    assert max(errors(made(length, 1) if side == "b" else made(1, length))) <= BUDGET


@pytest.mark.parametrize("h", [200, 1024, 4096])
def test_wide_features_that_are_all_positive(h):
    """As a network's are behind its ReLU: long sums of numbers of one sign, where a single chain of them would lose
    digits with their length."""
    case = Case("wide", 64, 64, h=h, d_a=16, d_b=16, scale=100 / h)
    operands = case.operands()
    with torch.no_grad():
        operands.f_a.abs_().mul_(0.7)
        operands.f_b.abs_().mul_(0.7)
    assert_accurate(run(operands, "native"), operands)


@pytest.mark.parametrize("size", [1e-30, 1e25])
@pytest.mark.parametrize("score", [-60, -38, 38, 60])
@pytest.mark.parametrize("shape", [(10, 12), (100, 90)], ids=["a block", "blocks"])
def test_large_and_small_values_at_scores_far_from_0(shape, score, size):
    """Where both softmaxes share exponentials, exp of the score itself is what values are weighed with."""
    operands = made(*shape)
    bias = torch.full(shape, float(score), dtype=torch.float64)
    f_a, f_b, a, b = (t.float() for t in operands)
    outputs = soft_align(f_a, f_b, a * size, b * size, bias=bias.float(), backend="native")
    truth = soft_align(*operands[:2], *(t.float().double() for t in operands[2:]), bias=bias, backend="reference")
    for found, right in zip(outputs, truth, strict=True):
        assert float((found.double() / size - right).norm() / right.norm()) <= 1e-5
    assert max(errors(operands, bias, size)) <= 1e-5


def test_sides_that_int_can_not_count():
    one = torch.ones(1, 1, 1)
    many = one.expand(1, 2**32 + 3, 1)
    for operands in ((many, one, many, one), (many.mT, many.mT, one, one), (one, one, one, many.mT)):
        with pytest.raises(BackendUnavailable, match="take up to 2147483647 rows a side, and numbers a row"):
            soft_align(*operands, backend="native")
