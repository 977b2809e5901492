"""The model against d2l's, restated in the benchmarks in a few lines that share nothing with it."""

import copy
import io

import pytest
import torch
from coalign.model.masks import are_packed
from torch import nn

import coalign
from benchmarks.model_cases import Book
from coalign import Aggregate, Attend, Compare, DecomposableAttention

VOCAB, EMBED, HIDDEN, PAD = 50, 12, 16, 1
ROUTES = (None, "reference")  # the fast path, and the plain one


@pytest.fixture
def book():
    torch.manual_seed(0)
    return Book(VOCAB, EMBED, HIDDEN).eval()


def ours(book, route=None, padding_idx=None):
    model = DecomposableAttention.from_sizes(VOCAB, EMBED, HIDDEN, padding_idx=padding_idx, backend=route)
    model.load_state_dict(book.state_dict(), strict=True)
    return model.eval()


def sentences(lengths, longest, seed=0):
    """Token ids (batch, longest), none of them PAD but after a sentence's end."""
    ids = torch.randint(2, VOCAB, (len(lengths), longest), generator=torch.Generator().manual_seed(seed))
    return ids.masked_fill(torch.arange(longest) >= torch.tensor(lengths)[:, None], PAD)


LENGTHS_A, LENGTHS_B = (7, 3, 1, 5), (2, 6, 1, 4)
X = (sentences(LENGTHS_A, 7), sentences(LENGTHS_B, 6, seed=1))
MASKS = tuple(ids != PAD for ids in X)
LENGTHS = (torch.tensor(LENGTHS_A), torch.tensor(LENGTHS_B))


def scores_and_gradients(model, forward):
    model.zero_grad()
    scores = forward(model)
    weights = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).reshape(scores.shape)
    (scores * weights).sum().backward()
    return {"scores": scores.detach()} | {name: p.grad for name, p in model.named_parameters()}


def assert_close(found, expected, allowed=1e-5):
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        assert (found[name] - truth).norm() <= allowed * truth.norm(), name


@pytest.mark.parametrize("route", ROUTES)
def test_unmasked_model_is_the_books(book, route):
    expected = scores_and_gradients(book, lambda model: model(X))
    assert_close(scores_and_gradients(ours(book, route), lambda model: model(X)), expected)


def each_pair_alone(model):
    """Every pair through the book's model by itself, without its padding."""
    return torch.cat(
        [
            model((X[0][i : i + 1, :m], X[1][i : i + 1, :n]))
            for i, (m, n) in enumerate(zip(LENGTHS_A, LENGTHS_B, strict=True))
        ]
    )


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("padding_idx", "given"),
    [
        (PAD, {}),
        (None, {"masks": MASKS}),
        (None, {"lengths": LENGTHS}),
        (None, {"masks": (MASKS[0], None), "lengths": (None, LENGTHS[1])}),
    ],
    ids=["padding_idx", "masks", "lengths", "one of each"],
)
def test_masked_model_sees_no_padding(book, route, padding_idx, given):
    expected = scores_and_gradients(book, each_pair_alone)
    assert_close(scores_and_gradients(ours(book, route, padding_idx), lambda model: model(X, **given)), expected)


def test_padding_is_taken_out_unless_someone_looks_inside(book, monkeypatch):
    """Packed, padding costs nothing; a hook on a layer is shown the padded form that the book describes."""
    seen = []

    def noted(*given):
        seen.append(are_packed(*given))
        return seen[-1]

    monkeypatch.setattr("coalign.model.compare.are_packed", noted)
    model = ours(book, padding_idx=PAD)
    packed = scores_and_gradients(model, lambda model: model(X))
    shapes = []
    hook = model.attend.register_forward_hook(lambda layer, arguments, result: shapes.append(result[0].shape))
    padded = scores_and_gradients(model, lambda model: model(X))
    hook.remove()
    assert shapes == [(4, 7, EMBED)]
    assert seen == [True, False]
    assert_close(packed, padded)
    ours(book)(X)
    assert seen[2:] == [False]  # nothing is masked, so there is nothing to take out


