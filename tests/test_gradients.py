"""The formula itself, in float64 through the reference: first and second derivatives against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

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


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_operands_made_of_one_another(backend, packed):
    """With create_graph=True the way back ends at the operands: what they are made of is not counted twice."""
    draw = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, generator=draw).requires_grad_() for shape in ((2, 4, 3), (3, 3)))
    offsets = torch.tensor([0, 3, 8], dtype=torch.int32)

    def outputs():
        if packed:
            rows = x.flatten(0, 1)
            return soft_align_packed(rows @ w, rows, rows, rows.tanh(), offsets, offsets, 5, 5, backend=backend)
        return soft_align(x @ w, x, x, x.tanh(), lengths_a=torch.tensor([3, 1]), backend=backend)

    found = [
        torch.autograd.grad(sum(o.sin().sum() for o in outputs()), (x, w), create_graph=create)
        for create in (False, True)
    ]
    for once, again in zip(*found, strict=True):
        assert (once - again).norm() <= 1e-5 * once.norm()

    def first(x_):
        return soft_align(x_ @ w.detach().double(), x_, x_, x_.tanh(), backend=backend).beta.sin().sum()

    x64 = x.detach().double().requires_grad_()
    assert torch.autograd.gradgradcheck(first, (x64,))
    hessian = torch.autograd.functional.hessian(first, x64)
    assert torch.allclose(hessian, torch.func.hessian(first)(x64), atol=1e-9)


@pytest.mark.parametrize(
    "options", [{}, {"return_lse": True}, {"bias": 0}, {"lengths_a": torch.tensor([3, 1])}], ids=str
)
@pytest.mark.parametrize("again", [False, True], ids=["first call", "second call"])
def test_several_gradients_at_once(options, again):
    draw = torch.Generator().manual_seed(0)
    leaves = [torch.randn(2, n, 3, generator=draw).requires_grad_() for n in (4, 5, 4, 5)]
    if "bias" in options:
        options = {"bias": torch.randn(4, 5, generator=draw).requires_grad_()}
        leaves.append(options["bias"])
    call = lambda: soft_align(*leaves[:4], **options, backend=None).beta  # noqa: E731
    if again:
        call()
    arriving = torch.randn(3, 2, 4, 3, generator=draw)
    found = torch.autograd.grad(call(), leaves, arriving, is_grads_batched=True)
    for k in range(3):
        for one, other in zip(torch.autograd.grad(call(), leaves, arriving[k]), found, strict=True):
            assert torch.allclose(one, other[k], atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"return_lse": True}, {"lengths_a": torch.tensor([3, 1])}], ids=str)
@pytest.mark.parametrize("again", [False, True], ids=["first call", "second call"])
def test_tangents_of_what_arrives(options, again):
    """The gradient is linear in what arrives: its tangent is the gradient of the tangent."""
    leaves = [torch.randn(2, n, 3).requires_grad_() for n in (4, 5, 4, 5)]
    if again:
        soft_align(*leaves, **options, backend=None)
    found = soft_align(*leaves, **options, backend=None)[:2]
    arriving, tangents = ([torch.randn_like(t) for t in found] for _ in range(2))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, tangent) for t, tangent in zip(arriving, tangents, strict=True)]
        pushed = [
            forward_ad.unpack_dual(t).tangent for t in torch.autograd.grad(found, leaves, duals, retain_graph=True)
        ]
    for one, other in zip(torch.autograd.grad(found, leaves, tangents), pushed, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"scale": 0.5}, {"lengths_a": torch.tensor([3, 1])}], ids=str)
def test_zeros_that_have_no_memory_arrive(options):
    """PyTorch lays them out, with strides of 0, when an operator reads them."""
    leaves = [torch.randn(2, n, 3).requires_grad_() for n in (40, 50, 40, 50)]
    found = soft_align(*leaves, **options, backend=None)[:2]
    zeros = [torch._efficientzerotensor(t.shape) for t in found]
    for t in torch.autograd.grad(found, leaves, zeros):
        assert torch.equal(t, torch.zeros_like(t))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_second_derivatives_where_a_side_has_nothing(shape):
    m, n = shape
    leaves = [torch.randn(2, k, 3, dtype=torch.float64).requires_grad_() for k in (m, n, m, n)]
    found = torch.autograd.grad(sum(o.sum() for o in soft_align(*leaves)), leaves, create_graph=True, allow_unused=True)
    assert all(g is None or not g.any() for g in found)
    rows = [t.flatten(0, 1) for t in leaves]
    offsets = [torch.tensor([0, k, 2 * k], dtype=torch.int32) for k in shape]
    for longest in (max(shape), 4):
        packed = soft_align_packed(*rows, *offsets, longest, longest)
        found = torch.autograd.grad(sum(o.sum() for o in packed), rows, create_graph=True, allow_unused=True)
        assert all(g is None or not g.any() for g in found)


def test_nan_in_padding_reaches_no_learned_scale():
    f, x = torch.randn(4, 3), torch.randn(4, 2)
    f[2:] = torch.nan
    scale = torch.tensor(0.7, requires_grad=True)
    for extent in ({"lengths_a": torch.tensor(2)}, {"mask_a": torch.arange(4) < 2}):
        soft_align(f, torch.randn(5, 3), x, torch.randn(5, 2), scale=scale, **extent).beta.sum().backward()
        assert scale.grad.isfinite()
