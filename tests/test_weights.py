"""What surrounds the operator: its weights, dual softmax and matches, learned scales, scores beyond any clamp."""

from __future__ import annotations

import re

import pytest
import torch

from coalign import (
    alignment_weights,
    dual_softmax,
    dual_softmax_matches,
    explain,
    soft_align,
    soft_align_one_way,
    soft_align_packed,
)
from coalign.testing import BUDGET, Case, error

RAGGED = Case("ragged", 7, 5, batch=(2, 2), tokens_a=(7, 3, 0, 2), tokens_b=(5, 1, 4, 0), scale=0.7)
CASES = [
    Case("full", 5, 4),
    RAGGED.but(name="lengths and bias", extent_a="lengths", extent_b="lengths", bias="full", forbid=0.2),
    RAGGED.but(name="masks", extent_a="mask", extent_b="mask"),
    RAGGED.but(name="one mask", extent_a="mask", tokens_b=None, extent_b="full"),
    Case("no rows", 0, 4),
    Case("no columns", 5, 0),
    Case("one column", 5, 1),
]
WITH_CASES = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@WITH_CASES
def test_weights_are_those_of_the_operator(case):
    """p @ b and q.mT @ a are beta and alpha, and so are their gradients."""
    operands = case.but(dtype=torch.float64).operands()
    keep_a = torch.zeros(*case.batch, case.m, dtype=torch.bool)
    keep_b = torch.zeros(*case.batch, case.n, dtype=torch.bool)
    for keep, places in ((keep_a, operands.places_a), (keep_b, operands.places_b)):
        for row, place in zip(keep.flatten(0, -2), places, strict=True):
            row[place] = True
    leaves = operands.differentiable()
    p, q = alignment_weights(**{k: v for k, v in leaves.items() if k not in ("a", "b")}, **operands.options)
    a, b = (leaves[n].masked_fill(~k.unsqueeze(-1), 0) for n, k in (("a", keep_a), ("b", keep_b)))
    by_hand = p @ b, q.mT @ a
    expected = soft_align(**leaves, **operands.options, backend="reference")
    g_beta, g_alpha = (
        g.masked_fill(~k.unsqueeze(-1), 0) for g, k in zip(operands.upstream[:2], (keep_a, keep_b), strict=True)
    )
    for one, other in zip(by_hand, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert error(one, other.detach()) <= 1e-12
    of_weights = torch.autograd.grad(by_hand, list(leaves.values()), (g_beta, g_alpha))
    of_operator = torch.autograd.grad(expected, list(leaves.values()), (g_beta, g_alpha))
    for one, other in zip(of_weights, of_operator, strict=True):
        assert error(one, other) <= 1e-12


def test_weights_come_in_the_operands_dtype():
    f_a, f_b = (torch.randn(2, k, 8, generator=torch.Generator().manual_seed(k)).bfloat16() for k in (5, 4))
    for one, other in zip(alignment_weights(f_a, f_b), alignment_weights(f_a.float(), f_b.float()), strict=True):
        assert torch.equal(one, other.bfloat16())
    assert dual_softmax(f_a, f_b).dtype == torch.float32


@WITH_CASES
def test_dual_softmax_is_the_product_of_both(case):
    operands = case.but(dtype=torch.float64).operands()
    features = {"f_a": operands.f_a, "f_b": operands.f_b, "bias": operands.bias}
    p, q = alignment_weights(**features, **operands.options)
    product = dual_softmax(**features, **operands.options)
    assert torch.equal(product, p * q)
    assert not product.isnan().any()
    logarithm = dual_softmax(**features, **operands.options, log=True)
    assert torch.allclose(logarithm.exp(), product, rtol=1e-12, atol=1e-300)
    assert torch.equal(logarithm == -torch.inf, product == 0)


def test_gradient_of_log_dual_softmax():
    operands = RAGGED.but(dtype=torch.float64, extent_a="lengths", extent_b="mask").operands()
    f_a, f_b = (t.nan_to_num(0.5, 0.5, 0.5).requires_grad_() for t in (operands.f_a, operands.f_b))

    def finite(f_a, f_b):
        found = dual_softmax(f_a, f_b, **operands.options, log=True)
        return found[found > -torch.inf]

    assert torch.autograd.gradcheck(finite, (f_a, f_b))


@pytest.mark.parametrize("chunk", [1, 3, 512])
@WITH_CASES
def test_matches_are_the_maxima_of_the_matrix(case, chunk):
    operands = case.but(dtype=torch.float64, bias="none", forbid=0.0, magnitude=4.0).operands()
    found = dual_softmax_matches(operands.f_a, operands.f_b, **operands.options, threshold=0.05, chunk=chunk)
    matrix = dual_softmax(operands.f_a, operands.f_b, **operands.options)
    index = torch.full(matrix.shape[:-1], -1)
    score = torch.zeros(matrix.shape[:-1], dtype=matrix.dtype)
    for *pair, i, j in (matrix > 0.05).nonzero().tolist():
        here = matrix[tuple(pair)]
        if here[i, j] == here[i].max() == here[:, j].max():
            index[(*pair, i)], score[(*pair, i)] = j, here[i, j]
    assert torch.equal(found.partner, index)
    assert torch.allclose(found.score, score, rtol=1e-12)
    if case.m and case.n:
        assert (found.partner >= 0).any()


def test_matches_find_a_permutation_in_every_dtype(backend):
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        f = torch.nn.functional.normalize(torch.randn(70, 32), dim=-1).to(backend.device, dtype)
        order = torch.randperm(70, device=backend.device)
        found = dual_softmax_matches(f, f[order], scale=40.0, chunk=16, backend=backend.name)
        assert torch.equal(order[found.partner], torch.arange(70, device=backend.device))
        assert (found.score > 0.5).all()


@pytest.mark.parametrize("chunk", [0, 1.5])
def test_matches_refuse_an_empty_chunk(chunk):
    with pytest.raises(ValueError, match=f"chunk must be a whole number, at least 1, not {chunk}"):
        dual_softmax_matches(torch.randn(2, 3), torch.randn(2, 3), chunk=chunk)


@pytest.mark.parametrize("threshold", [-0.1, 2, float("nan")])
def test_matches_refuse_a_threshold_that_no_score_can_have(threshold):
    with pytest.raises(ValueError, match=f"threshold must lie between 0 and 1, not {threshold}"):
        dual_softmax_matches(torch.randn(2, 3), torch.randn(2, 3), threshold=threshold)


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 3)], ids=str)
def test_learned_scale(backend, shape):
    """One number, one a head, one a pair, one each: a factor on e, whose gradient NaN in the padding can't touch."""
    tokens = {"tokens_a": (7, 3, 1, 2, 0, 7), "tokens_b": (5, 1, 4, 2, 5, 5)}
    operands = RAGGED.but(batch=(2, 3), extent_a="lengths", extent_b="mask", scale=1.0, **tokens).operands(
        backend.device
    )
    operands.options.pop("scale")
    scale = torch.rand(shape, device=backend.device) + 0.5
    results = []
    for by_bias in (False, True):
        leaves = operands.differentiable()
        factor = scale.clone().requires_grad_()
        if by_bias:  # the scores by hand, as a bias on scores of nothing
            clean = {n: leaves[n].nan_to_num(0, 0, 0).double() for n in ("f_a", "f_b")}
            e = factor.double()[..., None, None] * (clean["f_a"] @ clean["f_b"].mT)
            nothing = {n: t.detach() * 0 for n, t in clean.items()}
            values = {n: leaves[n].double() for n in ("a", "b")}
            found = soft_align(**nothing, **values, bias=e, **operands.options, backend="reference")
        else:
            found = soft_align(**leaves, **operands.options, scale=factor, backend=backend.name)
        inputs = [factor, *leaves.values()]
        upstream = [g.to(o) for g, o in zip(operands.upstream[:2], found, strict=True)]
        results.append((*found, *torch.autograd.grad(found, inputs, upstream)))
    for one, other in zip(*results, strict=True):
        assert error(one, other.detach().double().cpu()) <= BUDGET[torch.float32]


