"""The short way of a call without options: the numbers of the long way, and never taken where anything differs."""

import pytest
import torch
from coalign.kernels import dispatch, quick
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from coalign import explain, soft_align, soft_align_packed

SHAPES = ((2, 9, 12), (2, 7, 12), (2, 9, 5), (2, 7, 6))


@pytest.fixture
def operands(monkeypatch):
    """Operands of which one call has been served, so that the next one may come the short way."""
    monkeypatch.delenv("COALIGN_BACKEND", raising=False)
    dispatch.remembered.clear()
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in SHAPES]
    if "  native     serves" not in explain(*made):
        pytest.skip("the native backend does not serve calls without a name here")
    soft_align(*made)
    assert dispatch.remembered
    return made


def test_the_second_call_gives_the_bits_of_the_first(operands):
    long = soft_align(*operands, return_lse=True)[:2]
    short = quick.serve(*operands)
    assert short is not None
    assert all(torch.equal(s, found) for s, found in zip(short, long, strict=True))


def test_the_second_call_comes_the_short_way(operands, monkeypatch):
    padded(operands), packed(operands)
    monkeypatch.setattr(dispatch, "choose", None)  # which the long way asks
    soft_align(*operands), padded(operands), packed(operands)


def test_checkpointing_where_only_the_recomputation_comes_the_short_way(operands):
    lengths = (torch.tensor([9, 4]), torch.tensor([2, 7]))
    offsets = [torch.tensor(t, dtype=torch.int32) for t in ((0, 9, 18), (0, 7, 14))]
    calls = {
        "padded": lambda *x: tuple(soft_align(*x, lengths_a=lengths[0], lengths_b=lengths[1])[:2]),
        "one side's": lambda *x: tuple(soft_align(*x, lengths_b=lengths[1])[:2]),
        "packed": lambda *x: tuple(soft_align_packed(*(t.flatten(0, 1) for t in x), *offsets, 9, 7)[:2]),
    }
    for name, call in calls.items():
        found = []
        for wrapped in (lambda *x, call=call: checkpoint(call, *x, use_reentrant=False), call):
            dispatch.remembered.clear()
            leaves = [t.clone().requires_grad_() for t in operands]
            outputs = wrapped(*leaves)
            found.append(torch.autograd.grad([o.sin().sum() for o in outputs], leaves))
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True)), name


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


LENGTHS = (torch.tensor([9, 4]), torch.tensor([3, 7], dtype=torch.int32))
OFFSETS = (torch.tensor([0, 9, 13, 18], dtype=torch.int32), torch.tensor([0, 7, 7, 14], dtype=torch.int32))


def padded(operands, lengths=LENGTHS, **options):
    return soft_align(*operands, lengths_a=lengths[0], lengths_b=lengths[1], **options)


def packed(operands, offsets=OFFSETS, most=(9, 7), **options):
    return soft_align_packed(*[t.flatten(0, 1) for t in operands], *offsets, *most, **options)


def quick_padded(operands, lengths=LENGTHS):
    return quick.serve(*operands, *lengths)


def quick_packed(operands, offsets=OFFSETS, most=(9, 7)):
    return quick.serve_packed(*[t.flatten(0, 1) for t in operands], *offsets, *most)


@pytest.mark.parametrize(("long", "short"), [(padded, quick_padded), (packed, quick_packed)])
def test_lengths_and_offsets(operands, long, short):
    """Outputs, gradients of one output and of both, and a second derivative: the bits of the long way."""
    assert short(operands) is None, "no such call has been served yet"
    long(operands)
    for found, truth in zip(short(operands), long(operands, return_lse=True)[:2], strict=True):
        assert torch.equal(found, truth)
    for wanted in ((0, 1), (0,), (1,)):
        grads = []
        for way in (short, lambda x: long(x, return_lse=True)):
            leaves = [t.clone().requires_grad_() for t in operands]
            outputs = way(leaves)
            grads.append(torch.autograd.grad([outputs[k].sin().sum() for k in wanted], leaves))
        assert all(torch.equal(s, g) for s, g in zip(*grads, strict=True))
    leaves = [t.double().requires_grad_() for t in operands]
    long([t.detach() for t in leaves])
    assert torch.autograd.gradgradcheck(lambda *x: short(x), leaves)


def test_values_that_do_not_fit_are_named_by_the_long_way(operands):
    padded(operands), packed(operands)
    needing = [t.clone().requires_grad_() for t in operands]
    for given in (operands, needing):
        too_long = LENGTHS[0] + 1, LENGTHS[1]
        assert quick_padded(given, too_long) is None
        with pytest.raises(ValueError, match="lengths_a must lie between 0 and 9"):
            padded(given, too_long)
        falling = OFFSETS[0], OFFSETS[1].flip(0)
        assert quick_packed(given, falling) is None
        with pytest.raises(ValueError, match="offsets_b must start at 0"):
            packed(given, falling)
        assert quick_packed(given, most=(8, 7)) is None
        with pytest.raises(ValueError, match="max_length_a is 8"):
            packed(given, most=(8, 7))


