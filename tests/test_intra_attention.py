"""Intra-sentence attention against its formula, word by word, and the model that has it."""

import pytest
import torch
from coalign.model import intra_attention
from test_model import LENGTHS, MASKS, PAD, ROUTES, VOCAB, X, assert_close, scores_and_gradients

from coalign import DecomposableAttention, IntraAttention, PairBatch, soft_align

WIDTH, HIDDEN = 6, 8
LONG = (25, 1, 0, 12, 3)  # beyond 10 words, where distances share a bias; one word; none


def layer(route=None):
    torch.manual_seed(0)
    made = IntraAttention(WIDTH, HIDDEN, backend=route).eval()
    with torch.no_grad():
        made.distance_bias.copy_(torch.linspace(-1, 2, 11))
    return made


def by_the_formula(made, sentence):
    """Section 3.4 for one sentence (words, width), each word by itself."""
    f = made.f[4](made.f[1](sentence).relu()).relu()
    rows = []
    for i in range(len(sentence)):
        scores = torch.stack([f[i] @ f[j] + made.distance_bias[min(abs(i - j), 10)] for j in range(len(sentence))])
        weights = scores.exp() / scores.exp().sum()
        rows.append(torch.cat([sentence[i], weights @ sentence]))
    return torch.stack(rows) if rows else sentence.new_zeros(0, 2 * sentence.shape[1])


def found_and_gradients(made, words, output):
    """The rows of tokens, and the gradients of a weighted sum of them."""
    made.zero_grad()
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    gradients = torch.autograd.grad((output * weights).sum(), [words, *made.parameters()])
    names = ["words", *(name for name, _ in made.named_parameters())]
    return {"output": output.detach()} | dict(zip(names, gradients, strict=True))


@pytest.fixture
def words():
    return torch.randn(sum(LONG), WIDTH, generator=torch.Generator().manual_seed(3)).requires_grad_()


@pytest.fixture
def expected(words):
    made = layer()
    return found_and_gradients(made, words, torch.cat([by_the_formula(made, s) for s in words.split(LONG)]))


def padded(words, keep, filler):
    """(sentences, length, width) with the words where keep is, and filler elsewhere."""
    empty = torch.full((*keep.shape, WIDTH), filler)
    return empty.masked_scatter(keep.unsqueeze(-1), words)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("filler", [0.0, torch.nan])
@pytest.mark.parametrize("form", ["lengths", "mask", "mask with gaps"])
def test_padded_sentences(words, expected, route, filler, form):
    """Gaps are no words: a sentence with padding inside has the numbers of one without."""
    lengths = torch.tensor(LONG)
    keep = torch.arange(27) < lengths[:, None]
    if form == "mask with gaps":
        keep = torch.stack([row[torch.randperm(27, generator=torch.Generator().manual_seed(i))]
                            for i, row in enumerate(keep)])  # fmt: skip
    made = layer(route)
    given = {"lengths": lengths} if form == "lengths" else {"mask": keep}
    output = made(padded(words, keep, filler), **given)
    assert output.shape == (5, 27, 2 * WIDTH)
    assert not output[~keep][:, WIDTH:].any()
    assert_close(found_and_gradients(made, words, output[keep]), expected)


def test_packed_sentences(words, expected):
    offsets = torch.tensor([0, *torch.tensor(LONG).cumsum(0)], dtype=torch.int32)
    made = layer()
    for longest in (25, 40):
        output = made(words, offsets=offsets, max_length=longest)
        assert_close(found_and_gradients(made, words, output), expected)


@pytest.mark.parametrize("short", [1, 2, 16])
def test_packed_sentences_of_like_lengths(words, expected, short, monkeypatch):
    monkeypatch.setattr(intra_attention, "MOST_PADDING", 0)
    monkeypatch.setattr(intra_attention, "SHORT", short)
    offsets = torch.tensor([0, *torch.tensor(LONG).cumsum(0)], dtype=torch.int32)
    made = layer()
    assert_close(found_and_gradients(made, words, made(words, offsets=offsets, max_length=40)), expected)
    assert made(words[:0], offsets=torch.zeros(3, dtype=torch.int32), max_length=5).shape == (0, 2 * WIDTH)


