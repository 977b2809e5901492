"""The tests' own instruments: wrong results must fail, unwritten memory must show, the oracle must be right."""

from __future__ import annotations

import math

import pytest
import torch

from coalign.testing import BUDGET, Case, allowed, assert_accurate, error, pair_by_pair, run

SQUARE = Case("square", 7, 7, d_a=6, d_b=6, batch=(3,), bias="full")
RAGGED = SQUARE.but(tokens_a=(7, 2, 4), tokens_b=(3, 7, 1), extent_a="lengths", extent_b="mask")
NAMES = ("beta", "alpha", "lse_a", "lse_b", "grad_f_a", "grad_f_b", "grad_a", "grad_b", "grad_bias")

ROWS_OF_A = ("beta", "lse_a", "grad_f_a", "grad_a")

MUTATIONS = {
    "zeros": torch.zeros_like,
    "tiny": lambda t: t * 1e-3,
    "negated": torch.neg,
    "shuffled pairs": lambda t: t.roll(1, 0),
    "shuffled rows": lambda t: t.roll(1, 1),
    "5 % too big": lambda t: t * 1.05,
    "one element off": lambda t: t.clone().index_put_((torch.tensor(0),) * t.ndim, t.new_tensor(9.0)),
    "a NaN": lambda t: t.clone().index_put_((torch.tensor(0),) * t.ndim, t.new_tensor(torch.nan)),
    "another shape": lambda t: t[..., None],
}


@pytest.mark.parametrize("dtype", BUDGET, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mutate", MUTATIONS.values(), ids=MUTATIONS)
def test_wrong_results_fail(mutate, name, dtype):
    operands = SQUARE.but(dtype=dtype).operands()
    found = run(operands, "reference")
    assert_accurate(found, operands)
    found[name] = mutate(found[name])
    with pytest.raises(AssertionError, match=name):
        assert_accurate(found, operands)


@pytest.mark.parametrize(
    "pair", [("beta", "alpha"), ("lse_a", "lse_b"), ("grad_f_a", "grad_f_b"), ("grad_a", "grad_b")]
)
def test_swapped_results_fail(pair):
    operands = SQUARE.operands()
    found = run(operands, "reference")
    found[pair[0]], found[pair[1]] = found[pair[1]], found[pair[0]]
    with pytest.raises(AssertionError, match=", ".join(pair)):
        assert_accurate(found, operands)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "grad_bias"])
def test_traces_in_padding_fail(name):
    """Too small a number for the relative error to see, or to matter, must not be there all the same."""
    operands = RAGGED.operands()
    found = run(operands, "reference")
    padding = operands.padding("a" if name in ROWS_OF_A else "b")
    found[name][padding] = 1e-30
    with pytest.raises(AssertionError, match=name):
        assert_accurate(found, operands)


def test_error_is_relative():
    truth = torch.full((10,), 1e-20, dtype=torch.float64)
    assert error(truth.float(), truth) < 1e-6
    assert error(torch.zeros(10), truth) == 1.0
    assert error(truth.float(), torch.zeros(10, dtype=torch.float64)) == math.inf
    assert error(torch.zeros(10), torch.zeros(10, dtype=torch.float64)) == 0.0
    assert error(torch.zeros(0), torch.zeros(0, dtype=torch.float64)) == 0.0


def test_infinities_must_match():
    truth = torch.tensor([1.0, -torch.inf], dtype=torch.float64)
    assert error(torch.tensor([1.0, -torch.inf]), truth) == 0.0
    for wrong in (torch.inf, -1e30, torch.nan):
        assert error(torch.tensor([1.0, wrong]), truth) == math.inf


@pytest.mark.parametrize("dtype", BUDGET, ids=str)
def test_bounds_are_within_the_budget(dtype):
    operands = RAGGED.but(dtype=dtype).operands()
    bounds = allowed(operands, pair_by_pair(operands))
    assert set(bounds) == set(NAMES)
    assert all(0 < bound <= BUDGET[dtype] for bound in bounds.values())


def test_oracle_by_hand():
    """One token against two, e = [[0, log 3]]."""
    operands = Case("by hand", 1, 2, h=1, d_a=1, d_b=1, batch=(1,)).operands()
    operands.f_a.fill_(1.0)
    operands.f_b.copy_(torch.tensor([[[0.0], [math.log(3)]]]))
    operands.a.fill_(5.0)
    operands.b.copy_(torch.tensor([[[4.0], [8.0]]]))
    found = pair_by_pair(operands)
    torch.testing.assert_close(found["beta"], torch.tensor([[[4 / 4 + 8 * 3 / 4]]], dtype=torch.float64))
    torch.testing.assert_close(found["alpha"], torch.tensor([[[5.0], [5.0]]], dtype=torch.float64))
    torch.testing.assert_close(found["lse_a"], torch.tensor([[math.log(4)]], dtype=torch.float64))
    torch.testing.assert_close(found["lse_b"], torch.tensor([[0.0, math.log(3)]], dtype=torch.float64))


def test_operands_hold_bad_numbers_in_padding():
    operands = RAGGED.operands()
    for t in (operands.f_a, operands.a, *operands.upstream[::2]):
        assert not t[operands.padding("a")].isfinite().all()
        assert t[~operands.padding("a")].isfinite().all()


def test_operands_are_seeded():
    one, same, other = RAGGED.operands(), RAGGED.operands(), RAGGED.but(seed=1).operands()
    assert torch.equal(one.f_a.nan_to_num(0), same.f_a.nan_to_num(0))
    assert not torch.equal(one.f_a.nan_to_num(0), other.f_a.nan_to_num(0))


def test_strides_are_what_they_say():
    def strides(kind, **changes):
        return SQUARE.but(bias="none", strides=kind, **changes).operands().f_a

    assert strides("sliced").stride(-2) > strides("sliced").shape[-1]
    assert strides("columns").stride(-1) != 1
    assert strides("expanded").stride(0) == 0
    heads = strides("heads", batch=(2, 3))
    assert heads.stride(1) < heads.stride(2)


@pytest.mark.parametrize(
    "changes",
    [{"tokens_a": (8, 1, 1), "extent_a": "lengths"}, {"tokens_a": (1, 1), "extent_a": "mask"}, {"tokens_a": (1, 1, 1)}],
    ids=["more tokens than rows", "too few pairs", "not full"],
)
def test_cases_that_make_no_sense(changes):
    with pytest.raises(ValueError, match="can't have"):
        SQUARE.but(**changes).operands()


@pytest.mark.usefixtures("poisoned_memory")
def test_memory_is_poisoned():
    like = torch.zeros(4)
    for fresh in (
        torch.empty(4),
        like.new_empty(4),
        torch.empty_like(like),
        torch.empty_strided((4,), (1,)),
        like.new_empty(4, dtype=torch.bfloat16),
    ):
        assert fresh.isnan().all()


@pytest.mark.usefixtures("poisoned_memory")
def test_an_unwritten_element_fails(monkeypatch):
    """A backend that leaves one row of one output unwritten is found out, even where that row is padding."""
    from coalign.kernels import reference

    forward = reference.forward

    def careless(a, b, bias, scale):
        found = forward(a, b, bias, scale)
        beta = torch.empty_like(found.beta)
        beta[:, :-1] = found.beta[:, :-1]
        return found._replace(beta=beta)

    monkeypatch.setattr(reference, "forward", careless)
    operands = Case("ragged", 5, 4, tokens_a=(3, 2), extent_a="lengths").operands()
    with pytest.raises(AssertionError, match="beta"):
        assert_accurate(run(operands, "reference"), operands)
