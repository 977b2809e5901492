"""What holds between calls, for every backend: equal ways of saying the same, symmetry, the same bits, no traces."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from coalign import BackendUnavailable, SoftAlignment, SoftAlignmentWithLse, soft_align, soft_align_packed
from coalign.testing import BUDGET, Case, assert_accurate, error, run

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SHORT = Case("short", 12, 9, tokens_a=(12, 3), tokens_b=(5, 9), extent_a="lengths", extent_b="lengths")
LONG = Case("long", 140, 9, tokens_a=(133, 3), tokens_b=(5, 9), extent_a="lengths", extent_b="lengths")
WIDE = Case("wide", 20, 9, h=200, d_a=100, d_b=100)
REGIMES = pytest.mark.parametrize("case", [SHORT, LONG], ids=lambda case: case.name)


def assert_same_bits(found, other):
    assert found.keys() == other.keys()
    for name in found:
        assert torch.equal(found[name], other[name]), name


def assert_close(found, other, names=None):
    """Equal but for float32 rounding."""
    for name in names or other:
        assert error(found[name], other[name].double().cpu()) <= BUDGET[torch.float32], name


@REGIMES
def test_prefix_mask_is_lengths(case, backend):
    masked = case.but(extent_a="mask", extent_b="mask", prefix=True)
    assert_same_bits(
        run(masked.operands(backend.device), backend.name), run(case.operands(backend.device), backend.name)
    )


@REGIMES
def test_full_lengths_are_no_lengths(case, backend):
    full = case.but(tokens_a=None, tokens_b=None)
    without = full.but(extent_a="full", extent_b="full")
    assert_close(run(full.operands(backend.device), backend.name), run(without.operands(backend.device), backend.name))


@REGIMES
def test_packed_is_padded(case, backend):
    """The same pairs, stored without padding, give the same rows and the same gradients."""
    operands = case.operands(backend.device)
    keep = {side: ~operands.padding(side).to(backend.device) for side in "ab"}
    leaves = {
        name: t[keep[name[-1]]].requires_grad_()
        for name, t in (("f_a", operands.f_a), ("f_b", operands.f_b), ("a", operands.a), ("b", operands.b))
    }
    offsets = [torch.nn.functional.pad(keep[side].sum(-1).cumsum(0), (1, 0)).int() for side in "ab"]
    outputs = soft_align_packed(*leaves.values(), *offsets, case.m, case.n, return_lse=True, backend=backend.name)
    upstream = [g[keep[side]] for g, side in zip(operands.upstream, "abab", strict=True)]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), upstream)

    padded = run(operands, backend.name)
    packed = dict(zip(padded, (*outputs, *gradients), strict=True))
    assert_close(packed, {name: t[keep["a" if t.shape[1] == case.m else "b"]] for name, t in padded.items()})


@pytest.mark.parametrize("case", [c.but(bias="full", scale=0.7) for c in (SHORT, LONG)], ids=lambda case: case.name)
def test_swapping_sides_swaps_results(case, backend):
    operands = case.operands(backend.device)
    found = run(operands, backend.name)
    f_a, f_b, a, b, bias = operands.differentiable().values()
    outputs = soft_align(
        f_b, f_a, b, a, bias=bias.mT, scale=case.scale, return_lse=True, backend=backend.name,
        lengths_a=operands.options["lengths_b"], lengths_b=operands.options["lengths_a"],
    )  # fmt: skip
    dbeta, dalpha, dlse_a, dlse_b = operands.upstream
    gradients = torch.autograd.grad(outputs, (f_a, f_b, a, b, bias), (dalpha, dbeta, dlse_b, dlse_a))
    alpha, beta, lse_b, lse_a = outputs
    assert_close(dict(zip(found, (beta, alpha, lse_a, lse_b, *gradients), strict=True)), found)


@pytest.mark.parametrize(
    "case",
    [SHORT, LONG, WIDE, WIDE.but(m=150, batch=(1,), name="wide, long"), SHORT.but(dtype=torch.bfloat16, name="bf16")],
    ids=lambda case: case.name,
)
def test_same_bits_every_time(case, backend):
    first = run(case.operands(backend.device), backend.name)
    again = run(case.operands(backend.device), backend.name)
    assert_same_bits(first, again)


@REGIMES
def test_a_pair_does_not_depend_on_its_batch(case, backend):
    """The second pair alone gives what it gave in company: its tokens are all that counts."""
    operands = case.operands(backend.device)
    together = run(operands, backend.name)
    second = {name: t[1:] for name, t in operands.options.items() if name != "scale"}
    alone = soft_align(
        operands.f_a[1:], operands.f_b[1:], operands.a[1:], operands.b[1:],
        return_lse=True, backend=backend.name, **second,
    )  # fmt: skip
    assert_close(alone._asdict(), {name: together[name][1:] for name in alone._fields})


@REGIMES
def test_inputs_are_not_modified(case, backend):
    operands = case.but(bias="full").operands(backend.device)
    tensors = [*operands.differentiable().values(), *operands.upstream, operands.options["lengths_a"]]
    before = [t.detach().clone() for t in tensors]
    run(operands, backend.name)
    for t, copy in zip(tensors, before, strict=True):
        assert torch.equal(t.nan_to_num(7.0), copy.nan_to_num(7.0))


@REGIMES
@pytest.mark.parametrize("used", [["beta"], ["alpha"], ["lse_a"], ["lse_b"], ["beta", "lse_b"]], ids="+".join)
def test_gradient_of_some_outputs(case, used, backend):
    """An output that the loss does not use counts as a zero gradient."""
    operands = case.operands(backend.device)
    leaves = operands.differentiable()
    outputs = soft_align(**leaves, **operands.options, return_lse=True, backend=backend.name)
    upstream = dict(zip(outputs._fields, operands.upstream, strict=True))
    partial = torch.autograd.grad(
        [getattr(outputs, name) for name in used], list(leaves.values()), [upstream[name] for name in used]
    )
    for name in upstream.keys() - set(used):
        upstream[name].zero_()
    whole = run(operands, backend.name)
    assert_close(
        {f"grad_{name}": g for name, g in zip(leaves, partial, strict=True)}, whole, [f"grad_{x}" for x in leaves]
    )


@REGIMES
@pytest.mark.parametrize("wanted", ["f_a", "b", "bias"])
def test_gradient_of_some_operands(case, wanted, backend):
    operands = case.but(bias="shared").operands(backend.device)
    leaves = operands.differentiable()
    for name, t in leaves.items():
        t.requires_grad_(name == wanted)
    outputs = soft_align(**leaves, **operands.options, return_lse=True, backend=backend.name)
    gradients = torch.autograd.grad(outputs, leaves[wanted], operands.upstream)
    assert_close({f"grad_{wanted}": gradients[0]}, run(operands, backend.name), [f"grad_{wanted}"])


@REGIMES
def test_upstream_gradient_of_a_sum(case, backend):
    """sum() sends back one expanded number, a gradient with strides of 0."""
    operands = case.operands(backend.device)
    leaves = operands.differentiable()
    beta, alpha = soft_align(**leaves, **operands.options, backend=backend.name)
    expanded = torch.autograd.grad(beta.sum() + alpha.sum(), list(leaves.values()), retain_graph=True)
    dense = torch.autograd.grad(
        (beta, alpha), list(leaves.values()), (torch.ones_like(beta).contiguous(), torch.ones_like(alpha).contiguous())
    )
    for found, other in zip(expanded, dense, strict=True):
        assert torch.equal(found, other)


@REGIMES
def test_lse_is_optional(case, backend):
    operands = case.operands(backend.device)
    call = {**operands.differentiable(), **operands.options, "backend": backend.name}
    without, with_lse = soft_align(**call), soft_align(**call, return_lse=True)
    assert type(without) is SoftAlignment
    assert type(with_lse) is SoftAlignmentWithLse
    assert torch.equal(without.beta, with_lse.beta)
    assert torch.equal(without.alpha, with_lse.alpha)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shapes_and_dtypes(dtype, backend):
    f_a, f_b, a, b = (
        SHORT.but(dtype=dtype, batch=(2, 1), tokens_a=None, tokens_b=None)
        .operands(backend.device)
        .differentiable()
        .values()
    )
    found = soft_align(f_a, f_b, a, b, return_lse=True, backend=backend.name)
    assert [t.shape for t in found] == [(2, 1, 12, 5), (2, 1, 9, 6), (2, 1, 12), (2, 1, 9)]
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32, torch.float32]
    assert all(t.requires_grad and t.device.type == backend.device for t in found)
    with torch.no_grad():
        assert not any(t.requires_grad for t in soft_align(f_a, f_b, a, b, backend=backend.name))


@pytest.mark.parametrize("extent", ["lengths", "mask"])
def test_one_extent_for_a_whole_batch(extent, backend):
    """Lengths and masks broadcast over batch dimensions, heads above all."""
    case = SHORT.but(batch=(2, 3), tokens_a=(4, 4, 4, 9, 9, 9), tokens_b=None, extent_a=extent, extent_b="full")
    case = case.but(prefix=True)
    operands = case.operands(backend.device)
    short = {name: t[:, :1] for name, t in operands.options.items() if name != "scale"}
    found = soft_align(
        operands.f_a, operands.f_b, operands.a, operands.b, return_lse=True, backend=backend.name, **short
    )
    assert_close(found._asdict(), run(operands, backend.name), found._fields)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_dtypes_of_lengths(dtype, backend):
    operands = SHORT.operands(backend.device)
    expected = run(operands, backend.name)
    for name in ("lengths_a", "lengths_b"):
        operands.options[name] = operands.options[name].to(dtype)
    assert_same_bits(run(operands, backend.name), expected)


def test_strided_lengths_and_masks(backend):
    """A column of a table is as good as a tensor of its own."""
    operands = SHORT.operands(backend.device)
    expected = run(operands, backend.name)
    lengths = operands.options["lengths_a"]
    operands.options["lengths_a"] = torch.stack([lengths, lengths + 100], 1)[:, 0]
    assert_same_bits(run(operands, backend.name), expected)

    holes = SHORT.but(extent_a="mask", extent_b="mask").operands(backend.device)
    expected = run(holes, backend.name)
    holes.options["mask_a"] = holes.options["mask_a"].mT.contiguous().mT
    assert_same_bits(run(holes, backend.name), expected)


@REGIMES
def test_second_derivative(case, backend):
    """Through the reference, whatever backend was named: the derivative of a gradient penalty."""

    def penalty_gradient(dtype, name):
        operands = case.operands(backend.device)
        leaves = [t.detach().to(dtype).requires_grad_() for t in operands.differentiable().values()]
        outputs = soft_align(*leaves, **operands.options, return_lse=True, backend=name)
        upstream = [g.to(o) for g, o in zip(operands.upstream, outputs, strict=True)]
        first = torch.autograd.grad(outputs, leaves, upstream, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    truth = penalty_gradient(torch.float64, "reference")
    for found, t in zip(penalty_gradient(torch.float32, backend.name), truth, strict=True):
        assert error(found, t.cpu()) <= BUDGET[torch.float32]


def test_calls_from_many_threads(backend):
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton's interpreter keeps the running program in a global: one thread at a time")
    cases = [case.but(seed=seed) for seed in range(4) for case in (SHORT, LONG)]
    expected = [run(case.operands(backend.device), backend.name) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda case: run(case.operands(backend.device), backend.name), cases))
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize(
    "case",
    [
        SHORT,
        LONG.but(bias="full", forbid=0.2),
        SHORT.but(name="packed", extent_a="packed", extent_b="packed"),
        WIDE.but(name="big scores", magnitude=1e4),
    ],
    ids=lambda case: case.name,
)
def test_float64(case, backend):
    """The reference serves it to 1e-12; a backend that can't must say so, and never fall back when named."""
    operands = case.but(dtype=torch.float64).operands(backend.device)
    if backend.for_gpus:
        with pytest.raises(BackendUnavailable, match=rf"'{backend.name}'.*float64"):
            run(operands, backend.name)
    else:
        found = run(operands, backend.name)
        assert found["lse_a"].dtype == torch.float64
        assert_accurate(found, operands)