@pytest.mark.parametrize("route", ROUTES)
def test_padding_changes_an_unmasked_model(book, route):
    """The masks above do something: without them the numbers differ."""
    model = ours(book, route)
    assert not torch.allclose(model(X), model(X, masks=MASKS), rtol=1e-3)


@pytest.mark.parametrize("route", ROUTES)
def test_nan_in_padding_reaches_nothing(book, route):
    model = ours(book, route, padding_idx=PAD)
    clean = scores_and_gradients(model, lambda model: model(X))
    with torch.no_grad():
        model.embedding.weight[PAD] = torch.nan
    assert_close(scores_and_gradients(model, lambda model: model(X)), clean, allowed=0)


@pytest.mark.parametrize("route", ROUTES)
def test_sentences_of_nothing_but_padding(book, route):
    model = ours(book, route, padding_idx=PAD)
    nothing = torch.full((2, 4), PAD)
    A = model.embedding(nothing)
    beta, alpha = model.attend(A, A, mask_a=nothing != PAD, mask_b=nothing != PAD)
    for side in (*model.compare(A, A, beta, alpha, mask_a=nothing != PAD, mask_b=nothing != PAD), beta, alpha):
        assert not side.any()
    results = scores_and_gradients(model, lambda model: model((nothing, X[1][:2])))
    assert all(t.isfinite().all() for t in results.values())


@pytest.mark.parametrize("route", ROUTES)
def test_alignment_weights_give_beta_and_alpha(book, route):
    model = ours(book, route, padding_idx=PAD)
    p, q = model.alignment(X)
    A, B = (model.embedding(ids) for ids in X)
    beta, alpha = model.attend(A, B, mask_a=MASKS[0], mask_b=MASKS[1])
    torch.testing.assert_close(p @ B, beta)
    torch.testing.assert_close(q.mT @ A, alpha)
    torch.testing.assert_close(p.sum(-1), MASKS[0].float())
    torch.testing.assert_close(q.sum(-2), MASKS[1].float())


@pytest.mark.parametrize("backend", [None, "reference"])
def test_parts_alone_take_lengths_and_masks(backend):
    """Each pair as if it were alone and had no padding; offsets go with neither."""
    A, B = torch.randn(2, 5, 12), torch.randn(2, 4, 12)
    attend, compare = Attend(12, 16, dropout=0, backend=backend), Compare(24, 16, dropout=0)
    lengths = {"lengths_a": torch.tensor([5, 2]), "lengths_b": torch.tensor([1, 4])}
    masks = {"mask_a": torch.arange(5) < torch.tensor([[5], [2]]), "mask_b": torch.arange(4) < torch.tensor([[1], [4]])}
    for given in (lengths, masks):
        beta, alpha = attend(A, B, **given)
        V_A, V_B = compare(A, B, beta, alpha, **given)
        for p, (m, n) in enumerate(((5, 1), (2, 4))):
            a, b = A[p : p + 1, :m], B[p : p + 1, :n]
            alone = attend(a, b)
            torch.testing.assert_close((beta[p, :m], alpha[p, :n]), (alone[0][0], alone[1][0]))
            torch.testing.assert_close((V_A[p], V_B[p]), tuple(v[0] for v in compare(a, b, *alone)))
        offsets = {"offsets_a": torch.tensor([0, 5]).int(), "offsets_b": torch.tensor([0, 4]).int()}
        for name, t in given.items():
            with pytest.raises(ValueError, match="have no padding"):
                compare(A[0], B[0], beta[0], alpha[0], **offsets, **{name: t})
            for call, operands in ((attend, (A, B)), (attend.weights, (A, B)), (compare, (A, B, beta, alpha))):
                with pytest.raises(ValueError, match=f"^{name} must be "):
                    call(*operands, **{name: t[:1]})


