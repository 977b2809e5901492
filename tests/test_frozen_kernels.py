"""The frozen model's kernels for GPUs against the model: on a GPU; and without one, Triton's interpreted on the CPU
(`make test-triton`), the CUDA one under the simulator of CUDA threads."""

import pytest
import torch
from coalign.kernels import gpu
from coalign.kernels.native import cuda_frozen
from coalign.kernels.triton import frozen as triton_frozen
from coalign.kernels.triton import unsupported_on
from coalign.model import frozen
from conftest import INTERPRETING, Backend
from cuda_sim import simulated

from coalign import BackendUnavailable, DecomposableAttention, PairBatch

DTYPES = (torch.float32, torch.bfloat16)
TRITON = Backend("triton", "cpu" if INTERPRETING else "cuda")
AXIS = [pytest.param(TRITON, id=str(TRITON), marks=[] if INTERPRETING else [pytest.mark.gpu])]
if not INTERPRETING:
    AXIS.append(pytest.param(Backend("native", "cuda"), id="native-cuda", marks=[pytest.mark.gpu, pytest.mark.nvcc]))
    AXIS.append(pytest.param(Backend(simulated.name, "cpu"), id="simulated-cpu"))
pytestmark = pytest.mark.parametrize("backend", AXIS)
KERNELS = {"triton": triton_frozen, "native": cuda_frozen, simulated.name: simulated.frozen}


@pytest.fixture(autouse=True)
def _simulated_kernel(monkeypatch, backend):
    if backend.name == "triton" and (reasons := unsupported_on(torch.device(backend.device), torch.float32)):
        pytest.skip(reasons[0])
    if backend.name == simulated.name:
        monkeypatch.setitem(frozen.GPU_KERNELS, simulated.name, simulated.frozen)


def model(embed=12, hidden=20, classes=3):
    torch.manual_seed(0)
    made = DecomposableAttention.from_sizes(60, embed, hidden, num_classes=classes)
    with torch.no_grad():
        made.embedding.weight.normal_()
        for p in made.aggregate.parameters():
            p.mul_(3)
    return made.eval()


def pairs(lengths_a, lengths_b, dtype=torch.int64):
    generator = torch.Generator().manual_seed(0)
    sides = [
        [torch.randint(60, (n,), generator=generator).tolist() for n in lengths] for lengths in (lengths_a, lengths_b)
    ]
    made = PairBatch.from_lists(*sides)
    return PairBatch(made.ids_a.to(dtype), made.ids_b.to(dtype), made.offsets_a, made.offsets_b)


def on(backend, of, dtype=torch.float32):
    made = of.freeze(dtype).to(backend.device)
    made.backend = backend.name
    return made


def check(backend, of, batch, dtype, allowed=None):
    """The kernel's scores are the float64 model's, as nearly as plain PyTorch's are in the same numbers."""
    exact = of.double()
    exact.backend = "reference"
    expected = exact(batch).detach()
    made = of.float().freeze(dtype)
    made.backend = "reference"
    plain = (made(batch) - expected).norm()
    found = on(backend, of, dtype)(batch.to(backend.device)).cpu()
    assert found.dtype == torch.float32
    assert expected.std(0).min() > 0.01  # pairs differ, so that scores in a wrong order would show
    allowed = allowed or (1e-5 if dtype == torch.float32 else 1e-2)
    assert (found - expected).norm() <= max(2 * plain, allowed * expected.norm())
    return found


@pytest.fixture
def large(backend):
    """A GPU whose blocks may have as much shared memory as a tile of 128 tokens takes: pretended, or the test skips."""
    if backend.name == "native" and gpu.shared_memory(torch.device("cuda", 0)) < 160 * 1024:
        pytest.skip("needs a GPU whose blocks may have 160 KB of shared memory")
    with simulated.device(simulated.Device(shared=227 * 1024)):
        yield


SHORT = (7, 3, 1, 5, 0, 12, 0, 4), (2, 6, 1, 0, 4, 3, 0, 1)


@pytest.mark.usefixtures("poisoned_memory", "large")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("lengths_a", "lengths_b"),
    [
        SHORT,
        ((1,) * 21, (2, 1, 3) * 7),  # more pairs than a group has
        ((32, 31, 33, 64, 0, 3), (32, 33, 32, 64, 64, 2)),  # a tile's last row, and the first of a larger one
        ((60, 2, 90, 5), (68, 3, 1, 4)),
    ],
    ids=["short", "many", "edges", "long"],
)
def test_scores_are_the_models(lengths_a, lengths_b, dtype, backend):
    check(backend, model(), pairs(lengths_a, lengths_b), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("embed", "hidden", "classes"), [(3, 7, 2), (5, 33, 17), (4, 200, 3)])
def test_sizes(embed, hidden, classes, dtype, backend):
    check(backend, model(embed, hidden, classes), pairs((4, 9, 2), (3, 5, 6), torch.int32), dtype)


def test_a_model_cast_afterwards(backend):
    """Its biases are bfloat16 then; sums stay float32."""
    batch, frozen = pairs(*SHORT), model().freeze()
    cast = frozen.to(backend.device, torch.bfloat16)
    cast.backend = backend.name
    found = cast(batch.to(backend.device)).float().cpu()
    cast.backend = "reference"
    expected = cast(batch.to(backend.device)).float().cpu()
    assert (found - expected).norm() <= 2e-2 * expected.norm()