def test_learned_scale_packed(backend):
    operands = Case("packed", 5, 4, tokens_a=(5, 2), tokens_b=(1, 4), extent_a="packed", extent_b="packed").operands(
        backend.device
    )
    factor = torch.tensor(0.6, device=backend.device, requires_grad=True)
    options = {k: v for k, v in operands.options.items() if k != "scale"}
    leaves = operands.differentiable()
    found = soft_align_packed(**leaves, **options, scale=factor, backend=backend.name)
    expected = soft_align_packed(**leaves, **options, scale=0.6, backend=backend.name)
    for one, other in zip(found, expected, strict=True):
        assert error(one, other.detach().double().cpu()) <= BUDGET[torch.float32]
    (by_scale, by_f) = torch.autograd.grad(found, [factor, leaves["f_a"]], operands.upstream[:2])
    # e depends on scale and f_a through their product alone
    assert torch.allclose(by_scale * 0.6, (by_f * leaves["f_a"]).sum(), rtol=1e-4)


def test_half_precision_scale_is_rounded_once():
    operands = Case("half", 9, 8, dtype=torch.bfloat16).operands()
    options = {"backend": "reference", "return_lse": True}
    scale = torch.tensor(0.7071)
    found = soft_align(operands.f_a, operands.f_b, operands.a, operands.b, scale=scale, **options)
    rounded = (operands.f_a.float() * scale).bfloat16()
    expected = soft_align(rounded, operands.f_b, operands.a, operands.b, **options)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@WITH_CASES
