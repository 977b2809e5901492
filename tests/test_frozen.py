"""The frozen model against the model: plain PyTorch and C++, every form of input, hostile ones."""

import copy

import pytest
import torch
from coalign.model import frozen as frozen_module
from torch._subclasses.fake_tensor import FakeTensorMode

import coalign
from coalign import DecomposableAttention, PairBatch

PAD = 1
ROUTES = ("native", "reference")
DTYPES = (torch.float32, torch.bfloat16)


def model(vocab=60, embed=12, hidden=20, classes=3, padding_idx=PAD, seed=0):
    torch.manual_seed(seed)
    made = DecomposableAttention.from_sizes(vocab, embed, hidden, num_classes=classes, padding_idx=padding_idx)
    with torch.no_grad():
        made.embedding.weight.normal_()  # padding's vector too: masked, it changes nothing
        for p in made.aggregate.parameters():
            p.mul_(3)
    return made.eval()


def frozen(of, route, dtype=torch.float32):
    made = of.freeze(dtype)
    made.backend = route
    return made


def sentences(lengths, vocab=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, vocab, (n,), generator=generator).tolist() for n in lengths]


LENGTHS_A, LENGTHS_B = (7, 3, 1, 5, 0, 12, 0, 64, 90), (2, 6, 1, 0, 4, 3, 0, 5, 71)
PAIRS = PairBatch.from_lists(sentences(LENGTHS_A), sentences(LENGTHS_B, seed=1))
PADDED = PAIRS.padded(PAD)
MASKS = tuple(ids != PAD for ids in PADDED)
LENGTHS = (torch.tensor(LENGTHS_A), torch.tensor(LENGTHS_B))


def budget(of, X, expected, dtype):
    """1e-5 in float32. In bfloat16, twice the error of the plain model in bfloat16."""
    if dtype == torch.float32:
        return 1e-5
    plain = copy.deepcopy(of).bfloat16()
    plain.backend = "reference"
    error = (plain(X).detach().float() - expected).norm() / expected.norm()
    assert error < 0.1
    return 2 * error


