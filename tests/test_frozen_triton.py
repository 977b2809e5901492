"""The frozen model's Triton kernel against the model: on a GPU, or interpreted on the CPU (`make test-triton`)."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from coalign.kernels.triton import choices
from coalign.kernels.triton import frozen as kernel
from conftest import INTERPRETING

from coalign import BackendUnavailable, DecomposableAttention, PairBatch

DEVICE = "cpu" if INTERPRETING else "cuda"
DTYPES = (torch.float32, torch.bfloat16)
if not INTERPRETING:
    pytestmark = pytest.mark.gpu


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


def check(of, batch, dtype):
    """The kernel's scores are the float64 model's, as nearly as plain PyTorch's are in the same numbers."""
    exact = of.double()
    exact.backend = "reference"
    expected = exact(batch).detach()
    made = of.float().freeze(dtype)
    made.backend = "reference"
    plain = (made(batch) - expected).norm()
    made = made.to(DEVICE)
    made.backend = "triton"
    found = made(batch.to(DEVICE)).cpu()
    assert found.dtype == torch.float32
    assert expected.std(0).min() > 0.01  # pairs differ, so that scores in a wrong order would show
    allowed = 1e-5 if dtype == torch.float32 else 1e-2
    assert (found - expected).norm() <= max(2 * plain, allowed * expected.norm())
    return made


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("lengths_a", "lengths_b"),
    [
        ((7, 3, 1, 5, 0, 12, 0, 4), (2, 6, 1, 0, 4, 3, 0, 1)),
        ((1,) * 21, (2, 1, 3) * 7),  # more pairs than a group has
        ((32, 31, 33, 64, 0, 3), (32, 33, 32, 64, 64, 2)),  # a tile's last row, and the first of a larger one
        ((60, 2, 90, 5), (68, 3, 1, 4)),
    ],
    ids=["short", "many", "edges", "long"],
)
def test_scores_are_the_models(lengths_a, lengths_b, dtype):
    check(model(), pairs(lengths_a, lengths_b), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("embed", "hidden", "classes"), [(3, 7, 2), (5, 33, 17), (4, 200, 3)])
def test_sizes(embed, hidden, classes, dtype):
    check(model(embed, hidden, classes), pairs((4, 9, 2), (3, 5, 6), torch.int32), dtype)


def test_programs_of_several_pairs(monkeypatch):
    monkeypatch.setattr(choices, "frozen_owned", lambda pairs: 5)
    check(model(), pairs((3, 70, 9, 40, 2, 2, 30), (4, 9, 9, 40, 1, 2, 30)), torch.float32)


def test_no_pairs():
    made = model().freeze().to(DEVICE)
    made.backend = "triton"
    assert made(PairBatch.from_lists([], []).to(DEVICE)).shape == (0, 3)


def test_the_same_bits_every_time():
    made, batch = model().freeze().to(DEVICE), pairs((7, 3, 40), (2, 6, 30)).to(DEVICE)
    made.backend = "triton"
    assert torch.equal(made(batch), made(batch))


def test_what_it_cant_serve_is_named_or_left_to_plain_pytorch():
    batch, long = pairs((3,), (2,)).to(DEVICE), pairs((100,), (29,)).to(DEVICE)
    wide, ill = model(hidden=300), model()
    with torch.no_grad():
        ill.embedding.weight[7, 0] = torch.inf
    for of, X, reason in (
        (model(), batch.padded(0), "give it a PairBatch"),
        (model(), long, "129 tokens"),
        (wide, batch, "num_hiddens is 300"),
        (ill, batch, "table holds numbers that are not finite"),
    ):
        made = of.freeze().to(DEVICE)
        made.backend = "triton"
        with pytest.raises(BackendUnavailable, match=reason):
            made(X)
        made.backend = None
        assert made(X).shape == (1, 3)


def test_it_is_what_serves():
    """Without a name too, and after the buffers changed."""
    made, batch = model().freeze().to(DEVICE), pairs((3,), (2,)).to(DEVICE)
    assert made._backend(batch) == "triton"
    made.table[3, 0] = torch.nan
    assert made._backend(batch) != "triton"


def test_an_unknown_word_makes_its_pairs_sums_nan():
    """The model itself raises IndexError on the CPU, where looking costs no waiting."""
    made, batch = model().freeze().to(DEVICE), pairs((3, 4, 2), (2, 2, 5)).to(DEVICE)

    def sums():
        ids, offsets = (batch.ids_a, batch.ids_b), (batch.offsets_a, batch.offsets_b)
        return kernel.sums(made.table, ids, offsets, made.compare_weight, made.compare_bias, 7)

    expected = sums()
    for unknown in (60, -1, 2**40):
        batch.ids_b[3] = unknown
        found = sums()
        assert found[1].isnan().all()
        assert torch.equal(found[[0, 2]], expected[[0, 2]])
