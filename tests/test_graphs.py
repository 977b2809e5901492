"""Batches filled up to a few sizes, and CUDA graphs of steps on them."""

import copy
from contextlib import nullcontext

import pytest
import torch
from coalign.model.graphs import GraphedInference, GraphedTraining, Size, fill, longest_pair, size_of
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from coalign import DecomposableAttention, PairBatch


def model():
    torch.manual_seed(0)
    return DecomposableAttention.from_sizes(60, 12, 20, dropout=0.0)


def pairs(lengths_a, lengths_b, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return PairBatch.from_lists(
        *(
            [torch.randint(60, (n,), generator=generator).tolist() for n in lengths]
            for lengths in (lengths_a, lengths_b)
        )
    )


def batches(count):
    """Of different sizes; the first two are filled up to the same one."""
    lengths = [((7, 3, 1), (2, 6, 1)), ((5, 3, 2), (2, 6, 2)), ((40, 3, 9, 2), (1, 30, 2, 8)), ((7, 0, 1), (0, 6, 1))]
    return [pairs(*lengths[k % 4], seed=k) for k in range(count)]


sentences = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), min_size=1, max_size=40)


@given(sentences)
def test_filled_batches_are_batches(lengths):
    """All that PairBatch's constructor demands holds, and the first pairs are the batch's."""
    batch = pairs(*zip(*lengths, strict=True))
    size = size_of(batch)
    assert size.tokens_a <= max(16, 1.25 * len(batch.ids_a))
    assert size.tokens_b <= max(16, 1.25 * len(batch.ids_b))
    filled = fill(batch, size)
    again = PairBatch(filled.ids_a, filled.ids_b, filled.offsets_a, filled.offsets_b)
    assert (len(again), len(again.ids_a), len(again.ids_b)) == size[:3]
    for side in "ab":
        assert torch.equal(getattr(again, f"lengths_{side}"), getattr(filled, f"lengths_{side}"))
        assert getattr(again, f"max_length_{side}") <= getattr(filled, f"max_length_{side}")
        for name in (f"ids_{side}", f"offsets_{side}", f"lengths_{side}"):
            own = getattr(batch, name)
            assert torch.equal(getattr(filled, name)[: len(own)], own)


def test_batches_of_one_size_may_have_pairs_for_different_kernels(recorder):
    """What a frozen model launches depends on its longest pair; a graph of one batch must not serve the other."""
    apart, together = pairs((40, 2), (2, 40)), pairs((40, 2), (40, 2))
    assert size_of(apart) == size_of(together)
    assert [longest_pair(fill(batch, size_of(batch))) for batch in (apart, together)] == [64, 128]
    assert [longest_pair(pairs((n,), (n,))) for n in (0, 1, 32, 33)] == [1, 2, 64, 128]
    infer = GraphedInference(model().eval())
    for batch, recorded in ((apart, 1), (together, 2), (apart, 2), (together, 2)):
        infer(batch)
        assert len(infer._graphs._recorded) == recorded


def test_ids_are_not_copied_to_those_of_another_type(recorder):
    """An unknown id of 64 bits may be a known one in 32."""
    infer, wide = GraphedInference(model().eval()), batches(1)[0]
    ids = (wide.ids_a, wide.ids_b)
    for count, (of_a, of_b) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)], 1):
        ids_a, ids_b = (t.int() if narrow else t for t, narrow in zip(ids, (of_a, of_b), strict=True))
        infer(PairBatch(ids_a, ids_b, wide.offsets_a, wide.offsets_b))
        assert len(infer._graphs._recorded) == count


def test_filling_makes_no_longer_pairs():
    """A frozen model has other kernels for those, or none."""
    draw = torch.Generator().manual_seed(0)
    lengths = [torch.randint(3, most, (256,), generator=draw).tolist() for most in (40, 22)]
    batch = pairs(*lengths)
    filled = fill(batch, size_of(batch))
    assert len(filled) > 256
    assert filled.most_tokens == batch.most_tokens