def test_a_long_sentence_does_not_pad_the_others(monkeypatch):
    rows = []

    def noted(f_a, *operands, **options):
        rows.append(f_a.shape[0] * f_a.shape[1])
        return soft_align(f_a, *operands, **options)

    monkeypatch.setattr(intra_attention, "soft_align", noted)
    lengths = torch.tensor([3] * 500 + [900] + [40] * 100)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0, dtype=torch.int32)])
    words = torch.randn(int(offsets[-1]), WIDTH)
    made = layer()
    with torch.no_grad():
        found = made(words, offsets=offsets, max_length=900)
        torch.testing.assert_close(found[:3], made(words[None, :3])[0])
        torch.testing.assert_close(found[1500:2400], made(words[None, 1500:2400])[0])
    assert sum(rows[:3]) == len(words)


@pytest.mark.parametrize("route", ROUTES)
def test_without_lengths_all_are_words(route):
    made, sentences = layer(route), torch.randn(2, 14, WIDTH)
    torch.testing.assert_close(made(sentences), torch.stack([by_the_formula(made, s) for s in sentences]))


def test_distances_beyond_ten_share_a_bias_and_no_other(words):
    made = layer()
    alone = words.detach()[:14].unsqueeze(0)
    before = made(alone)
    with torch.no_grad():
        made.distance_bias[10] += 1
    changed = (made(alone) - before).abs().amax(-1)[0] > 0
    assert changed.tolist() == [True] * 4 + [False] * 6 + [True] * 4  # words with another ten or more words away


def test_bad_forms():
    made, A = layer(), torch.randn(3, WIDTH)
    offsets = torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(ValueError, match="need max_length"):
        made(A, offsets=offsets)
    with pytest.raises(ValueError, match="give offsets, or a mask or lengths, not both"):
        made(A, offsets=offsets, max_length=3, lengths=torch.tensor([3]))
    with pytest.raises(ValueError, match=r"mask must be \(1, 3\)"):
        made(A.unsqueeze(0), mask=torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"A must be \(total, width\) when packed, not \(1, 3, "):
        made(A.unsqueeze(0), offsets=offsets, max_length=3)
    with pytest.raises(ValueError, match=r"A must be \(batch, length, width\), not \(3, "):
        made(A)
    with pytest.raises(TypeError, match="A must be a tensor, not list"):
        made(A.tolist())


@pytest.mark.parametrize(
    ("offsets", "max_length", "error", "message"),
    [
        ([0, 3], 3, TypeError, "offsets must be an int32 tensor, not list"),
        (torch.tensor([0, 3]), 3, TypeError, "offsets must be an int32 tensor, not torch.int64"),
        (torch.zeros(1, 2, dtype=torch.int32), 3, ValueError, r"offsets must be \(sentences \+ 1,\), not \(1, 2\)"),
        (torch.zeros(0, dtype=torch.int32), 3, ValueError, r"offsets must be \(sentences \+ 1,\), not \(0,\)"),
        (torch.tensor([0, 2], dtype=torch.int32), 3, ValueError, "and end at 3, the number of tokens; .* an end of 2"),
        (torch.tensor([1, 3], dtype=torch.int32), 3, ValueError, "must start at 0, .* found a start of 1"),
        (torch.tensor([0, 4, 3], dtype=torch.int32), 4, ValueError, "never fall, .* a smallest step of -1"),
        (torch.tensor([0, 3], dtype=torch.int32), 2, ValueError, "max_length must be 3 or more, .* not 2"),
        (torch.tensor([0, 3], dtype=torch.int32), 3.0, TypeError, "max_length must be an int, not float"),
    ],
)
def test_bad_offsets(offsets, max_length, error, message):
    with pytest.raises(error, match=message):
        layer()(torch.randn(3, WIDTH), offsets=offsets, max_length=max_length)


def model(route=None, **options):
    torch.manual_seed(1)
    made = DecomposableAttention.from_sizes(VOCAB, WIDTH, HIDDEN, intra_attention=True, backend=route, **options)
    torch.nn.init.normal_(made.intra_attention.distance_bias)
    return made.eval()