def test_one_way_is_beta_alone(case, backend):
    """Of f_a, f_b, b and bias the gradients that β gives them, to the last bit or nearly so."""
    operands = case.operands(backend.device)
    results = []
    for one_way in (True, False):
        leaves = operands.differentiable()
        a = leaves.pop("a").detach()
        if one_way:
            beta = soft_align_one_way(**leaves, **operands.options, backend=backend.name)
        else:
            beta = soft_align(**leaves, a=a, **operands.options, backend=backend.name).beta
        results.append((beta, *torch.autograd.grad(beta, list(leaves.values()), operands.upstream[0])))
    for one, other in zip(*results, strict=True):
        assert error(one, other.detach().double().cpu()) <= BUDGET[torch.float32]


def clamped(e: torch.Tensor, dim: int) -> torch.Tensor:
    """Softmax as GroundingDINO guards it: the largest score of the slice taken off, then clamped to +-50000."""
    return (e - e.amax(dim, keepdim=True)).clamp(-50000, 50000).softmax(dim)


@pytest.mark.parametrize("magnitude", [1.0, 1e3, 3e4, 1e30])
def test_scores_need_no_clamps(backend, magnitude):
    """Clamps change nothing: a score that they move is 50000 below the largest, and e^-50000 is 0 either way."""
    torch.manual_seed(0)
    f_a, f_b = torch.randn(2, 9, 1, device=backend.device) * magnitude, torch.randn(2, 7, 1, device=backend.device)
    a, b = torch.randn(2, 9, 3, device=backend.device), torch.randn(2, 7, 4, device=backend.device)
    f_a.requires_grad_()
    found = soft_align(f_a, f_b, a, b, backend=backend.name)
    e = f_a.detach() @ f_b.mT  # one product a score: no order of sums to differ by
    expected = clamped(e, -1) @ b, clamped(e, -2).mT @ a
    for one, other in zip(found, expected, strict=True):
        assert one.isfinite().all()
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 if magnitude > 1e3 else 1e-5)
    (gradient,) = torch.autograd.grad(sum(t.square().sum() for t in found), f_a)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [0.3, torch.tensor([0.2, 0.4, 0.3])], ids=["a number", "a tensor"])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_matches_under_autocast_and_with_scales_of_their_own(scale, autocast):
    draw = torch.Generator().manual_seed(0)
    f_a, f_b = (torch.randn(3, k, 8, generator=draw) for k in (4, 3))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        both = dual_softmax(f_a, f_b, scale=scale)
        found = dual_softmax_matches(f_a, f_b, scale=scale)
    mutual = (both == both.amax(-1, keepdim=True)) & (both == both.amax(-2, keepdim=True))
    assert torch.allclose(found.score, (both * mutual).sum(-1), atol=1e-4)
    assert torch.equal(found.partner >= 0, mutual.any(-1))


def test_matches_of_what_is_no_tensor():
    with pytest.raises(TypeError, match="f_a and f_b must be tensors, not list and Tensor"):
        dual_softmax_matches([1], torch.ones(2, 3))
    with pytest.raises(TypeError, match="f_a must be a tensor, not list"):
        soft_align_one_way([1], torch.ones(2, 3), torch.ones(2, 3))


@pytest.mark.parametrize("call", [alignment_weights, dual_softmax, dual_softmax_matches])
def test_nested_features_are_refused(call):
    """Those in the strided layout have no shape to be held against anything."""
    dense, nested = torch.ones(2, 5, 8), torch.nested.nested_tensor([torch.ones(5, 8)] * 2)
    for name, features in (("f_a", (nested, dense)), ("f_b", (dense, nested))):
        with pytest.raises(TypeError, match=rf"^{name} must be a dense \(strided\) tensor, not a nested one"):
            call(*features)