@pytest.mark.parametrize("backend", [None, "reference"])
def test_attend_alone_takes_one_side_s_mask(backend):
    A, B, attend = torch.randn(1, 5, 12), torch.randn(1, 4, 12), Attend(12, 16, dropout=0, backend=backend)
    beta, alpha = attend(A, B, mask_b=torch.tensor([[True, False, False, True]]))
    alone = attend(A, B[:, ::3])
    torch.testing.assert_close((beta, alpha[:, ::3]), alone)
    assert not alpha[:, 1:3].any()


def test_every_network_s_dropout_is_the_model_s():
    of = DecomposableAttention.from_sizes(9, 4, 5, intra_attention=True, dropout=0.3)
    assert [layer.p for layer in of.modules() if isinstance(layer, nn.Dropout)] == [0.3] * 8


def test_parts_alone_take_d2ls_arguments():
    A, B = torch.randn(2, 5, 12), torch.randn(2, 4, 12)
    beta, alpha = Attend(12, 16)(A, B)
    V_A, V_B = Compare(24, 16)(A, B, beta, alpha)
    assert Aggregate(32, 16, 7)(V_A, V_B).shape == (2, 7)


class BookAttend(nn.Module):
    """As the book's exercises have it written."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, A, B):
        e = self.f(A) @ self.f(B).mT
        return e.softmax(-1) @ B, e.softmax(-2).mT @ A


class BookCompare(nn.Module):
    """With a vector for each word, which the book's Aggregate sums."""

    def __init__(self, g):
        super().__init__()
        self.g = g

    def forward(self, A, B, beta, alpha):
        return self.g(torch.cat([A, beta], dim=2)), self.g(torch.cat([B, alpha], dim=2))


@pytest.mark.parametrize("parts", [("attend",), ("compare",), ("attend", "compare")], ids=" and ".join)
def test_the_books_parts_take_the_places_of_ours(book, parts):
    model = ours(book)
    if "attend" in parts:
        model.attend = BookAttend(model.attend.f)
    if "compare" in parts:
        model.compare = BookCompare(model.compare.g)
    expected = scores_and_gradients(book, lambda model: model(X))
    assert_close(scores_and_gradients(model, lambda model: model(X)), expected)


def test_d2ls_constructor_and_size():
    model = DecomposableAttention(range(9), 100, 200)
    assert sum(p.numel() for name, p in model.named_parameters() if not name.startswith("embedding")) == 261_803
    assert [*model.state_dict()] == [*Book(9, 100, 200).state_dict()]


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_number_of_classes(classes):
    assert DecomposableAttention.from_sizes(VOCAB, EMBED, HIDDEN, num_classes=classes)(X).shape == (4, classes)


@pytest.mark.parametrize("route", ROUTES)
def test_training_lowers_the_loss(route):
    torch.manual_seed(0)
    model = DecomposableAttention.from_sizes(VOCAB, EMBED, HIDDEN, padding_idx=PAD, backend=route)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    labels = torch.tensor([0, 1, 2, 1])
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(X), labels)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_backend_may_change_and_parameters_stay(book):
    model = ours(book, "reference", padding_idx=PAD)
    plain = model(X)
    model.backend = None
    torch.testing.assert_close(model(X), plain)
    model.backend = "nonesuch"
    with pytest.raises(ValueError, match="nonesuch"):
        model(X)


def test_copies_and_files_keep_the_model(book):
    model = ours(book, padding_idx=PAD)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        torch.testing.assert_close(other(X), model(X), rtol=0, atol=0)


@pytest.mark.parametrize("route", ROUTES)
def test_compiled_model(book, route):
    model = ours(book, route, padding_idx=PAD)
    expected = scores_and_gradients(model, lambda model: model(X))
    compiled = torch.compile(model, fullgraph=True)
    assert_close(scores_and_gradients(model, lambda _: compiled(X)), expected)


