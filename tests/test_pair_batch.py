"""Packed batches, and the model on them against the masked padded model."""

import dataclasses
import pickle
import random
from itertools import pairwise

import pytest
import torch
from coalign.model.segments import segment_sum, sentence_of_token

from coalign import Attend, Compare, DecomposableAttention, PairBatch

VOCAB, EMBED, HIDDEN, PAD = 40, 6, 10, 1
ROUTES = (None, "reference")
IDS, LONG = torch.arange(3), torch.tensor([3])
PREMISES = [[5, 2, 7], [9], [], [3, 4, 5, 6, 7], [8, 8]]
HYPOTHESES = [[2], [6, 3, 9, 4], [7, 5], [], [3, 2]]


def batch():
    return PairBatch.from_lists(PREMISES, HYPOTHESES)


def model(dtype=torch.float32, backend=None):
    torch.manual_seed(0)
    return DecomposableAttention.from_sizes(VOCAB, EMBED, HIDDEN, dropout=0, padding_idx=PAD, backend=backend).to(dtype)


def scores_and_gradients(of, forward):
    of.zero_grad()
    scores = forward(of)
    weights = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).reshape(scores.shape)
    (scores * weights).sum().backward()
    return {"scores": scores.detach()} | {name: p.grad for name, p in of.named_parameters()}


def assert_close(found, expected, allowed):
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        assert truth.norm() > 0, name
        assert (found[name] - truth).norm() <= allowed * truth.norm(), name


def same(a, b):
    names = ("ids_a", "ids_b", "offsets_a", "offsets_b", "lengths_a", "lengths_b")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names) and (
        a.max_length_a,
        a.max_length_b,
    ) == (b.max_length_a, b.max_length_b)


def test_wrappers_make_it_anew_from_its_fields():
    """As torch's mixed precision for several devices does, with casts of tensors of floats."""
    batch = PairBatch.from_lists([[1, 2], [3]], [[4], [5, 6, 7]])
    again = dataclasses.replace(batch, **{own.name: getattr(batch, own.name) for own in dataclasses.fields(batch)})
    assert all(getattr(again, own.name) is getattr(batch, own.name) for own in dataclasses.fields(batch))
    with pytest.raises(ValueError, match="max_length_b must be 3 or more"):
        dataclasses.replace(batch, max_length_b=2)
    for wrong in (3.0, True):
        with pytest.raises(TypeError, match=f"max_length_b must be an int, not {type(wrong).__name__}"):
            dataclasses.replace(batch, max_length_b=wrong)
    assert dataclasses.replace(batch, max_length_b=8).max_length_b == 8


def test_ids_stay_whole_numbers():
    with pytest.raises(TypeError):
        batch().to(torch.float16)
    assert same(batch().to("cpu"), batch())


def test_a_batch_of_lists():
    found = batch()
    assert len(found) == 5
    assert found.ids_a.tolist() == [5, 2, 7, 9, 3, 4, 5, 6, 7, 8, 8]
    assert found.offsets_a.tolist() == [0, 3, 4, 4, 9, 11]
    assert found.offsets_a.dtype == torch.int32
    assert found.lengths_b.tolist() == [1, 4, 2, 0, 2]
    assert (found.max_length_a, found.max_length_b) == (5, 4)


@pytest.mark.parametrize("how", ["padding_idx", "lengths", "masks", "one of each"])
def test_a_batch_of_padded_tensors(how):
    premises, hypotheses = batch().padded(PAD)
    assert premises.shape == (5, 5)
    assert premises[0].tolist() == [5, 2, 7, PAD, PAD]
    lengths = torch.tensor([3, 1, 0, 5, 2]), torch.tensor([1, 4, 2, 0, 2])
    masks = premises != PAD, hypotheses != PAD
    given = {
        "padding_idx": {"padding_idx": PAD},
        "lengths": {"lengths": lengths},
        "masks": {"masks": masks},
        "one of each": {"masks": (masks[0], None), "lengths": (None, lengths[1])},
    }[how]
    assert same(PairBatch.from_padded(premises, hypotheses, **given), batch())


def test_padded_tensors_without_padding_and_masks_with_holes():
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    whole = PairBatch.from_padded(ids, ids[:, :0])
    assert whole.ids_a.tolist() == [4, 5, 6, 7, 8, 9]
    assert whole.offsets_b.tolist() == [0, 0, 0]
    mask = torch.tensor([[True, False, True], [False, False, True]])
    holes = PairBatch.from_padded(ids, ids, masks=(mask, None), padding_idx=9)
    assert holes.ids_a.tolist() == [4, 6, 9], "a side with a mask has no other padding"
    assert holes.lengths_a.tolist() == [2, 1]
    assert holes.ids_b.tolist() == [4, 5, 6, 7, 8]