@pytest.mark.parametrize("options", [{}, {"projection_size": 4}], ids=["plain", "projected"])
@pytest.mark.parametrize(
    "call",
    [
        lambda model: model(X, masks=MASKS),
        lambda model: model(X, lengths=LENGTHS),
        lambda model: model(PairBatch.from_padded(*X, padding_idx=PAD)),
        lambda model: model(tuple(ids.flip(1) for ids in X), masks=tuple(mask.flip(1) for mask in MASKS)),
    ],
    ids=["masks", "lengths", "packed", "reversed"],
)
def test_every_form_of_the_model_is_each_pair_alone(options, call):
    """Reversed, padding comes first; the model knows distances but no direction, so its scores stay the same."""
    pairs = list(zip(*X, *LENGTHS, strict=True))
    alone = scores_and_gradients(
        model("reference", **options),
        lambda model: torch.cat([model((a[None, :m], b[None, :n])) for a, b, m, n in pairs]),
    )
    for route in ROUTES:
        assert_close(scores_and_gradients(model(route, **options), call), alone)


def test_a_hooked_layer_is_shown_the_padded_form():
    made, shapes = model(), []
    packed = scores_and_gradients(made, lambda model: model(X, masks=MASKS))
    made.intra_attention.register_forward_hook(lambda layer, arguments, result: shapes.append(result.shape))
    assert_close(scores_and_gradients(made, lambda model: model(X, masks=MASKS)), packed)
    assert shapes == [(4, 7, 2 * WIDTH), (4, 6, 2 * WIDTH)]


def test_the_alignment_sees_the_wider_vectors():
    made = model()
    with_bias = made.alignment(X, masks=MASKS)[0]
    with torch.no_grad():
        made.intra_attention.distance_bias += torch.randn(11)
    assert not torch.allclose(made.alignment(X, masks=MASKS)[0], with_bias)


def test_it_compiles_whole():
    made, batch = model(), PairBatch.from_padded(*X, padding_idx=PAD)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    expected = scores_and_gradients(made, lambda model: model(batch))
    assert_close(scores_and_gradients(made, lambda _: compiled(batch)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    torch.testing.assert_close(
        model().to(dtype)(X, masks=MASKS).float(), model()(X, masks=MASKS), rtol=0, atol=0.02
    )  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model()(X, masks=MASKS).float(), model()(X, masks=MASKS).float())


def test_without_it_nothing_is_added():
    names = DecomposableAttention.from_sizes(VOCAB, WIDTH, HIDDEN).state_dict().keys()
    assert model().state_dict().keys() - names == {
        "intra_attention.distance_bias",
        *(f"intra_attention.f.{i}.{kind}" for i in (1, 4) for kind in ("weight", "bias")),
    }


def test_it_can_not_be_frozen():
    with pytest.raises(ValueError, match="a model with intra_attention can't be frozen"):
        model().freeze()


def test_sizes_are_named():
    with pytest.raises(ValueError, match=r"num_inputs_attend must be 2 \* embed_size = 12, not 6"):
        DecomposableAttention(range(VOCAB), 6, 8, 6, 24, 16, intra_attention=True)
    with pytest.raises(ValueError, match=r"num_inputs_compare must be 4 \* embed_size = 24, not 12"):
        DecomposableAttention(range(VOCAB), 6, 8, 12, 12, 16, intra_attention=True)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "lists", [([[3, 4]], [[]]), ([[]], [[]]), ([], [])], ids=["one side without words", "no words", "no pairs"]
)
def test_sides_without_words(route, lists):
    made = DecomposableAttention.from_sizes(VOCAB, WIDTH, HIDDEN, padding_idx=PAD, intra_attention=True, backend=route)
    batch = PairBatch.from_lists(*lists)
    found = made.eval()(batch)
    assert found.shape == (len(lists[0]), 3)
    made.backend = "reference"
    assert torch.allclose(found, made(batch), atol=1e-6)
    found.sum().backward()