@pytest.mark.parametrize(
    ("f_a", "error", "message"),
    [
        (torch.eye(5).to_sparse(), TypeError, r"f_a must be a dense \(strided\) tensor, not torch\.sparse_coo"),
        (torch.nested.nested_tensor([torch.ones(5, 8)] * 2), TypeError, r"f_a must have the layout torch\.jagged"),
        (torch.tensor(1.0), ValueError, r"f_a must be \(\*batch, length, width\), not \(\)"),
    ],
    ids=["sparse", "nested", "no dimension"],
)
def test_one_way_of_what_has_no_columns(f_a, error, message):
    with pytest.raises(error, match=message):
        soft_align_one_way(f_a, torch.ones(5, 5), torch.ones(5, 5))


@pytest.mark.parametrize("dropout", [(0.1, 0.0), "a", True])
def test_one_way_takes_one_dropout(dropout):
    with pytest.raises(TypeError, match=rf"^dropout must be a number, of β's weights, not {re.escape(repr(dropout))}$"):
        soft_align_one_way(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3), dropout=dropout)


def test_one_way_takes_nested_tensors():
    nested = torch.nested.nested_tensor([torch.randn(5, 8), torch.randn(3, 8)], layout=torch.jagged)
    expected = soft_align(nested, nested, nested, nested).beta
    torch.testing.assert_close(soft_align_one_way(nested, nested, nested).values(), expected.values())


@pytest.mark.parametrize("call", [alignment_weights, dual_softmax, dual_softmax_matches, explain])
def test_lengths_that_do_not_fit_are_refused(call):
    f_a, f_b = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    values = (f_a, f_b) if call is explain else ()
    for lengths, found in (([3, 7], "7"), ([-2, 3], "-2")):
        with pytest.raises(ValueError, match=f"lengths_a must lie between 0 and 3, the rows of f_a; found {found}"):
            call(f_a, f_b, *values, lengths_a=torch.tensor(lengths))


@pytest.mark.parametrize("kinds", [("lengths", "lengths"), ("lengths", "mask"), ("mask", "lengths")], ids=str)
def test_one_pair_without_a_batch_takes_lengths_of_no_dimension(kinds):
    torch.manual_seed(0)
    f_a, f_b = torch.randn(5, 8), torch.randn(4, 8)
    given = {}
    for letter, kind, rows, length in zip("ab", kinds, (5, 4), (3, 2), strict=True):
        given[f"{kind}_{letter}"] = torch.tensor(length) if kind == "lengths" else torch.arange(rows) < length
    batched = {name: t[None] for name, t in given.items()}
    for call in (alignment_weights, dual_softmax, dual_softmax_matches):
        found, expected = call(f_a, f_b, **given), call(f_a[None], f_b[None], **batched)
        pairs = [(found, expected)] if isinstance(found, torch.Tensor) else zip(found, expected, strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other[0])
    table = explain(f_a, f_b, f_a, f_b, **given)
    assert table == explain(f_a[None], f_b[None], f_a[None], f_b[None], **batched)
    name, rows, length = ("lengths_a", 5, 6) if kinds[0] == "lengths" else ("lengths_b", 4, -1)
    with pytest.raises(ValueError, match=f"{name} must lie between 0 and {rows}, .*; found {length}"):
        dual_softmax(f_a, f_b, **given | {name: torch.tensor(length)})


@pytest.mark.parametrize("threshold", [None, "a", torch.tensor([0.1, 0.2])], ids=["None", "str", "Tensor"])
def test_matches_refuse_a_threshold_that_is_no_number(threshold):
    with pytest.raises(TypeError, match=f"threshold must be a number, not {type(threshold).__name__}"):
        dual_softmax_matches(torch.randn(2, 3), torch.randn(2, 3), threshold=threshold)


def test_no_score_of_a_match_is_above_one():
    """However large scores are: two products of the same features differ by their rounding."""
    torch.manual_seed(0)
    f = torch.randn(1, 200, 64) * 60
    assert 0.5 < dual_softmax_matches(f, f).score.max() <= 1


def test_of_matches_as_good_the_first_one_counts_and_a_threshold_is_exceeded():
    f_a, f_b = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [2.0], [-1.0]])
    found = dual_softmax_matches(f_a, f_b)
    assert found.partner.tolist() == [0, 2]
    best = float(found.score[0])
    assert dual_softmax_matches(f_a, f_b, threshold=best).partner[0] == -1
    assert dual_softmax_matches(f_a, f_b, threshold=best - 1e-6).partner[0] == 0
    assert dual_softmax_matches(f_b, f_a).partner.tolist() == [0, -1, 1]