@pytest.mark.parametrize("true", [2, 128, 255])
def test_masks_of_any_bytes(true, backend):
    """PyTorch takes every byte but 0 for true; masks that come from elsewhere without a copy hold such bytes."""
    inputs = [torch.randn(2, rows, w, device=backend.device) for rows, w in ((40, 8), (9, 8), (40, 3), (9, 6))]
    mask = torch.rand(2, 40, device=backend.device) < 0.7
    bytes_ = (mask.to(torch.uint8) * true).view(torch.bool)
    found, expected = (soft_align(*inputs, mask_a=m, backend=backend.name) for m in (bytes_, mask))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("which", ["a", "b"])
def test_second_gradients_of_values_alone(which, backend):
    """Of frozen features: neither the LSEs nor the other side's output depend on the values."""
    leaves = {name: torch.randn(2, 3, 4, device=backend.device) for name in ("f_a", "f_b", "a", "b")}
    leaves[which].requires_grad_()
    found = soft_align(**leaves, return_lse=True, backend=backend.name)
    loss = found.beta.square().sum() + found.alpha.square().sum() + found.lse_a.sum()
    (first,) = torch.autograd.grad(loss, leaves[which], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaves[which])
    assert second.norm() > 0
    lse_a = soft_align(**leaves, return_lse=True, backend=backend.name).lse_a
    (none,) = torch.autograd.grad(lse_a.sum(), leaves[which], create_graph=True, allow_unused=True)
    assert none is None or not none.any()


