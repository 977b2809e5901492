"""Nested tensors straight into the operator: the packed operator's bits, nested again."""

from __future__ import annotations

import pytest
import torch

from coalign import soft_align, soft_align_packed

LENGTHS = ([3, 5, 0, 2], [4, 1, 2, 6])


def nested(lengths, width, device="cpu", **options):
    torch.manual_seed(sum(lengths) + width)
    rows = [torch.randn(n, width, device=device) for n in lengths]
    return torch.nested.nested_tensor(rows, **({"layout": torch.jagged, "requires_grad": True} | options))


def operands(device="cpu"):
    """As a model makes them: the features come from the values, and share their lengths."""
    a, b = (nested(lengths, 8, device) for lengths in LENGTHS)
    torch.manual_seed(0)
    f = torch.nn.Linear(8, 16).to(device)
    return f, a, b


def test_is_the_packed_operator(backend):
    f, a, b = operands(backend.device)
    options = {"scale": 0.5, "clamp": 1.0, "return_lse": True, "backend": backend.name}
    found = soft_align(f(a), f(b), a, b, **options)
    rows_a, rows_b = (t.values().detach().requires_grad_() for t in (a, b))
    offsets = (a.offsets().int(), b.offsets().int())
    expected = soft_align_packed(f(rows_a), f(rows_b), rows_a, rows_b, *offsets, 5, 6, **options)
    for one, other, like in zip(found, expected, (a, b, a, b), strict=True):
        assert one.is_nested
        assert torch.equal(one.offsets(), like.offsets())
        assert torch.equal(one.values(), other)
    upstream = [torch.randn_like(t) for t in expected[:2]]
    leaves = (a, b, f.weight), (rows_a, rows_b, f.weight)
    got = torch.autograd.grad([t.values() for t in found[:2]], leaves[0], upstream)
    want = torch.autograd.grad(expected[:2], leaves[1], upstream)
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one.values() if one.is_nested else one, other)


def test_each_pair_alone():
    f, a, b = operands()
    beta, alpha = soft_align(f(a), f(b), a, b)
    for pair in zip(beta.unbind(), alpha.unbind(), a.unbind(), b.unbind(), strict=True):
        one, other, x, y = (t.unsqueeze(0) for t in pair)
        expected = soft_align(f(x), f(y), x, y)
        torch.testing.assert_close((one, other), tuple(expected))


def test_lengths_made_apart():
    """Tensors that share no offsets but have the same lengths."""
    f_a, f_b = (nested(lengths, 16) for lengths in LENGTHS)
    a, b = (nested(lengths, 8) for lengths in LENGTHS)
    beta, _ = soft_align(f_a, f_b, a, b)
    assert torch.equal(beta.offsets(), f_a.offsets())


def test_longest_lengths_that_nobody_has_told():
    """Tensors of values and offsets alone: the longest sequence is looked for, and of no sequences there is none."""
    f, a, b = operands()
    untold = [torch.nested.nested_tensor_from_jagged(t.values(), t.offsets()) for t in (f(a), f(b), a, b)]
    assert untold[0]._maybe_max_seqlen is None
    found = soft_align(*untold, return_lse=True)
    for one, other in zip(found, soft_align(f(a), f(b), a, b, return_lse=True), strict=True):
        assert torch.equal(one.values(), other.values())
    none = torch.nested.nested_tensor_from_jagged(torch.zeros(0, 8), torch.tensor([0]))
    assert len(soft_align(none, none, none, none).beta) == 0


def test_nothing_but_empty_sequences():
    a, b = nested([0, 0], 8), nested([3, 0], 8)
    beta, alpha = soft_align(a, b, a, b)
    assert beta.values().shape == (0, 8)
    assert not alpha.values().any()


def holed(lengths, gaps, width=8):
    """Each sequence followed by rows that are nobody's."""
    steps = torch.tensor(lengths) + torch.tensor(gaps)
    offsets = torch.nn.functional.pad(steps.cumsum(0), (1, 0))
    rows = torch.randn(int(offsets[-1]), width)
    return torch.nested.nested_tensor_from_jagged(rows, offsets, lengths=torch.tensor(lengths))


def test_gaps_between_sequences_are_refused_until_they_are_closed():
    a, b = holed(LENGTHS[0], [1, 0, 2, 1]), holed(LENGTHS[1], [0, 2, 0, 0])
    close_a, close_b = a.contiguous(), b.contiguous()
    for operands, name in (
        ((a, close_b, close_a, close_b), "f_a"),
        ((close_a, b, close_a, close_b), "f_b"),
        ((close_a, close_b, a, close_b), "a"),
        ((close_a, close_b, close_a, b), "b"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} has gaps between its rows .* use {name}\.contiguous"):
            soft_align(*operands)
    beta, _ = soft_align(close_a, close_b, close_a, close_b)
    for found, x, y in zip(beta.unbind(), a.unbind(), b.unbind(), strict=True):
        x, y = x.unsqueeze(0), y.unsqueeze(0)
        torch.testing.assert_close(found, soft_align(x, y, x, y).beta[0])


def long(width):
    """2^31 rows in the memory of one."""
    rows = torch.zeros(1, width).expand(2**31, width)
    return torch.nested.nested_tensor_from_jagged(rows, torch.tensor([0, 2**30, 2**31]))


def wrong(case):
    f, a, b = operands()
    good = {"f_a": f(a), "f_b": f(b), "a": a, "b": b}
    if case in ("mask_a", "lengths_b", "bias"):
        return good | {case: torch.ones(2, dtype=torch.bool)}
    return (
        good
        | {
            "dense": {"b": torch.randn(4, 6, 8)},
            "dense features": {"f_a": torch.randn(4, 5, 16)},
            "other lengths": {"a": nested([5, 3, 0, 2], 8)},
            "other number": {"a": nested([3, 5], 8)},
            "other pairs": {"f_b": nested([4, 1], 16), "b": nested([4, 1], 8)},
            "strided": {
                "f_a": nested(LENGTHS[0], 16, layout=torch.strided),
                "a": nested(LENGTHS[0], 8, layout=torch.strided),
            },
            "too many": {name: long(t.size(-1)) for name, t in good.items()},
            "four dimensions": {"f_a": good["f_a"].unflatten(-1, (2, 8)), "a": a.unflatten(-1, (2, 4))},
        }[case]
    )


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("mask_a", ValueError, "take no mask_a"),
        ("lengths_b", ValueError, "take no lengths_b"),
        ("bias", ValueError, "take no bias"),
        ("dense", TypeError, "b must be a nested tensor"),
        ("dense features", TypeError, "f_b must be a dense"),
        ("other lengths", ValueError, "same lengths"),
        ("other number", ValueError, "as many sequences"),
        ("other pairs", ValueError, "as many sequences"),
        ("strided", TypeError, "torch.jagged"),
        ("four dimensions", ValueError, "ragged, width"),
        ("too many", ValueError, "2147483648 rows; a batch may have 2147483647: divide it"),
    ],
)
def test_refused(case, error, message):
    with pytest.raises(error, match=message):
        soft_align(**wrong(case))
