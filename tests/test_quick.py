"""The short way of a call without options: the numbers of the long way, and never taken where anything differs."""

import pytest
import torch
from coalign.kernels import dispatch, quick
from torch.utils._python_dispatch import TorchDispatchMode

from coalign import soft_align

SHAPES = ((2, 9, 12), (2, 7, 12), (2, 9, 5), (2, 7, 6))


@pytest.fixture
def operands(monkeypatch):
    """Operands of which one call has been served, so that the next one may come the short way."""
    monkeypatch.delenv("COALIGN_BACKEND", raising=False)
    dispatch.remembered.clear()
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in SHAPES]
    soft_align(*made)
    if not dispatch.remembered:
        pytest.skip("the native backend does not serve calls without a name here")
    return made


def test_the_second_call_gives_the_bits_of_the_first(operands):
    long = soft_align(*operands, return_lse=True)[:2]
    short = quick.serve(*operands)
    assert short is not None
    assert all(torch.equal(s, found) for s, found in zip(short, long, strict=True))


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_gradients_are_the_long_way_s(operands, wanted):
    found = []
    for align in (quick.serve, lambda *x: soft_align(*x, return_lse=True)[:2]):
        leaves = [t.clone().requires_grad_() for t in operands]
        outputs = [o for o, want in zip(align(*leaves), wanted, strict=True) if want]
        found.append(torch.autograd.grad([o.sin().sum() for o in outputs], leaves))
    assert all(torch.equal(s, g) for s, g in zip(*found, strict=True))


def test_strided_gradients_and_operands(operands):
    leaves = [t.mT.contiguous().mT.requires_grad_() for t in operands]
    assert not leaves[0].is_contiguous()
    beta, alpha = quick.serve(*leaves)
    arriving = [torch.randn_like(o.mT).mT for o in (beta, alpha)]
    found = torch.autograd.grad([beta, alpha], leaves, arriving)
    truth = torch.autograd.grad(soft_align(*leaves, backend="reference"), leaves, arriving)
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


def test_a_second_derivative_goes_the_long_way(operands):
    leaves = [t.double().requires_grad_() for t in operands]
    soft_align(*[t.detach() for t in leaves])
    assert quick.serve(*leaves) is not None
    assert torch.autograd.gradgradcheck(lambda *x: quick.serve(*x), leaves)


def test_what_the_environment_asks_for_counts(operands, monkeypatch):
    monkeypatch.setenv("COALIGN_BACKEND", "reference")
    assert quick.serve(*operands) is None
    monkeypatch.setenv("COALIGN_BACKEND", "no such")
    with pytest.raises(ValueError, match="no such"):
        soft_align(*operands)


def test_a_backend_that_is_added_counts(operands):
    class Own:
        name = "own"

        def unsupported(self, problem):
            return []

        def forward(self, a, b, bias, rule):
            return dispatch.backend("reference").forward(a, b, bias, rule)

    take_away = dispatch.register(Own(), before="native")
    try:
        assert quick.serve(*operands) is None
        soft_align(*operands)
        assert quick.serve(*operands) is None, "the added backend has no short way"
    finally:
        take_away()


def test_operands_that_differ_are_checked(operands):
    f_a, f_b, a, b = operands
    assert quick.serve(f_a, f_b, a, b.double()) is None
    with pytest.raises(TypeError, match="b must be torch"):
        soft_align(f_a, f_b, a, b.double())
    assert quick.serve(f_a, f_b, a, b.to("meta")) is None
    assert quick.serve(f_a, f_b, a, b.to_sparse()) is None
    assert quick.serve(f_a, f_b, a, torch.nn.Parameter(b)) is None
    assert quick.serve(f_a, f_b, a, b[:, :6]) is None


def test_autocast_modes_and_transforms_go_the_long_way(operands):
    with torch.autocast("cpu", torch.bfloat16):
        assert soft_align(*operands).beta.dtype == torch.bfloat16

    class Seen(TorchDispatchMode):
        names: list[str] = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Seen() as seen:
        soft_align(*operands)
    assert any("coalign.soft_align" in name for name in seen.names)
    batched = [t.expand(3, *t.shape) for t in operands]
    mapped = torch.vmap(soft_align)(*batched)
    torch.testing.assert_close(mapped.beta[1], soft_align(*operands).beta)


def test_only_so_many_kinds_of_calls_are_kept(operands, monkeypatch):
    monkeypatch.setattr(quick, "_MOST", 2)
    for n in range(1, 6):
        soft_align(*[t[:, :n] for t in operands])
    assert len(dispatch.remembered) <= 2