@pytest.mark.parametrize("extents", [{}, {"lengths_a": torch.tensor([90, 50])}], ids=["full", "lengths"])
def test_saved_tensors_that_come_back_otherwise_laid_out(extents, backend):
    inputs = [torch.randn(2, rows, w, device=backend.device) for rows, w in ((100, 8), (9, 8), (100, 3), (9, 6))]
    extents = {name: t.to(backend.device) for name, t in extents.items()}

    def gradients():
        leaves = [t.detach().requires_grad_() for t in inputs]
        found = soft_align(*leaves, **extents, backend=None if backend.name == "native" else backend.name)
        return torch.autograd.grad(found.beta.sin().sum() + found.alpha.sin().sum(), leaves)

    def pack(t):
        return t.mT.contiguous() if t.ndim > 1 else torch.stack([t, t + 1], 1).reshape(-1, 2, 1, 1)

    expected = gradients()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t.mT if t.ndim < 4 else t[:, 0, 0, 0]):
        found = gradients()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", [None, "native"])
def test_lengths_that_changed_unseen(name):
    """NumPy's writes raise no version counter; what no longer fits must not be read."""
    if name is None and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton serves these calls")
    numbers = np.array([3, 5])
    leaves = [torch.randn(2, 5, 4, requires_grad=True) for _ in range(4)]
    for _ in range(2):  # the second call goes the short way
        numbers[:] = 3, 5
        found = soft_align(*leaves, lengths_a=torch.from_numpy(numbers), backend=name)
        numbers[:] = 4000, 500000
        with pytest.raises(RuntimeError, match="lengths or offsets were changed after the forward pass"):
            found.beta.sum().backward()


