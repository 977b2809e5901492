"""Inference without gradients: the frozen model's kernel on the batch's own words, unless someone looks inside."""

import pytest
import torch
from coalign.model import inference

from coalign import DecomposableAttention, PairBatch

PAD = 1


def model(embed=12, hidden=20, projection=None, dtype=torch.float32, **given):
    torch.manual_seed(0)
    made = DecomposableAttention.from_sizes(60, embed, hidden, projection_size=projection, padding_idx=PAD, **given)
    with torch.no_grad():
        made.embedding.weight.normal_()
        for p in made.aggregate.parameters():
            p.mul_(3)
    return made.to(dtype).eval()


def pairs(lengths_a, lengths_b):
    generator = torch.Generator().manual_seed(0)
    return PairBatch.from_lists(
        *(
            [torch.randint(2, 60, (n,), generator=generator).tolist() for n in lengths]
            for lengths in (lengths_a, lengths_b)
        )
    )


PAIRS = pairs((7, 3, 1, 5, 0, 12, 0, 64, 90), (2, 6, 1, 0, 4, 3, 0, 5, 71))


@pytest.fixture
def served(monkeypatch):
    """How often the batch's own table was used."""
    calls = []
    scores = inference.scores

    def noted(of, X):
        found = scores(of, X)
        if found is not None:
            calls.append(len(X))
        return found

    monkeypatch.setattr(inference, "scores", noted)
    return calls


