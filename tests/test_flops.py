"""What torch's counter says of the operator's work: as many products as plain PyTorch has, and those of the model."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import coalign
from coalign import DecomposableAttention, PairBatch


def counted(call):
    with FlopCounterMode(display=False, custom_mapping=coalign.flop_formulas()) as counter:
        call()
    return counter.get_total_flops()


def operands(shape=(3,), m=9, n=5, h=16, d_a=8, d_b=4, **options):
    return [torch.randn(*shape, *rows, **options) for rows in ((m, h), (n, h), (m, d_a), (n, d_b))]


def plain(f_a, f_b, a, b):
    e = f_a @ f_b.mT
    return e.softmax(-1) @ b, e.softmax(-2).mT @ a


@pytest.mark.parametrize("shape", [(3,), (2, 4)])
def test_forward_as_plain_pytorch(shape):
    given = operands(shape)
    assert counted(lambda: coalign.soft_align(*given)) == counted(lambda: plain(*given)) > 0


def test_backward_makes_the_scores_again():
    given = operands(requires_grad=True)

    def both(align):
        torch.autograd.backward(align(*given), [torch.ones(3, 9, 4), torch.ones(3, 5, 8)])

    scores = 2 * 3 * 9 * 5 * 16
    assert counted(lambda: both(coalign.soft_align)) == counted(lambda: both(plain)) + scores


@pytest.mark.parametrize("given", ["lengths", "mask"])
def test_padding_is_counted_as_it_is_by_attention(given):
    lengths = torch.tensor([4, 9, 1])
    options = {"lengths_a": lengths} if given == "lengths" else {"mask_a": torch.arange(9) < lengths[:, None]}
    assert counted(lambda: coalign.soft_align(*operands(), **options)) == counted(lambda: plain(*operands()))


def test_packed_pairs_are_counted_without_padding():
    lengths_a, lengths_b = (4, 9, 0), (5, 2, 3)
    flat = operands((), m=13, n=10)
    offsets = [torch.tensor([0, *lengths]).cumsum(0).int() for lengths in (lengths_a, lengths_b)]
    found = counted(lambda: coalign.soft_align_packed(*flat, *offsets, 9, 5))
    each = [operands((), m=m, n=n) for m, n in zip(lengths_a, lengths_b, strict=True)]
    assert found == counted(lambda: [plain(*given) for given in each])


def test_shapes_alone_are_enough():
    """On a meta device nobody knows how long packed pairs are: as long as they may be."""
    assert counted(lambda: coalign.soft_align(*operands(device="meta"))) == counted(lambda: plain(*operands()))
    flat = operands((), m=13, n=10, device="meta")
    offsets = [torch.zeros(4, dtype=torch.int32, device="meta")] * 2
    found = counted(lambda: coalign.soft_align_packed(*flat, *offsets, 9, 5))
    assert found == counted(lambda: plain(*operands()))


def test_the_model_is_counted_whole():
    """Fused or not, and packed: as much as its tokens alone need."""
    torch.manual_seed(0)
    model = DecomposableAttention.from_sizes(60, 12, 20).eval()
    ids = torch.randint(2, 60, (4, 7)), torch.randint(2, 60, (4, 5))
    with torch.no_grad():
        fused = counted(lambda: model(ids))
        packed = counted(lambda: model(PairBatch.from_lists(*(t.tolist() for t in ids))))
        model.backend = "reference"
        assert fused == packed == counted(lambda: model(ids)) > 0