def test_inference_mode_records_nothing(backend):
    leaves = [torch.randn(2, 5, 4, device=backend.device, requires_grad=True) for _ in range(4)]
    with torch.inference_mode(), torch.enable_grad():
        for name in (backend.name, None):
            for _ in range(2):
                assert not soft_align(*leaves, backend=name).beta.requires_grad


def test_a_gradient_of_what_was_not_aligned_is_no_others(backend):
    """A token with nothing to align with has -inf for its LSE: of NaN that arrives there nothing may be left."""
    leaves = [torch.randn(2, 5, 4, device=backend.device, requires_grad=True) for _ in range(4)]
    lengths = torch.tensor([0, 2], device=backend.device)
    found = soft_align(*leaves, lengths_b=lengths, return_lse=True, backend=backend.name)
    torch.where(found.lse_a > -1e9, found.lse_a.square(), 0.0).sum().backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)
    assert leaves[0].grad.norm() > 0


@pytest.mark.parametrize("operand", ["f_a", "f_b", "a", "b"])
@pytest.mark.parametrize(("extent", "wrong"), [("lengths", torch.nan), ("mask", torch.inf)])
@pytest.mark.parametrize("case", [SHORT, LONG], ids=lambda case: case.name)
def test_padding_stays_0_beside_a_token_that_is_not_finite(case, extent, wrong, operand, backend):
    """A weight of 0 times NaN is NaN, but padding has no weights."""
    operands = case.but(bias="full", extent_a=extent, extent_b=extent).operands(backend.device)
    side = operand[-1]
    for pair, places in enumerate(operands.places_a if side == "a" else operands.places_b):
        getattr(operands, operand)[pair, places[0]] = wrong
    found = run(operands, backend.name)
    a, b = (operands.padding(letter).to(backend.device) for letter in "ab")
    padding = {"beta": a, "grad_f_a": a, "grad_a": a, "alpha": b, "grad_f_b": b, "grad_b": b}
    padding["grad_bias"] = a.unsqueeze(-1) | b.unsqueeze(-2)
    for name, where in padding.items():
        assert where.any()
        assert (found[name][where] == 0).all(), name