def test_extents_of_another_kind_go_the_long_way(operands):
    padded(operands), packed(operands)
    for lengths in (
        (LENGTHS[0].float(), LENGTHS[1]),
        (LENGTHS[0][:1], LENGTHS[1]),
        (torch.tensor([9, 0, 4])[::2], LENGTHS[1]),
        (None, LENGTHS[1]),
        (list(LENGTHS[0]), LENGTHS[1]),
    ):
        assert quick_padded(operands, lengths) is None
    for offsets, most in (
        ((OFFSETS[0].long(), OFFSETS[1]), (9, 7)),
        ((None, OFFSETS[1]), (9, 7)),
        ((OFFSETS[0], None), (9, 7)),
        ((OFFSETS[0], OFFSETS[1][:3]), (9, 7)),
        ((OFFSETS[0][:0], OFFSETS[1][:0]), (9, 7)),
        (OFFSETS, (9.0, 7)),
        (OFFSETS, (9, -1)),
        (OFFSETS, (2**63, 7)),
    ):
        assert quick_packed(operands, offsets, most) is None
    with pytest.raises(ValueError, match="max_length_b must be below"):
        packed(operands, most=(9, 2**63))
    assert torch.equal(packed(operands, most=(9, 2**63 - 1)).beta, packed(operands).beta)
    with pytest.raises(TypeError, match="offsets_b must be a tensor, not NoneType"):
        packed(operands, (OFFSETS[0], None))
    f_a, f_b, a, b = (t.flatten(0, 1) for t in operands)
    assert quick.serve_packed(f_a, f_b, a[1:], b, *OFFSETS, 9, 7) is None
    assert quick.serve_packed(f_a, f_b[:, 1:], a, b, *OFFSETS, 9, 7) is None


def test_packed_calls_are_one_kind_however_many_rows(operands):
    packed(operands)
    fewer = OFFSETS[0][:2], OFFSETS[1][:2]
    f_a, f_b, a, b = (t[0] for t in operands)
    found = quick.serve_packed(f_a, f_b, a, b, *fewer, 9, 7)
    truth = soft_align(*[t[:1] for t in operands])
    assert all(torch.equal(s, t[0]) for s, t in zip(found, truth, strict=True))


@pytest.mark.parametrize("at", range(4))
def test_one_operand_alone_may_need_a_gradient(operands, at):
    found = []
    for align in (quick.serve, lambda *x: soft_align(*x, return_lse=True)):
        leaves = [t.clone().requires_grad_(k == at) for k, t in enumerate(operands)]
        outputs = align(*leaves)
        found.append(torch.autograd.grad(outputs[0].sin().sum() + outputs[1].cos().sum(), leaves[at]))
    assert torch.equal(found[0][0], found[1][0])


def test_heads_with_lengths_go_the_long_way(operands):
    heads = [t.expand(3, *t.shape) for t in operands]
    lengths = torch.tensor([[9, 4]] * 3), torch.tensor([[2, 7]] * 3)
    soft_align(*heads, lengths_a=lengths[0], lengths_b=lengths[1])
    assert quick.serve(*heads, *lengths) is None
    assert quick.serve(*heads, *(t[:, 0].contiguous() for t in lengths)) is None


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch):
    """Padded, with lengths and packed: the long way's bits, and nothing of the CPU's beside operands of a GPU."""
    monkeypatch.delenv("COALIGN_BACKEND", raising=False)
    dispatch.remembered.clear()
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(shape, generator=generator).cuda().requires_grad_() for shape in SHAPES]
    lengths, offsets = ([t.cuda() for t in kind] for kind in (LENGTHS, OFFSETS))
    calls = [
        (soft_align, quick.serve, ()),
        (padded, quick_padded, (lengths,)),
        (packed, quick_packed, (offsets,)),
    ]
    for long, short, extents in calls:
        found = []
        given = operands if long is soft_align else [operands]
        long(*given, *extents)
        if not dispatch.remembered:
            pytest.skip("Triton does not serve calls without a name here")
        for way in (short, lambda *x, long=long: long(*x, return_lse=True)[:2]):
            outputs = way(*given, *extents)
            found.append((*outputs, *torch.autograd.grad([o.sin().sum() for o in outputs], operands)))
        assert all(torch.equal(s, t) for s, t in zip(*found, strict=True))
    assert quick_padded(operands, LENGTHS) is None
    assert quick_packed(operands, OFFSETS) is None
    assert quick.serve(operands[0], *[t.cpu() for t in operands[1:]]) is None