def test_there_are_few_sizes():
    """A hundred batches of 256 pairs of like lengths need but a few graphs."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.poisson(torch.tensor([15.0, 8.0]).expand(256, 2), generator).int().T.tolist() for _ in range(100)]
    assert len({size_of(pairs(*lengths)) for lengths in drawn}) <= 6


def test_filling_changes_neither_scores_nor_gradients():
    of, labels = model(), torch.tensor([0, 2, 1])
    for batch in batches(2):
        filled = fill(batch, size_of(batch))
        of.zero_grad()
        found = of(filled)
        torch.testing.assert_close(found[:3], of(batch))
        F.cross_entropy(found, F.pad(labels, (0, len(found) - 3), value=-100)).backward()
        gradients = [p.grad.clone() for p in of.parameters()]
        of.zero_grad()
        F.cross_entropy(of(batch), labels).backward()
        for gradient, p in zip(gradients, of.parameters(), strict=True):
            torch.testing.assert_close(gradient, p.grad)


def test_a_batch_that_is_too_large_is_refused():
    batch = pairs((7, 3, 1), (2, 6, 1))
    for size in (Size(3, 16, 16, 8, 8), Size(8, 10, 16, 8, 8), Size(8, 16, 16, 8, 4), Size(2, 11, 9, 8, 8)):
        with pytest.raises(ValueError, match="can't be filled up"):
            fill(batch, size)


def losses_and_scores(device, graphs):
    """Of some steps, with graphs or in plain PyTorch, and the trained model's scores."""
    of = model().to(device)
    optimizer = torch.optim.Adam(of.parameters(), lr=0.01, capturable=device == "cuda")
    step = GraphedTraining(of, optimizer, most=2)
    losses = []
    for batch in batches(12):
        batch = batch.to(device)
        labels = (torch.arange(len(batch)) % 3).to(device)
        if graphs:
            losses.append(step(batch, labels))
            continue
        optimizer.zero_grad()
        loss = F.cross_entropy(of(batch), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    infer = GraphedInference(of.eval(), most=2) if graphs else of
    with torch.no_grad():
        return torch.stack(losses).cpu(), [infer(batch.to(device)).cpu() for batch in batches(4)]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_steps_are_those_without_graphs(device):
    losses, scores = losses_and_scores(device, graphs=True)
    expected_losses, expected_scores = losses_and_scores(device, graphs=False)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-3, atol=1e-4)
    assert losses[8:].mean() < losses[:4].mean()
    for found, expected in zip(scores, expected_scores, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_frozen_models_replay():
    frozen = copy.deepcopy(model()).eval().freeze().to("cuda")
    infer = GraphedInference(frozen)
    for batch in batches(8):
        torch.testing.assert_close(infer(batch.to("cuda")), frozen(batch.to("cuda")))
    assert len(infer._graphs._recorded) < 8


def test_devices_must_agree():
    of = model().to("meta")
    with pytest.raises(ValueError, match="the batch must be on meta"):
        GraphedInference(of)(batches(1)[0])


class Recorder:
    """torch.cuda for recordings, without a GPU: what is recorded runs, what is replayed does not."""

    def __init__(self):
        self.log = []

    class Stream:
        def wait_stream(self, other):
            pass

    class CUDAGraph:
        def replay(self):
            pass

    def current_stream(self):
        return self.Stream()

    def graph_pool_handle(self):
        return 0

    def device(self, of):
        self.log.append(of)
        return nullcontext()

    def stream(self, of):
        return nullcontext()

    def graph(self, graph, pool, stream):
        assert isinstance(stream, self.Stream)
        return nullcontext()


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    for name in ("Stream", "CUDAGraph", "current_stream", "graph_pool_handle", "device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(made, name))
    monkeypatch.setattr("coalign.model.graphs._device", lambda *_: torch.device("cuda", 1))
    return made


def test_a_recording_is_made_on_the_batchs_device(recorder):
    infer, batch = GraphedInference(model()), batches(1)[0]
    infer(batch)
    assert recorder.log == [batch.device]


def test_modes_have_recordings_of_their_own(recorder):
    """A graph replays what was recorded, whatever the model says meanwhile."""
    seen = []

    class Model(torch.nn.Linear):
        def forward(self, X):
            seen.append((self.training, torch.is_autocast_enabled("cuda")))
            return torch.zeros(len(X), 3)

    of = Model(1, 1)
    infer, batch = GraphedInference(of), batches(1)[0]
    for _ in range(2):
        infer(batch)
        of.eval()
        infer(batch)
        torch.set_autocast_enabled("cuda", True)  # torch.autocast leaves it off where there is no GPU
        infer(batch)
        torch.set_autocast_enabled("cuda", False)
        of.train()
    recorded = [(True, False), (False, False), (False, True)]
    assert seen == [mode for mode in recorded for _ in range(2)]  # once to warm up, once recorded


def test_an_optimisers_numbers_have_recordings_of_their_own(recorder):
    rates = []

    class Optimizer(torch.optim.SGD):
        def step(self):
            rates.append(self.param_groups[0]["lr"])

    of = model()
    optimizer = Optimizer(of.parameters(), lr=0.1)
    step, batch, labels = GraphedTraining(of, optimizer), batches(1)[0], torch.tensor([0, 1, 2])
    for rate in (0.1, 0.1, 0.1, 0.01, 0.01, 0.1):
        optimizer.param_groups[0]["lr"] = rate
        step(batch, labels)
    assert rates == [0.1, 0.1, 0.01]  # the first step, and one recording for each rate
    scheduled = torch.tensor(0.1)
    optimizer.param_groups[0]["lr"] = scheduled
    for _ in range(3):
        scheduled *= 0.1
        step(batch, labels)
    assert len(rates) == 6  # one of the CPU is a number to PyTorch's kernels
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device="meta")  # as one of the GPU
    for _ in range(3):
        step(batch, labels)
    assert len(rates) == 7  # which the recording reads


def test_no_recording_makes_the_optimisers_state_or_writes_to_what_it_was(recorder):
    """State that is made while recording would be made again by every replay."""
    of = model()
    of.embedding.weight.requires_grad_(False)
    optimizer = torch.optim.Adam(of.parameters(), 0.01)
    step, batch, labels = GraphedTraining(of, optimizer), batches(1)[0], torch.tensor([0, 1, 2])
    recorded = step._graphs._recorded
    with pytest.raises(ValueError, match="batch_size"):
        step(batch, labels[:2])
    for count in (0, 1, 1):  # the step that failed has made no state
        step(batch, labels)
        assert len(recorded) == count
    of.embedding.weight.requires_grad_(True)
    for count in (1, 2):
        step(batch, labels)
        assert len(recorded) == count
    assert len(optimizer.state) == len(list(of.parameters()))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(batch, labels)
    assert len(recorded) == 3


def test_a_recording_has_its_own_weights_in_half_precision(recorder, monkeypatch):
    """A caller's autocast forgets those that it has once it ends."""
    cleared = []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: cleared.append(len(seen)))
    seen = []

    class Model(torch.nn.Linear):
        def forward(self, X):
            seen.append(X)
            return torch.zeros(len(X), 3)

    GraphedInference(Model(1, 1))(batches(1)[0])
    assert cleared == [1, 2]  # between warming up and recording, and after it