def test_many_random_sentences_come_back():
    draw = random.Random(0)
    lists = [[[draw.randrange(2, 99) for _ in range(draw.randrange(9))] for _ in range(50)] for _ in range(2)]
    packed = PairBatch.from_lists(*lists)
    for padded, sentences in zip(packed.padded(PAD), lists, strict=True):
        assert [[i for i in row if i != PAD] for row in padded.tolist()] == sentences
    assert same(PairBatch.from_padded(*packed.padded(PAD), padding_idx=PAD), packed)


def test_to_another_dtype_of_ids_and_no_pairs():
    nothing = PairBatch.from_lists([], [])
    assert len(nothing) == 0
    assert model()(nothing).shape == (0, 3)
    found = batch()
    small = PairBatch(found.ids_a.int(), found.ids_b.int(), found.offsets_a, found.offsets_b)
    assert same(small.to("cpu"), small)
    torch.testing.assert_close(model()(small), model()(found), rtol=0, atol=0)


def test_another_default_device():
    lists = [[2, 3, 4], [5]], [[6], [7, 8]]
    expected = PairBatch.from_lists(*lists)
    with torch.device("meta"):
        found = PairBatch.from_lists(*lists)
        padded = PairBatch.from_padded(*expected.padded(1), lengths=(expected.lengths_a, None), padding_idx=1)
        unmasked = PairBatch.from_padded(*expected.padded(1))
    for batch in (found, padded, unmasked):
        assert {t.device.type for t in (batch.ids_a, batch.offsets_a, batch.lengths_a)} == {"cpu"}
    assert torch.equal(padded.offsets_b, expected.offsets_b)


def test_copies():
    assert same(pickle.loads(pickle.dumps(batch())), batch())
    moved = batch().to("meta")
    assert moved.ids_a.device == moved.offsets_b.device == moved.device == torch.device("meta")
    assert moved.lengths_a.tolist() == [3, 1, 0, 5, 2]


@pytest.mark.gpu
def test_pinned_and_copied_in_the_background():
    pinned = batch().pin_memory()
    assert pinned.ids_a.is_pinned()
    assert pinned.offsets_b.is_pinned()
    assert same(pinned.to("cuda", non_blocking=True).to("cpu"), batch())


def raw(**changes):
    found = batch()
    names = ("ids_a", "ids_b", "offsets_a", "offsets_b")
    return PairBatch(**({name: getattr(found, name) for name in names} | changes))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PairBatch.from_lists([[1]], []), ValueError, "1 premises, but 0 hypotheses"),
        (lambda: PairBatch.from_lists([[1.5]], [[1]]), TypeError, "premises must be lists of integer"),
        (lambda: PairBatch.from_lists([[1]], [["a"]]), TypeError, "hypotheses must be lists of integer"),
        (lambda: PairBatch.from_padded([[1]], [[1]]), TypeError, "premises must be a tensor"),
        (lambda: PairBatch.from_padded(torch.ones(2, dtype=int), torch.ones(2, 1, dtype=int)), ValueError,
         r"premises must be \(batch, length\)"),
        (lambda: PairBatch.from_padded(*batch().padded(1), lengths=(torch.tensor([9] * 5), None)), ValueError,
         "lengths_a must lie between 0 and 5"),
        (lambda: PairBatch.from_padded(*batch().padded(1), masks=(None, torch.ones(5, 2, dtype=bool))), ValueError,
         r"mask_b must be \(5, 4\)"),
        (lambda: raw(ids_a=[1]), TypeError, "ids_a must be a tensor"),
        (lambda: raw(ids_b=batch().ids_b.float()), TypeError, "ids_b must be int32 or int64"),
        (lambda: raw(ids_b=batch().ids_b[None]), ValueError, "ids_b must have one dimension"),
        (lambda: raw(ids_b=batch().ids_b[1:]), ValueError, "offsets_b must start at 0, never fall, and end at 8"),
        (lambda: raw(offsets_a=batch().offsets_a.long()), TypeError, "offsets_a must be int32"),
        (lambda: raw(offsets_a=batch().offsets_a[:0]), ValueError, r"offsets_a must be \(pairs \+ 1,\)"),
        (lambda: raw(offsets_a=torch.IntTensor([0, 3, 2, 9, 9, 11])), ValueError, "a smallest step of -1"),
        (lambda: raw(offsets_a=torch.IntTensor([0, 11])), ValueError, "same number of pairs"),
        (lambda: raw(lengths_a=batch().lengths_b), ValueError, "offsets_a must start at 0"),
        (lambda: raw(lengths_a=batch().lengths_a.flip(0)), ValueError, "must be the differences of offsets_a"),
        (lambda: PairBatch.from_padded(IDS[None], IDS[None], lengths=([1], None)), TypeError, "must be a tensor"),
        (lambda: PairBatch.from_lengths(IDS, IDS, [3], [3]), TypeError, "lengths_a must be a tensor, not list"),
        (lambda: PairBatch.from_lengths(IDS, IDS, LONG, LONG), TypeError, "lengths_a must be int32, not torch.int64"),
        (lambda: raw(lengths_a=[1]), TypeError, "lengths_a must be an int32 tensor on the CPU"),
        (lambda: model()(batch(), lengths=(None, None)), ValueError, "a PairBatch knows its lengths"),
        (lambda: model()(PairBatch.from_lists([[VOCAB]], [[1]])), IndexError, "premises has token id 40"),
        (lambda: model()(PairBatch.from_lists([[1]], [[-1]])), IndexError, "hypotheses has token id -1"),
    ],
)  # fmt: skip
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("padded_route", ROUTES)
def test_packed_is_padded_and_masked(dtype, allowed, route, padded_route):
    expected = scores_and_gradients(model(dtype, padded_route), lambda m: m(batch().padded(PAD)))
    assert_close(scores_and_gradients(model(dtype, route), lambda m: m(batch())), expected, allowed)