@pytest.mark.usefixtures("poisoned_memory", "large")
def test_programs_of_several_pairs(monkeypatch, backend):
    if backend.name == "triton":
        from coalign.kernels.triton import choices

        monkeypatch.setattr(choices, "frozen_owned", lambda pairs: 5)
    monkeypatch.setattr(cuda_frozen, "owned", lambda pairs: 5)
    check(backend, model(), pairs((3, 70, 9, 40, 2, 2, 30), (4, 9, 9, 40, 1, 2, 30)), torch.float32)
    check(backend, model(), pairs((0,) * 90 + (2, 3), (0,) * 90 + (3, 2)), torch.float32)


def test_no_pairs(backend):
    assert on(backend, model())(PairBatch.from_lists([], []).to(backend.device)).shape == (0, 3)


def test_the_same_bits_every_time(backend):
    made, batch = on(backend, model()), pairs((7, 3, 40), (2, 6, 24)).to(backend.device)
    assert torch.equal(made(batch), made(batch))


def test_what_it_cant_serve_is_named_or_left_to_plain_pytorch(backend):
    batch, long = pairs((3,), (2,)).to(backend.device), pairs((100,), (29,)).to(backend.device)
    wide, ill = model(hidden=300 if backend.name == "triton" else 1100), model()
    with torch.no_grad():
        ill.embedding.weight[7, 0] = torch.inf
    too_wide = "num_hiddens is 300" if backend.name == "triton" else "holds 0 or less where num_hiddens is 1100"
    for of, X, reason in (
        (model(), long, "129 tokens"),
        (model(), long.padded(0), "129 tokens"),
        (wide, batch, too_wide),
        (ill, batch, "table holds numbers that are not finite"),
    ):
        if of is wide and backend.name == "native":
            continue  # a GPU may have the memory
        made = on(backend, of)
        with pytest.raises(BackendUnavailable, match=reason):
            made(X)
        made.backend = "reference" if backend.name == simulated.name else None
        assert made(X).shape == (1, 3)


LENGTHS = (7, 3, 1, 5, 0, 12), (2, 6, 1, 0, 4, 3)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("said", ["padding_idx", "masks", "lengths", "nothing"])
def test_padded_sentences(said, backend):
    """Their tokens are taken together on the device, and the scores are those of the packed batch, to the bit."""
    of, batch = model(), pairs(*LENGTHS)
    padding = 0 if said == "padding_idx" else None
    ids = [t + (t == 0) for t in (batch.ids_a, batch.ids_b)]  # 0 is padding
    batch = PairBatch(*ids, batch.offsets_a, batch.offsets_b)
    a, b = batch.padded(0)
    if said == "padding_idx":
        a = a[:, torch.randperm(a.shape[1], generator=torch.Generator().manual_seed(0))]  # padding may stand anywhere
        batch = PairBatch.from_padded(a, b, padding_idx=0)
    if said == "nothing":
        batch = PairBatch.from_padded(a, b)
    made = on(backend, of)
    made.padding_idx = padding
    options = {
        "masks": {"masks": (a != 0, b != 0)},
        "lengths": {"lengths": (torch.tensor(LENGTHS[0]), torch.tensor(LENGTHS[1], dtype=torch.int32))},
    }.get(said, {})
    options = {name: tuple(t.to(backend.device) for t in given) for name, given in options.items()}
    found = made((a.to(backend.device), b.to(backend.device)), **options)
    assert torch.equal(found, made(batch.to(backend.device)))
    made.backend = "reference"
    expected = made((a.to(backend.device), b.to(backend.device)), **options)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_padded_sentences_of_one_side_without_places(backend):
    made = on(backend, model())
    a, b = torch.full((3, 0), 5, device=backend.device), torch.full((3, 4), 5, device=backend.device)
    found = made((a, b))
    made.backend = "reference"
    torch.testing.assert_close(found, made((a, b)), atol=1e-5, rtol=1e-5)


def test_what_are_no_padded_ids_is_said(backend):
    made = on(backend, model())
    a = torch.ones(2, 3, dtype=torch.int64, device=backend.device)
    for X, message in (
        ((a,), "a pair"),
        ((a, a.float()), "hypotheses must be int32 or int64"),
        ((a, a[0]), "hypotheses"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            made(X)
    with pytest.raises(ValueError, match="same number of sentences"):
        made((a, a[:1]))


def test_it_is_what_serves(monkeypatch, backend):
    """Without a name too, and after the buffers changed."""
    if backend.name == "native":
        monkeypatch.setattr(triton_frozen, "unsupported", lambda *_: ["not in this test"])
    made, batch = model().freeze().to(backend.device), pairs((3,), (2,)).to(backend.device)
    made.backend = simulated.name if backend.name == simulated.name else None
    assert made._backend(batch) == backend.name
    made.table[3, 0] = torch.nan
    made.backend = None
    assert made._backend(batch) != backend.name


@pytest.mark.usefixtures("poisoned_memory")
def test_an_unknown_word_makes_its_pairs_sums_nan(backend):
    """The model itself raises IndexError on the CPU, where looking costs no waiting."""
    made, batch = model().freeze().to(backend.device), pairs((3, 4, 2, 0), (2, 2, 5, 1)).to(backend.device)

    def sums():
        ids, offsets = (batch.ids_a, batch.ids_b), (batch.offsets_a, batch.offsets_b)
        return KERNELS[backend.name].sums(made.table, ids, offsets, made.compare_weight, made.compare_bias, 7)

    assert KERNELS[backend.name].unsupported(made.table, 7) == []
    expected = sums()
    for unknown in (60, -1, 2**40):
        batch.ids_b[3], batch.ids_b[9] = unknown, unknown  # the last one's pair has no other word
        found = sums()
        assert found[[1, 3]].isnan().all()
        assert torch.equal(found[[0, 2]], expected[[0, 2]])