def test_inference_mode_may_come_and_go(recorder):
    infer, batch = GraphedInference(model().eval()), batches(1)[0]
    with torch.inference_mode():
        infer(batch)
    infer(batch)


def test_pairs_that_fill_a_batch_have_labels_that_losses_leave_out(recorder):
    seen = []

    def loss(scores, labels):
        seen.append(labels.tolist())
        return F.cross_entropy(scores, labels)

    of = model()
    step = GraphedTraining(of, torch.optim.SGD(of.parameters(), 0.1), loss)
    for _ in range(2):
        step(batches(1)[0], torch.tensor([0, 1, 2]))
    assert seen == [[0, 1, 2], *[[0, 1, 2, torch.nn.CrossEntropyLoss().ignore_index]] * 2]


def test_no_more_sizes_are_recorded_than_asked_for(recorder):
    infer = GraphedInference(model().eval(), most=1)
    for lengths in ((3, 2), (300, 200), (3, 2)):
        assert infer(pairs(lengths, lengths)).shape == (2, 3)
    assert len(infer._graphs._recorded) == 1


def test_float64_stays_so():
    made, seen = model().double(), []

    def loss(scores, labels):
        seen.append(scores.dtype)
        return F.cross_entropy(scores, labels)

    step = GraphedTraining(made, torch.optim.SGD(made.parameters(), 0.1), loss)
    assert step(pairs((3, 2), (2, 4)), torch.tensor([0, 2])).dtype == torch.float64
    assert set(seen) == {torch.float64}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_the_model_runs_in_the_type_asked_for_and_the_loss_in_float32(recorder, dtype):
    seen = []

    class Model(torch.nn.Linear):
        def forward(self, X):
            found = super().forward(torch.ones(len(X), 1))
            seen.append(found.dtype)
            return found

    def loss(scores, labels):
        seen.append((scores.dtype, torch.is_autocast_enabled("cpu")))
        return F.cross_entropy(scores, labels)

    of = Model(1, 3)
    step = GraphedTraining(of, torch.optim.SGD(of.parameters(), 0.1), loss, autocast=dtype)
    for _ in range(2):
        step(batches(1)[0], torch.tensor([0, 1, 2]))
    assert seen == [dtype or torch.float32, (torch.float32, False)] * 3  # a plain step, one to warm up, one recorded