@pytest.mark.parametrize("route", ROUTES)
def test_projected_words(route):
    """As if the embedding held the projected vectors; packed, padded, and padded with NaN."""
    torch.manual_seed(0)
    projected = DecomposableAttention.from_sizes(
        VOCAB, EMBED, HIDDEN, projection_size=8, dropout=0, padding_idx=PAD, backend=route
    )
    direct = DecomposableAttention.from_sizes(VOCAB, 8, HIDDEN, dropout=0, padding_idx=PAD)
    state = {name: p for name, p in projected.state_dict().items() if name != "projection.weight"}
    direct.load_state_dict(state | {"embedding.weight": projected.embedding.weight @ projected.projection.weight.T})
    expected = scores_and_gradients(direct, lambda m: m(batch()))
    towards_words = expected.pop("embedding.weight")
    expected["embedding.weight"] = towards_words @ projected.projection.weight.detach()
    expected["projection.weight"] = towards_words.T @ projected.embedding.weight.detach()
    assert_close(scores_and_gradients(projected, lambda m: m(batch())), expected, 1e-5)
    with torch.no_grad():
        projected.embedding.weight[PAD] = torch.nan
    assert_close(scores_and_gradients(projected, lambda m: m(batch().padded(PAD))), expected, 1e-5)


def test_packed_runs_no_padding():
    """Only tokens pass the networks, both sides' at once: 11 and 9, not 5 x 5 and 5 x 4."""
    m, rows = model(), []
    for network in (m.attend.f, m.compare.g):
        network.register_forward_hook(lambda _m, inputs, _o: rows.append(tuple(inputs[0].shape[:-1])))
    m(batch())
    assert rows == [(20,)] * 2


@pytest.mark.parametrize("side", "ab")
def test_offsets_that_end_early_do_not_mix_the_sides(side):
    packed = batch()
    A, B = (torch.randn(len(ids), EMBED) for ids in (packed.ids_a, packed.ids_b))
    offsets = {f"offsets_{s}": getattr(packed, f"offsets_{s}").clone() for s in "ab"}
    offsets[f"offsets_{side}"][-1] -= 1
    with pytest.raises(ValueError, match=rf"offsets_{side} must start at 0, never fall, and end at"):
        Compare(2 * EMBED, HIDDEN)(A, B, A, B, **offsets)