def assert_close(found, expected, allowed):
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert (found - expected).norm() <= allowed * expected.norm()
    assert expected.std(0).min() > 0.01  # pairs differ, so that scores in a wrong order would show


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("X", "given"),
    [
        (PAIRS, {}),
        (PADDED, {}),
        (PADDED, {"masks": MASKS}),
        (PADDED, {"lengths": LENGTHS}),
        (PADDED, {"masks": (MASKS[0], None), "lengths": (None, LENGTHS[1])}),
        (tuple(ids.int() for ids in PADDED), {"lengths": tuple(t.int() for t in LENGTHS)}),
    ],
    ids=["packed", "padding_idx", "masks", "lengths", "one of each", "int32"],
)
def test_scores_are_the_masked_models(route, dtype, X, given):
    of = model()
    of.backend = "reference"
    expected = of.double()(PADDED, masks=MASKS).detach().float()
    of = of.float()
    assert_close(frozen(of, route, dtype)(X, **given), expected, budget(of, PAIRS, expected, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_nothing_is_masked_without_padding(route, dtype):
    of = model(padding_idx=None)
    X = tuple(ids[:4, :8] for ids in PADDED)  # views: rows are not adjacent
    expected = of(X).detach()
    assert_close(frozen(of, route, dtype)(X), expected, budget(of, X, expected, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_words_that_come_again(dtype, route):
    """They are computed with once: words 5 and 1029, which may share a place where they are looked for, are two."""
    of = model(vocab=1100)
    premises = [[5] * 9, [5, 1029, 5, 7, 7, 1029, 5], [*range(2, 72), *range(2, 72)], [3, 4], [6], [8, 9, 8], []]
    hypotheses = [[6, 5, 6], [1029] * 70, [4, 4, 4, *range(60), 4], [4, 4, 3], [6, 6], [], [7, 7]]
    X = PairBatch.from_lists(premises, hypotheses)
    of.backend = "reference"
    expected = of.double()(X).detach().float()
    of = of.float()
    assert_close(frozen(of, route, dtype)(X), expected, budget(of, X, expected, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("embed", "hidden", "classes"), [(1, 1, 1), (3, 7, 2), (5, 16, 17), (4, 33, 3), (100, 200, 3), (8, 131, 40)]
)
def test_sizes(embed, hidden, classes, dtype):
    of = model(embed=embed, hidden=hidden, classes=classes, seed=3)
    expected = of(PAIRS).detach()
    for route in ROUTES:
        found = frozen(of, route, dtype)(PAIRS)
        assert (found - expected).norm() <= budget(of, PAIRS, expected, dtype) * expected.norm(), route


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_depend_on_neither_company_nor_threads(dtype):
    """A pair's scores are the same alone, in a batch, and for any number of threads."""
    pairs = PairBatch.from_lists(
        sentences([n % 23 for n in range(200)]), sentences([n % 17 for n in range(200)], seed=1)
    )
    made = frozen(model(hidden=40), "native", dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = made(pairs)
        for threads in (2, 3, 16):
            torch.set_num_threads(threads)
            assert torch.equal(made(pairs), expected)
    finally:
        torch.set_num_threads(before)
    for i in (0, 1, 22, 116, 199):
        ids_a, ids_b = (
            t[o[i] : o[i + 1]].tolist() for t, o in ((pairs.ids_a, pairs.offsets_a), (pairs.ids_b, pairs.offsets_b))
        )
        assert torch.equal(made(PairBatch.from_lists([ids_a], [ids_b])), expected[i : i + 1])


@pytest.mark.parametrize("route", ROUTES)
def test_no_pairs_and_no_words(route):
    made = frozen(model(), route)
    assert made(PairBatch.from_lists([], [])).shape == (0, 3)
    assert made((torch.empty(0, 4, dtype=torch.long), torch.empty(0, 5, dtype=torch.long))).shape == (0, 3)
    nothing = made((torch.empty(2, 0, dtype=torch.long), torch.full((2, 3), PAD)))
    torch.testing.assert_close(nothing, model()(PairBatch.from_lists([[], []], [[], []])).detach())


@pytest.mark.parametrize("route", ROUTES)
def test_infinite_padding_reaches_nothing(route):
    of = model()
    expected = of(PAIRS).detach()
    with torch.no_grad():
        of.embedding.weight[PAD] = float("nan")
    assert_close(frozen(of, route)(PADDED), expected, 1e-5)


@pytest.mark.parametrize("route", ROUTES)
def test_nan_stays_in_its_pair(route):
    of = model()
    expected = of(PAIRS).detach()
    with torch.no_grad():
        of.embedding.weight[PAIRS.ids_a[0]] = float("nan")
    hit = torch.tensor(
        [int(PAIRS.ids_a[0]) in (*a, *b) for a, b in zip(*(ids.tolist() for ids in PADDED), strict=True)]
    )
    found = frozen(of, route)(PAIRS)
    assert torch.equal(found.isnan().any(1), hit)
    assert not hit.all()
    assert (found - expected)[~hit].norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("bad", [-1, 60, 2**40, -(2**40)])
def test_an_unknown_id_is_an_error(route, bad):
    made = frozen(model(), route)
    ids = torch.tensor([[3, bad]])
    for X in ((ids, ids[:, :1]), (ids[:, :1], ids), (ids, ids)):
        with pytest.raises(
            IndexError, match=rf"(premises|hypotheses) has token id {bad}, outside the vocabulary of 60"
        ):
            made(X, masks=(None, None))
    offsets = torch.tensor([0, 2], dtype=torch.int32)
    with pytest.raises(IndexError, match="hypotheses has token id"):
        made(PairBatch(ids[0].clamp(0, 3), ids[0], offsets, offsets))


@pytest.mark.parametrize("route", ROUTES)
def test_bad_arguments(route):
    made, ids = frozen(model(), route), torch.tensor([[3, 4]])
    with pytest.raises(TypeError, match="premises must be int32 or int64"):
        made((ids.float(), ids))
    with pytest.raises(TypeError, match="hypotheses must be a tensor"):
        made((ids, [[3]]))
    with pytest.raises(ValueError, match="premises must be \\(batch, length\\)"):
        made((ids[0], ids))
    with pytest.raises(ValueError, match="same number of sentences"):
        made((ids, ids.repeat(2, 1)))
    with pytest.raises(ValueError, match="give mask_a or lengths_a"):
        made((ids, ids), masks=(ids > 0, None), lengths=(torch.tensor([1]), None))
    with pytest.raises(ValueError, match="mask_b must be"):
        made((ids, ids), masks=(None, ids[:, :1] > 0))
    with pytest.raises(ValueError, match="no masks or lengths"):
        made(PAIRS, lengths=LENGTHS)
    with pytest.raises(ValueError, match="is no backend"):
        frozen(model(), "cuda")((ids, ids))
    with pytest.raises(coalign.BackendUnavailable, match="Triton runs on GPU tensors"):
        frozen(model(), "triton")((ids, ids))
    with pytest.raises(ValueError, match=r"torch\.float32 or torch\.bfloat16, not in torch\.float64"):
        model().freeze(torch.float64)


@pytest.mark.parametrize("length", [-1, 3, 2**40])
def test_impossible_lengths(length):
    """Values that would have the kernel read beyond the ids."""
    made, ids = frozen(model(), "native"), torch.tensor([[3, 4]])
    with pytest.raises(ValueError, match="lengths_b must lie between"):
        made((ids, ids), lengths=(None, torch.tensor([length])))
    spoilt = PairBatch.from_lists([[3, 4], [5]], [[3], [4]])
    spoilt.offsets_a[1] = min(length * 5, 2**31 - 1)  # behind the checks of the constructor
    with pytest.raises(ValueError, match="offsets must start at 0"):
        made(spoilt)


def test_native_on_a_gpu_is_the_cuda_kernel(monkeypatch):
    """Behind Triton's; asked for by name it serves or says why not. No GPU is needed to ask."""
    made = model().freeze()
    with FakeTensorMode():
        made.table = torch.empty(60, 60, device="cuda")
    reasons = {"triton": ["no Triton in this test"], "native": []}
    for name, kernel in frozen_module.GPU_KERNELS.items():
        monkeypatch.setattr(kernel, "unsupported", lambda table, most, name=name: reasons[name])
    monkeypatch.setattr(made, "_not_finite", list)
    assert made._backend(PAIRS) == "native"
    reasons["native"] = ["no CUDA in this test"]
    assert made._backend(PAIRS) == "reference"
    made.backend = "native"
    with pytest.raises(coalign.BackendUnavailable, match="no CUDA in this test"):
        made._backend(PAIRS)
    reasons["triton"] = []
    made.backend = None
    assert made._backend(PAIRS) == "triton"


def test_it_does_not_follow_the_model():
    of = model()
    made = frozen(of, "native")
    before = made(PAIRS)
    with torch.no_grad():
        for p in of.parameters():
            p.zero_()
    assert torch.equal(made(PAIRS), before)


def test_a_changed_model_is_refused():
    """Freezing would leave out what the change does."""
    of = model()
    of.compare.g[2] = torch.nn.Tanh()
    with pytest.raises(TypeError, match=r"compare\.g is not as the model was made"):
        of.freeze()
    of = model()
    of.attend.f[1].register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match=r"attend\.f"):
        of.freeze()


def test_dropout_is_off_and_no_gradient_flows():
    of = model().train()
    made = of.freeze()
    assert torch.equal(made.train()(PAIRS), made.eval()(PAIRS))
    assert not made(PAIRS).requires_grad
    assert of.training


def test_wider_and_narrower_models_are_frozen_alike():
    expected = model().freeze()(PAIRS)
    assert_close(model().double().freeze()(PAIRS), expected, 1e-6)
    assert_close(model().bfloat16().freeze()(PAIRS), expected, budget(model(), PAIRS, expected, torch.bfloat16))


def test_the_table_of_a_float64_model_is_rounded_once():
    of = model().double().eval()
    with torch.no_grad():
        assert torch.equal(of.freeze().table.chunk(3, dim=1)[0], of.attend.f(of.embedding.weight).float())


def test_autocast_does_not_round_the_table():
    expected = model().freeze()
    with torch.autocast("cpu", torch.bfloat16):
        made = model().freeze()
    assert torch.equal(made.table, expected.table)


def test_weights_loaded_or_cast_later_are_used():
    """The packed copies of the weights are made anew."""
    one, other = model(seed=0).freeze(), model(seed=5).freeze()
    one(PAIRS)
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(PAIRS), other(PAIRS))
    with torch.no_grad():
        one.output_bias.add_(1)
    torch.testing.assert_close(one(PAIRS), other(PAIRS) + 1)
    one.output_bias.sub_(1)
    half = other.to(torch.bfloat16)
    assert_close(half(PAIRS), one(PAIRS), budget(model(seed=5), PAIRS, one(PAIRS), torch.bfloat16))


def test_buffers_put_in_place_of_others_are_used():
    of, other = frozen(model(), "native"), frozen(model(seed=1), "native")
    before = of(PAIRS)
    for _ in range(5):
        for source in (other, frozen(model(), "native")):
            for name, t in source.named_buffers():
                delattr(of, name)  # its memory, and so its identity, is free for the next
                of.register_buffer(name, t.clone())
            assert torch.equal(of(PAIRS), source(PAIRS))
    assert torch.equal(of(PAIRS), before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inference_mode(dtype):
    with torch.inference_mode():
        of, other = model().freeze(dtype), model(seed=1).freeze(dtype)
        before = of(PAIRS)
        assert torch.equal(of(PAIRS), before)
        of.load_state_dict(other.state_dict())
        assert torch.equal(of(PAIRS), other(PAIRS))
        assert not torch.equal(of(PAIRS), before)


def test_changes_that_leave_no_sign():
    of = frozen(model(), "native")
    before = of(PAIRS)
    of.output_bias.numpy()[:] += 10
    of.load_state_dict(of.state_dict())
    assert_close(of(PAIRS), before + 10, 1e-6)


@pytest.mark.parametrize("name", ["compare_weight", "first_weight", "second_weight", "output_weight"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_weights_of_other_dtypes_are_refused(dtype, name):
    """Memory would be read as numbers that it does not hold."""
    of = frozen(model(), "native")
    of(PAIRS)
    setattr(of, name, getattr(of, name).to(dtype))
    with pytest.raises(ValueError, match=f"{name} must be torch.float32, like table, not {dtype}"):
        of(PAIRS)


def test_in_float64_scores_are_float32():
    of = model().freeze()
    expected = of(PAIRS)
    found = of.double()(PAIRS)
    assert found.dtype == torch.float32
    assert_close(found, expected, 1e-5)


def test_strided_tables_and_offsets():
    of = frozen(model(), "native")
    expected = of(PAIRS)
    of.table = torch.cat([of.table, of.table], 1)[:, : of.table.shape[1]]
    assert torch.equal(of(PAIRS), expected)
    strided = [torch.stack([t, t], 1)[:, 0] for t in (PAIRS.offsets_a, PAIRS.offsets_b)]
    assert torch.equal(of(PairBatch(PAIRS.ids_a, PAIRS.ids_b, *strided)), expected)


def test_memory_is_stated():
    made = model(vocab=1000, hidden=20).freeze(torch.bfloat16)
    weights = 20 * 20 + 20 * 40 + 20 * 20 + 3 * 20
    assert made.nbytes == 2 * (1000 * 60 + weights) + 4 * (20 + 20 + 20 + 3)


def test_exported_and_compiled():
    made = model().freeze()
    X = tuple(ids[:5, :12].clone() for ids in PADDED)
    expected = made(X)
    exported = torch.export.export(made, (X,)).module()
    assert_close(exported(X), expected, 1e-6)
    assert_close(torch.compile(made, backend="aot_eager", fullgraph=True)(X), expected, 1e-6)
