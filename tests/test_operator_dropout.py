"""Dropout of the weights: what is dropped, how much of it, and when it is the same again. Values: test_operator.py."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from coalign import alignment_weights, soft_align


def kept(backend, share, pairs=3, m=40, n=50, seed=None):
    """Which of P's and Q's weights are kept: equal scores and unit vectors as values show every one of them."""
    device = backend.device
    f_a, f_b = torch.zeros(pairs, m, 1, device=device), torch.zeros(pairs, n, 1, device=device)
    a, b = (torch.eye(k, device=device).expand(pairs, k, k) for k in (m, n))
    found = soft_align(f_a, f_b, a, b, dropout=share, seed=seed, backend=backend.name)
    p, q = found.beta * n, found.alpha.mT * m
    for weights, p_dropped in ((p, share[0]), (q, share[1])):
        values = weights[weights != 0]
        torch.testing.assert_close(values, torch.full_like(values, 1 / (1 - p_dropped)), rtol=1e-5, atol=0)
    return (p != 0).cpu(), (q != 0).cpu()


def test_shares_and_independence(backend):
    """Of both matrices, every row, column and pair: as many as asked for, and none knows of another."""
    torch.manual_seed(0)
    share = (0.3, 0.6)
    drawn = [kept(backend, share) for _ in range(4)]
    for side, p in enumerate(share):
        masks = torch.stack([d[side] for d in drawn]).double()  # (draws, pairs, m, n)
        for dims in ((0, 1, 2, 3), (0, 1, 2), (0, 1, 3), (1, 2, 3), (0, 2, 3)):
            mean = masks.mean(dims)
            count = masks.numel() / mean.numel()
            assert ((mean - (1 - p)).abs() < 5 * (p * (1 - p) / count) ** 0.5).all()
    centred = torch.stack([torch.stack(d).double() - 1 + torch.tensor(share).view(2, 1, 1, 1) for d in drawn])
    flat = centred.flatten(0, 2).flatten(1)  # every draw, side and pair
    for one, other in itertools.combinations(flat, 2):
        assert abs(float(one @ other) / float(one.norm() * other.norm())) < 5 / one.numel() ** 0.5
    for dim in (-1, -2):
        shifted = centred.roll(1, dim)
        assert abs(float((centred * shifted).sum() / (centred**2).sum())) < 5 / centred.numel() ** 0.5


def test_the_generator_repeats_it(backend):
    share = (0.5, 0.5)
    torch.manual_seed(3)
    one, two = kept(backend, share), kept(backend, share)
    torch.manual_seed(3)
    again = kept(backend, share)
    for first, second, third in zip(one, two, again, strict=True):
        assert torch.equal(first, third)
        assert not torch.equal(first, second)


def test_a_pair_alone_and_padded_drop_the_same(backend):
    seed = torch.tensor(-5, device=backend.device)
    wide = kept(backend, (0.5, 0.4), pairs=2, m=60, n=70, seed=seed)
    narrow = kept(backend, (0.5, 0.4), pairs=1, m=20, n=30, seed=seed)
    for large, small in zip(wide, narrow, strict=True):
        assert torch.equal(large[:1, :20, :30], small)


def operands(device="cpu", **options):
    torch.manual_seed(0)
    sizes = ((2, 7, 8), (2, 5, 8), (2, 7, 6), (2, 5, 4))
    return [torch.randn(s, device=device).requires_grad_() for s in sizes]


def test_the_weights_are_those(backend):
    f_a, f_b, a, b = operands(backend.device)
    options = {"dropout": (0.3, 0.5), "seed": torch.tensor(7, device=backend.device), "clamp": 0.4, "scale": 0.8}
    found = soft_align(f_a, f_b, a, b, **options, backend=backend.name)
    p, q = alignment_weights(f_a, f_b, **options)
    torch.testing.assert_close(found.beta, p @ b)
    torch.testing.assert_close(found.alpha, q.mT @ a)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_drops_the_same(backend, reentrant):
    gradients = []
    for wrapped in (False, True):
        leaves = operands(backend.device)

        def call(*tensors):
            return soft_align(*tensors, dropout=0.4, backend=backend.name).beta

        torch.manual_seed(1)
        out = checkpoint(call, *leaves, use_reentrant=reentrant) if wrapped else call(*leaves)
        torch.manual_seed(2)  # what comes after the forward pass must not matter
        out.square().sum().backward()
        gradients.append([t.grad for t in leaves[:2]] + [leaves[3].grad])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_compiled(backend):
    leaves = operands(backend.device)
    seed = torch.tensor(11, device=backend.device)

    def call(*tensors, seed=None):
        return tuple(soft_align(*tensors, dropout=0.4, seed=seed, backend=backend.name))

    compiled = torch.compile(call, fullgraph=True)
    for one, other in zip(compiled(*leaves, seed=seed), call(*leaves, seed=seed), strict=True):
        assert torch.equal(one, other)
    drawn = [compiled(*leaves)[0] for _ in range(2)]
    assert not torch.equal(*drawn)
    grads = [torch.autograd.grad(c(*leaves, seed=seed)[0].sum(), leaves[3])[0] for c in (compiled, call)]
    torch.testing.assert_close(*grads)


def test_under_vmap():
    leaves = [t.detach() for t in operands()]

    def call(*tensors):
        return soft_align(*(t.unsqueeze(0) for t in tensors), dropout=0.4).beta[0]

    same = [t[:1].expand(2, *t.shape[1:]) for t in leaves]
    one, other = torch.func.vmap(call, randomness="same")(*same)
    assert torch.equal(one, other)
    one, other = torch.func.vmap(call, randomness="different")(*same)
    assert not torch.equal(one, other)
    with pytest.raises(RuntimeError, match="random"):
        torch.func.vmap(call)(*same)


def test_gradients_of_samples():
    """vmap of grad: what was dropped forward is what is dropped backward."""
    leaves = [t.detach() for t in operands()]
    seed = torch.tensor(5)

    def loss(*tensors):
        found = soft_align(*(t.unsqueeze(0) for t in tensors), dropout=0.5, seed=seed)
        return found.beta.square().sum() + found.alpha.square().sum()

    found = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2, 3)))(*leaves)
    for k in range(2):
        single = [t[k].clone().requires_grad_() for t in leaves]
        expected = torch.autograd.grad(loss(*single), single)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one[k], other, rtol=1e-4, atol=1e-4)


def test_a_clamp_beyond_all_scores_is_none(backend):
    """Scores have 32 bits, those of half precision too."""
    for dtype in (torch.float32, torch.bfloat16):
        given = [t.detach().to(dtype) for t in operands(backend.device)]
        for clamp in (1e39, 1e308, 10**400):
            found = soft_align(*given, clamp=clamp, backend=backend.name)
            for one, other in zip(found, soft_align(*given, backend=backend.name), strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["reference", "native"])
def test_float64_has_scores_beyond_float32(name):
    f_a, f_b = torch.tensor([[1e20]]).double(), torch.tensor([[1e20], [3e20]]).double()
    b = torch.tensor([[0.0], [1.0]]).double()
    options = {"clamp": 1e39, "return_lse": True, "backend": name}
    found = soft_align(f_a, f_b, f_a, b, **options)
    assert found.beta.item() == 0.5
    assert found.lse_b.tolist() == [1e39, 1e39]
    for clamp in (None, 10**400):
        assert soft_align(f_a, f_b, f_a, b, clamp=clamp, backend=name).beta.item() == 1.0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dropout": 1.5}, ValueError, "between 0 and 1"),
        ({"dropout": (0.1, -0.1)}, ValueError, "between 0 and 1"),
        ({"dropout": float("nan")}, ValueError, "between 0 and 1"),
        ({"dropout": (0.1,)}, TypeError, "dropout must be"),
        ({"dropout": "0.1"}, TypeError, "dropout must be"),
        ({"dropout": True}, TypeError, "dropout must be"),
        ({"dropout": 0.1, "seed": 3}, TypeError, "seed must be a tensor"),
        ({"dropout": 0.1, "seed": torch.tensor([3])}, TypeError, "int64"),
        ({"dropout": 0.1, "seed": torch.tensor(3.0)}, TypeError, "int64"),
        ({"clamp": 0.0}, ValueError, "above 0"),
        ({"clamp": -1.0}, ValueError, "above 0"),
        ({"clamp": float("nan")}, ValueError, "above 0"),
        ({"clamp": "1"}, TypeError, "clamp must be"),
    ],
)
def test_refused(options, error, message):
    with pytest.raises(error, match=message):
        soft_align(*operands(), **options)