def test_compare_refuses_what_does_not_belong_together():
    compare, A, B = Compare(2 * EMBED, HIDDEN), torch.randn(2, 3, EMBED), torch.randn(3, 4, EMBED)
    with pytest.raises(ValueError, match="A and B must have as many sentences; they have 2 and 3"):
        compare(A, B, A, B)
    with pytest.raises(ValueError, match="beta must have a row for each of A's: they are"):
        compare(A, B[:2], A[:, :2], B[:2])
    with pytest.raises(ValueError, match=r"alpha must be \(batch, length, width\), not \(4, "):
        compare(A, B[:2], A, B[0])
    with pytest.raises(ValueError, match=r"A must be \(batch, length, width\), not \(3, "):
        compare(A[0], B[:2], A, B[:2])
    with pytest.raises(TypeError, match="B must be a tensor, not NoneType"):
        compare(A, None, A, B[:2])
    one, two = torch.tensor([0, 3], dtype=torch.int32), torch.tensor([0, 1, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match="the same number of pairs; they have 2 and 3 entries"):
        compare(A[0], B[0], A[0], B[0], offsets_a=one, offsets_b=two)


def test_the_same_bits_again():
    first, second = (scores_and_gradients(model(), lambda m: m(batch())) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("route", ROUTES)
def test_parts_alone_on_packed_sentences(route):
    packed = batch()
    A, B = (torch.randn(len(ids), EMBED) for ids in (packed.ids_a, packed.ids_b))
    offsets = {"offsets_a": packed.offsets_a, "offsets_b": packed.offsets_b}
    attend, compare = Attend(EMBED, HIDDEN, dropout=0, backend=route), Compare(2 * EMBED, HIDDEN, dropout=0)
    beta, alpha = attend(A, B, **offsets, max_length_a=5, max_length_b=4)
    V_A, V_B = compare(A, B, beta, alpha, **offsets)
    for p in range(len(packed)):
        i, j = slice(*packed.offsets_a[p : p + 2].tolist()), slice(*packed.offsets_b[p : p + 2].tolist())
        one_beta, one_alpha = attend(A[None, i], B[None, j])
        one_V_A, one_V_B = compare(A[None, i], B[None, j], one_beta, one_alpha)
        for found, expected in ((beta[i], one_beta), (alpha[j], one_alpha), (V_A[p], one_V_A), (V_B[p], one_V_B)):
            torch.testing.assert_close(found, expected[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"offsets_b": None}, "both sides or for neither"),
        ({"max_length_a": None}, "need max_length_a and max_length_b"),
        ({"lengths_a": torch.tensor([1])}, "have no padding"),
        ({"lengths_b": torch.tensor([1])}, "have no padding"),
        ({"mask_a": torch.ones(1, 1).bool()}, "have no padding"),
        ({"mask_b": torch.ones(1, 1).bool()}, "have no padding"),
        ({"max_length_b": 1}, "max_length_b is 1, but the longest pair has 4 rows"),
    ],
)
def test_bad_packed_arguments_of_attend(given, message):
    packed = batch()
    A, B = torch.randn(11, EMBED), torch.randn(9, EMBED)
    whole = {"offsets_a": packed.offsets_a, "offsets_b": packed.offsets_b, "max_length_a": 5, "max_length_b": 4}
    with pytest.raises(ValueError, match=message):
        Attend(EMBED, HIDDEN)(A, B, **(whole | given))


@pytest.mark.parametrize("route", ROUTES)
def test_alignment_of_a_packed_batch(route):
    m = model(backend=route)
    for found, expected in zip(m.alignment(batch()), m.alignment(batch().padded(PAD)), strict=True):
        torch.testing.assert_close(found, expected)


def test_compiled_whole_with_batches_of_other_sizes():
    m = model()
    compiled = torch.compile(m, fullgraph=True)
    for pairs in (5, 3, 4):
        some = PairBatch.from_lists(PREMISES[:pairs], HYPOTHESES[:pairs])
        expected = scores_and_gradients(m, lambda m, some=some: m(some))
        assert_close(scores_and_gradients(m, lambda _, some=some: compiled(some)), expected, 1e-5)


def test_autocast_and_bfloat16_parameters():
    expected = model()(batch())
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = model()(batch())
    for scores in (under_autocast, model(torch.bfloat16)(batch())):
        assert scores.dtype == torch.bfloat16
        assert (scores.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_segment_sums(dtype):
    x = torch.randn(300, 4, dtype=dtype, requires_grad=True)
    offsets = torch.tensor([0, 0, 1, 270, 270, 300, 300], dtype=torch.int32)
    parts = [x[i:j].double().sum(0) for i, j in pairwise(offsets)]
    found = segment_sum(x, offsets)
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.stack(parts).to(dtype))
    weights = torch.randn(6, 4, dtype=dtype)
    (gradient,) = torch.autograd.grad(found, x, weights)
    assert torch.equal(gradient, weights[[1, *[2] * 269, *[4] * 30]])
    assert sentence_of_token(offsets, 300).bincount(minlength=6).tolist() == [0, 1, 269, 0, 30, 0]


def test_traced_segment_sums():
    x, offsets = torch.randn(7, 3, requires_grad=True), torch.tensor([0, 2, 2, 7], dtype=torch.int32)
    traced = torch.jit.trace(segment_sum, (x, offsets))
    for given in ((x, offsets), (torch.randn(4, 3, requires_grad=True), offsets[:2] * 2)):
        found, expected = traced(*given), segment_sum(*given)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(y.sin().sum(), given[0])[0] for y in (found, expected)]
        torch.testing.assert_close(*gradients)


def test_segment_sums_have_two_derivatives():
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda x: segment_sum(x, offsets), x)
    assert torch.autograd.gradgradcheck(lambda x: segment_sum(x, offsets) ** 2, x)