@pytest.mark.parametrize("route", ROUTES)
def test_exported_model_takes_other_batches(book, route):
    model = ours(book, route, padding_idx=PAD)
    batch, m, n = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "m", "n"))
    exported = torch.export.export(model, (X,), dynamic_shapes=(({0: batch, 1: m}, {0: batch, 1: n}),)).module()
    other = (sentences((3, 9), 9), sentences((5, 2), 5))
    torch.testing.assert_close(exported(other), model(other))


@pytest.mark.parametrize("route", ROUTES)
def test_autocast_and_bfloat16_parameters(book, route):
    model = ours(book, route, padding_idx=PAD)
    expected = model(X)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = model(X)
    for scores in (under_autocast, model.bfloat16()(X)):
        assert scores.dtype == torch.bfloat16
        assert (scores.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m((X[0].float(), X[1])), TypeError, "premises must be int32 or int64"),
        (lambda m: m(([1, 2], X[1])), TypeError, "premises must be a tensor of token ids, not list"),
        (lambda m: m((X[0], X[1][0])), ValueError, r"hypotheses must be \(batch, length\)"),
        (lambda m: m((X[0][:2], X[1])), ValueError, "same number of sentences"),
        (lambda m: m((X[0] + VOCAB, X[1])), IndexError, "premises has token id .*outside the vocabulary of 50"),
        (lambda m: m((X[0], -X[1])), IndexError, "hypotheses has token id -"),
        (lambda m: m(X, masks=MASKS, lengths=LENGTHS), ValueError, "mask_a or lengths_a, not both"),
        (lambda m: m(X, masks=(X[0], None)), TypeError, "mask_a must be bool"),
        (lambda m: m(X, masks=(None, MASKS[1][:, :2])), ValueError, r"mask_b must be \(4, 6\)"),
        (lambda m: m(X, lengths=(LENGTHS[0] + 1, None)), ValueError, "lengths_a must lie between 0 and 7"),
        (lambda m: m(X, lengths=(None, LENGTHS[1] - 9)), ValueError, "lengths_b must lie between 0 and"),
        (lambda m: m(X, masks=X[0] != PAD), TypeError, "masks must be a pair, .* not Tensor"),
        (lambda m: m(X, lengths=(*LENGTHS, None)), TypeError, "lengths must be a pair, .* not 3 of them"),
        (lambda m: m(X, lengths=([1, 2], None)), TypeError, "lengths_a must be a tensor, not list"),
        (lambda m: m(X, lengths=(LENGTHS[0].float(), None)), TypeError, "lengths_a must be"),
        (lambda _: DecomposableAttention(range(9), 100, 200, 99), ValueError, "must be embed_size = 100"),
        (lambda _: DecomposableAttention(range(9), 100, 200, num_inputs_agg=2), ValueError, "num_inputs_agg"),
        (lambda _: DecomposableAttention.from_sizes(9, padding_idx=9), ValueError, "padding_idx must lie"),
        (lambda _: DecomposableAttention.from_sizes(0), ValueError, "vocab. must be 1 or more, not 0"),
        (lambda _: DecomposableAttention.from_sizes(9, embed_size=-1), ValueError, "embed_size must be 1 or more"),
        (lambda _: DecomposableAttention.from_sizes(9, num_classes=0), ValueError, "num_classes must be 1 or more"),
        (lambda _: DecomposableAttention.from_sizes(9, projection_size=0), ValueError, "projection_size must be 1"),
    ],
)  # fmt: skip
def test_bad_arguments(book, call, error, message):
    with pytest.raises(error, match=message):
        call(ours(book))


def test_triton_by_name_says_why_not(book):
    if "serves" in coalign.explain(*(torch.zeros(1, 1, 1),) * 4, backend="triton").split("triton", 1)[1]:
        pytest.skip("Triton serves CPU tensors in this process")
    with pytest.raises(coalign.BackendUnavailable, match="triton"):
        ours(book, "triton")(X)