def exact(of, X):
    of = of.double()
    before, of.backend = of.backend, "reference"
    with torch.no_grad():
        found = of(X)
    of.backend = before
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [{}, {"projection": 9}, {"embed": 100, "hidden": 200}, {"num_classes": 5}], ids=str)
def test_scores_are_the_models(served, sizes, dtype):
    of = model(**sizes)
    expected = exact(of, PAIRS)
    of.to(dtype)
    with torch.no_grad():
        of.backend = "reference"
        plain = (of(PAIRS) - expected).norm() / expected.norm()
        of.backend = None
        allowed = 1e-5 if dtype == torch.float32 else max(2 * plain, 1e-2)
        for X in (PAIRS, PAIRS.padded(PAD)):
            found = of(X)
            assert found.dtype == dtype
            assert (found - expected).norm() <= allowed * expected.norm()
    assert served == [9, 9]
    assert expected.std(0).min() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "sizes", [{"projection": 9}, {"embed": 13, "hidden": 21}, {"embed": 100, "hidden": 200}], ids=str
)
def test_inference_gives_a_pair_the_same_bits_alone_and_in_a_batch(served, sizes, dtype):
    """Alone it passes the weights as they lie, in a batch of some size packed ones."""
    of = model(**sizes, dtype=dtype)
    many = pairs([n % 23 for n in range(150)], [n % 17 for n in range(150)])
    before = torch.get_num_threads()
    with torch.no_grad():
        expected = of(many)
        try:
            torch.set_num_threads(1)
            assert torch.equal(of(many), expected)
        finally:
            torch.set_num_threads(before)
        for i in (0, 1, 22, 116, 149):
            ids = (t[o[i] : o[i + 1]] for t, o in ((many.ids_a, many.offsets_a), (many.ids_b, many.offsets_b)))
            alone = PairBatch.from_lists(*([t.tolist()] for t in ids))
            assert torch.equal(of(alone), expected[i : i + 1])
    assert served == [150, 150, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_padding_that_nothing_masks_is_attended_to_and_served(served, dtype):
    """As in d2l's own model, whose sentences are padded to 50 words; here a sentence's padding is one word of it."""
    torch.manual_seed(0)
    of = DecomposableAttention.from_sizes(60, 12, 20).to(dtype).eval()
    with torch.no_grad():
        of.embedding.weight.normal_()
    X = tuple(torch.nn.functional.pad(ids, (0, 100 - ids.shape[1]), value=PAD) for ids in PAIRS.padded(PAD))
    with torch.no_grad():
        found = of(X)
        of.backend = "reference"
        plain = of(X)
    of.backend = None
    assert served == [9]
    expected = exact(of, X)
    allowed = 1e-5 * expected.norm() if dtype == torch.float32 else 2 * (plain - expected).norm()
    assert (found - expected).norm() <= allowed
    assert expected.std(0).min() > 0.01
    of.to(dtype).train()
    with torch.no_grad():
        of(X)
    assert of.eval()(X).requires_grad
    assert served == [9]


def test_inference_keeps_what_overflows_to_its_own_number():
    """A hidden number that is infinite, and closed by its ReLU, spoils neither its neighbours nor other sums."""
    of = model(embed=12, hidden=15)
    with torch.no_grad():
        of.compare.g[4].weight.abs_().neg_()
        of.compare.g[1].weight[:, 12:].zero_()
        of.attend.f[1].weight.zero_()
        of.compare.g[1].weight[0, :12] = 1e20
        of.embedding.weight[7] = 1e20
        one = PairBatch.from_lists([[7]], [[3]])
        alone = of(one)
        crowd = PairBatch.from_lists([[7], *([2 + i % 50] for i in range(199))], [[3]] * 200)
        assert alone.isfinite().all()
        assert torch.equal(of(crowd)[:1], alone)
        frozen = of.freeze()
        assert torch.equal(frozen(crowd)[:1], frozen(one))
        torch.testing.assert_close(frozen(one), alone)
        of.backend = "reference"
        torch.testing.assert_close(of(crowd)[:1], alone)


def test_inference_reads_every_kind_of_ids():
    of = model()
    a, b = ([[3, 59, 3], [], [7]], [[4], [5, 5], [58, 3]])
    batch = PairBatch.from_lists(a, b)
    narrow = PairBatch(batch.ids_a.int(), batch.ids_b.int(), batch.offsets_a, batch.offsets_b)
    spread = PairBatch(torch.stack([batch.ids_a, batch.ids_a], 1)[:, 0], batch.ids_b, batch.offsets_a, batch.offsets_b)
    with torch.no_grad():
        expected = of(batch)
        assert torch.equal(of(narrow), expected)
        assert torch.equal(of(spread), expected)
        of.embedding.weight.data = of.embedding.weight.t().contiguous().t()
        assert not of.embedding.weight.is_contiguous()
        torch.testing.assert_close(of(batch), expected)


def test_inference_finds_offsets_that_were_spoilt():
    of, batch = model(), PairBatch.from_lists([[3, 4], [5]], [[3], [6, 7]])
    batch.offsets_b[1] = 9
    with torch.no_grad(), pytest.raises(ValueError, match="offsets must start at 0, never fall"):
        of(batch)


@pytest.mark.parametrize("offsets", [[0, 2], []])
def test_inference_finds_sides_of_other_numbers_of_pairs(offsets):
    of, batch = model(), PairBatch.from_lists([[3, 4], [5]], [[3], [6]])
    values = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    odd = PairBatch.unchecked(**values | {"offsets_b": torch.tensor(offsets, dtype=torch.int32)})
    with torch.no_grad():
        for scoring in (of, of.freeze()):
            with pytest.raises(ValueError, match="offsets must start at 0"):
                scoring(odd)


@pytest.mark.parametrize("sizes", [{}, {"intra_attention": True}], ids=str)
def test_traced_models_serve_other_sizes(sizes):
    """torch.jit.trace sees operators, not what would be done without them."""
    of = model(**sizes)
    scorings = [of] if sizes else [of, of.freeze()]
    few, many = PAIRS.padded(PAD), pairs([9] * 12, [4] * 12).padded(PAD)

    class Two(torch.nn.Module):
        def __init__(self, scoring):
            super().__init__()
            self.scoring = scoring

        def forward(self, a, b):
            return self.scoring((a, b))

    for scoring in scorings:
        traced = torch.jit.trace(Two(scoring), few)
        for X in (few, many):
            torch.testing.assert_close(traced(*X), of(X), rtol=1e-4, atol=1e-5)


def test_it_follows_every_change_of_the_parameters(served):
    of = model()
    with torch.no_grad():
        for p in of.parameters():
            p.data.mul_(1.5)  # which leaves no sign behind
            found = of(PAIRS)
            expected = exact(of, PAIRS)
            assert (found - expected).norm() <= 1e-5 * expected.norm()
            of.float()
    assert len(served) == len(list(of.parameters()))


def test_who_looks_inside_sees_every_layer(served):
    of = model()
    with torch.no_grad():
        expected = of(PAIRS)
        for layer in (of.embedding, of.attend, of.attend.f[1], of.compare.g, of.aggregate, of.aggregate.linear):
            seen = []
            hook = layer.register_forward_hook(lambda *_, seen=seen: seen.append(1))
            torch.testing.assert_close(of(PAIRS), expected)
            hook.remove()
            assert seen
    assert served == [9]


def test_gradients_dropout_autocast_and_names_go_another_way(served):
    of = model(dropout=0.3)
    assert of(PAIRS).requires_grad
    with torch.no_grad():
        of.train()
        assert not torch.equal(of(PAIRS), of(PAIRS))
        of.eval()
        with torch.autocast("cpu", torch.bfloat16):
            of(PAIRS)
        of.backend = "reference"
        of(PAIRS)
    assert served == []
    of.backend = "native"
    for p in of.parameters():
        p.requires_grad_(False)
    assert not of(PAIRS).requires_grad
    assert served == [9]


def test_no_pairs_and_unknown_words():
    of = model()
    with torch.no_grad():
        assert of(PairBatch.from_lists([], [])).shape == (0, 3)
        torch.testing.assert_close(of(PairBatch.from_lists([[]], [[]])), of((torch.full((1, 2), PAD),) * 2))
        with pytest.raises(IndexError, match="premises has token id 60"):
            of(PairBatch.from_lists([[60]], [[3]]))


def test_a_word_that_is_not_finite_reaches_only_its_pairs():
    of = model()
    with torch.no_grad():
        expected = of(PAIRS)
        of.embedding.weight[PAIRS.ids_a[0]] = torch.nan
        found = of(PAIRS)
    hit = torch.tensor(
        [int(PAIRS.ids_a[0]) in (*a, *b) for a, b in zip(*(t.tolist() for t in PAIRS.padded(PAD)), strict=True)]
    )
    assert torch.equal(found.isnan().any(1), hit)
    torch.testing.assert_close(found[~hit], expected[~hit])
