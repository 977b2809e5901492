"""Dropout on the CPU: torch's semantics and statistics, from a hash."""

import pytest
import torch
from coalign.kernels.native import mlp as native
from coalign.model.dropout import Dropout, HashedDropout, draw_seed
from torch import nn
from torch.utils.checkpoint import checkpoint


def kept(rows, width, p=0.2, seed=None):
    """Which of so many numbers one call keeps."""
    drawn = draw_seed() if seed is None else seed
    return HashedDropout.apply(torch.ones(rows, width), p, drawn, 0) != 0


@pytest.fixture(autouse=True)
def _seeded():
    assert native.available()  # and is loaded, whichever test is first
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_what_stays_is_scaled_and_the_rest_is_zero(dtype):
    x = torch.linspace(1, 2, 3000).reshape(3, 10, 100).to(dtype)
    y = Dropout(0.2)(x)
    stays = y != 0
    assert y.dtype == dtype
    assert 0.15 < 1 - stays.double().mean() < 0.25
    torch.testing.assert_close(y[stays], (x * 1.25)[stays])


def test_off():
    x = torch.randn(40, 50)
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros_like(x))
    assert torch.equal(HashedDropout.apply(x, 1.0, 7, 0), torch.zeros_like(x))
    assert Dropout(0.5)(torch.empty(0, 3)).shape == (0, 3)


def test_it_is_torchs_module():
    """What looks for nn.Dropout finds it; nothing of it is in a state dict."""
    made = Dropout(0.3)
    assert isinstance(made, nn.Dropout)
    assert not made.state_dict()
    with pytest.raises(ValueError, match="probability"):
        Dropout(1.5)


def test_seeds_have_63_bits():
    """As many as are drawn of fewer are soon the same."""
    drawn = [draw_seed() for _ in range(100)]
    assert min(drawn) >= 0
    assert 2**62 < max(drawn) < 2**63
    assert any(seed % 2**32 >= 2**31 for seed in drawn)
    assert any(seed % 2 for seed in drawn)


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.9])
def test_share_that_stays(p):
    """Of four million numbers, within five standard deviations; in every column and row too, in sum of squares."""
    rows, width = 20_000, 200
    stays = kept(rows, width, p).double()
    assert abs(stays.mean() - (1 - p)) < 5 * (p * (1 - p) / (rows * width)) ** 0.5
    for dim, count in ((0, rows), (1, width)):
        squares = ((stays.sum(dim) - count * (1 - p)) ** 2 / (count * p * (1 - p))).sum()
        freedom = rows * width // count
        assert abs(squares - freedom) < 5 * (2 * freedom) ** 0.5


def test_numbers_are_independent():
    """Of their neighbours near and far, of a power of two away, of the same place in later calls, of related seeds."""
    first = kept(10_000, 200, 0.5).double().reshape(-1) * 2 - 1

    def correlation(a, b):
        return abs((a * b).mean()) * len(a) ** 0.5  # in standard deviations

    for lag in (1, 2, 3, 7, 8, 16, 64, 100, 199, 200, 201, 1024, 65536):
        assert correlation(first[lag:], first[:-lag]) < 5
    for seed in (0, 1, 2, 2**32, 2**32 + 1, 2**62):
        one, other = (kept(10_000, 200, 0.5, s).double().reshape(-1) * 2 - 1 for s in (seed, seed + 1))
        assert correlation(one, other) < 5
        assert correlation(one[1:], other[:-1]) < 5
        layers = [HashedDropout.apply(torch.ones(2_000_000), 0.5, seed, k) - 1 for k in (0, 1, 2)]
        assert max(correlation(layers[i].double(), layers[j].double()) for i, j in ((0, 1), (0, 2), (1, 2))) < 5


def test_seeds():
    x = torch.ones(64, 64)
    one, two = Dropout(0.5)(x), Dropout(0.5)(x)
    torch.manual_seed(0)
    again = Dropout(0.5)(x)
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


def test_any_threads_any_strides():
    x = torch.randn(300, 500)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(HashedDropout.apply(x, 0.2, 5, 0))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(HashedDropout.apply(x.T.contiguous().T, 0.2, 5, 0), found[0])


def test_gradient_is_the_same_mask():
    x = torch.randn(30, 20, dtype=torch.float64, requires_grad=True)
    y = HashedDropout.apply(x, 0.4, 3, 0)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, HashedDropout.apply(torch.ones_like(x), 0.4, 3, 0))
    assert torch.autograd.gradcheck(lambda t: HashedDropout.apply(t, 0.4, 3, 0), x)
    assert torch.autograd.gradgradcheck(lambda t: HashedDropout.apply(t, 0.4, 3, 0), x)


def test_recomputed_activations_are_the_same():
    network = nn.Sequential(Dropout(0.5), nn.Linear(20, 20), Dropout(0.5))
    x = torch.randn(8, 20, requires_grad=True)
    torch.manual_seed(1)
    (expected,) = torch.autograd.grad(network(x).sum(), x)
    torch.manual_seed(1)
    (found,) = torch.autograd.grad(checkpoint(network, x, use_reentrant=False).sum(), x)
    assert torch.equal(found, expected)


def test_compiled():
    x = torch.ones(50, 50)
    y = torch.compile(Dropout(0.5), backend="aot_eager", fullgraph=True)(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