@pytest.mark.parametrize("m", [1, 7, 70])
def test_one_tokens_lse_is_its_score(m, backend):
    """However small: the logarithm of an exponential would have lost its digits."""
    f_a, f_b = (torch.randn(2, rows, 5, device=backend.device) * 1e-3 for rows in (m, 1))
    lse = soft_align(f_a, f_b, f_a, f_b, return_lse=True, backend=backend.name).lse_a
    scores = (f_a.double() @ f_b.double().mT).squeeze(-1)
    assert (lse - scores).norm() <= 1e-5 * scores.norm()


def test_nan_stays_in_its_packed_pair(backend):
    """The pairs before and after one with NaN have the outputs and the gradients that they have without it."""
    generator = torch.Generator().manual_seed(0)
    offsets = [torch.tensor(t, dtype=torch.int32, device=backend.device) for t in ((0, 2, 7, 9), (0, 3, 5, 9))]
    found = []
    for value in (0.5, torch.nan):
        generator.manual_seed(0)
        operands = [torch.randn(9, 4, generator=generator) for _ in range(4)]
        operands[1][3] = value
        operands = [t.to(backend.device).requires_grad_() for t in operands]
        beta, alpha = soft_align_packed(*operands, *offsets, 5, 4, backend=backend.name)
        grads = torch.autograd.grad(beta[offsets[0].long()[:-1]].sum() + alpha.square().sum(), operands)
        sides = zip((beta, alpha, *grads), (0, 1, 0, 1, 0, 1), strict=True)
        found.append([torch.cat([t[: offsets[k][1]], t[offsets[k][2] :]]) for t, k in sides])
    for without, beside in zip(*found, strict=True):
        assert torch.equal(without, beside)
