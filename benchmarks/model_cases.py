"""What is measured of the whole model: d2l's own, restated here, and coalign's on the same sentences.

Sentences have the lengths of SNLI's and words drawn by Zipf's law from a vocabulary of SNLI's size; sizes are d2l's,
weights random (`trained` has others). d2l's model knows no masks: it is given sentences padded to 50 tokens, as the
book does it, or to the batch's longest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from coalign import DecomposableAttention, PairBatch

from .cases import snli_lengths

VOCABULARY, LONGEST, PAD = 18_000, 50, 1
SETS = 4  # of sentences, that rotate
BASELINE, TO_LONGEST, COMPILED = "d2l, padded to 50", "d2l, padded to the longest", "torch.compile, padded to 50"


class ModelCase(NamedTuple):
    """So many pairs of sentences through the model, or a training step on them."""

    name: str
    pairs: int
    trains: bool = False


CASES = {
    "cpu": [
        ModelCase("inference", 256),
        ModelCase("one pair", 1),
        ModelCase("training step", 256, trains=True),
    ],
    "cuda": [  # the most important ones first
        ModelCase("inference, 8192 pairs", 8192),
        ModelCase("training step", 256, trains=True),
        ModelCase("training step, 4096 pairs", 4096, trains=True),
        ModelCase("inference", 256),
        ModelCase("one pair", 1),
    ],
}

# What the project has set itself: on a CPU the baseline's time in units of the contender's, on a GPU the fastest
# peer's.
TARGETS = {
    "cpu": {
        ("inference", "packed"): 6.0,
        ("inference", "packed, bfloat16"): 11.0,
        ("inference", "frozen"): 24.0,
        ("inference", "frozen, bfloat16"): 40.0,
        ("one pair", "frozen"): 6.0,
        ("training step", "packed"): 8.5,
        ("training step", "packed, autocast"): 9.0,
    },
    "cuda": {
        ("inference, 8192 pairs", "frozen, bfloat16"): 20.0,
        ("training step", "packed, autocast"): 10.0,
        ("training step, 4096 pairs", "packed, autocast"): 10.0,
    },
}


class Book(nn.Module):
    """d2l's model, in the book's terms."""

    def __init__(self, vocabulary: int = VOCABULARY, embed: int = 100, hiddens: int = 200) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embed)
        self.attend, self.compare, self.aggregate = nn.Module(), nn.Module(), nn.Module()
        self.attend.f = _mlp(embed, hiddens, False)
        self.compare.g = _mlp(2 * embed, hiddens, False)
        self.aggregate.h = _mlp(2 * hiddens, hiddens, True)
        self.aggregate.linear = nn.Linear(hiddens, 3)

    def forward(self, X: tuple[Tensor, Tensor]) -> Tensor:
        A, B = (self.embedding(ids) for ids in X)
        e = torch.bmm(self.attend.f(A), self.attend.f(B).permute(0, 2, 1))
        beta = torch.bmm(torch.softmax(e, dim=-1), B)
        alpha = torch.bmm(torch.softmax(e.permute(0, 2, 1), dim=-1), A)
        V_A = self.compare.g(torch.cat([A, beta], dim=2)).sum(dim=1)
        V_B = self.compare.g(torch.cat([B, alpha], dim=2)).sum(dim=1)
        return self.aggregate.linear(self.aggregate.h(torch.cat([V_A, V_B], dim=1)))


def _mlp(inputs: int, hiddens: int, flatten: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, hiddens):
        layers += [nn.Dropout(0.2), nn.Linear(width, hiddens), nn.ReLU()] + [nn.Flatten(1)] * flatten
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Batch:
    """The same pairs in every form, and labels."""

    packed: PairBatch
    to_fifty: tuple[Tensor, Tensor]
    to_longest: tuple[Tensor, Tensor]
    labels: Tensor

    @property
    def device(self) -> str:
        return self.labels.device.type

    def to(self, device: str) -> Batch:
        fifty, longest = (tuple(ids.to(device) for ids in form) for form in (self.to_fifty, self.to_longest))
        return Batch(self.packed.to(device), fifty, longest, self.labels.to(device))


class Subject(NamedTuple):
    """Weights, and batches of sentences to give them. about: what a result says of the weights."""

    book: Book
    batches: list[Batch]
    about: str = "random"


def random_subject(case: ModelCase) -> Subject:
    """Weights as PyTorch draws them, and sentences of random words."""
    torch.manual_seed(0)
    return Subject(Book().eval(), [make_batch(case.pairs, seed) for seed in range(SETS)])


def make_batch(pairs: int, seed: int) -> Batch:
    """Sentences of random words."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        drawn = (VOCABULARY - 2) ** torch.rand(count, generator=generator)  # density 1 / id
        return (drawn.long() + 1).clamp(2, VOCABULARY - 1).tolist()

    lengths = snli_lengths(pairs, LONGEST, LONGEST, seed)
    packed = PairBatch.from_lists(*([words(int(n)) for n in side] for side in lengths))
    return in_every_form(packed, torch.randint(3, (pairs,), generator=generator))


def in_every_form(packed: PairBatch, labels: Tensor) -> Batch:
    """A batch of pairs of at most LONGEST tokens each."""
    longest = packed.padded(PAD)
    a, b = (nn.functional.pad(ids, (0, LONGEST - ids.shape[1]), value=PAD) for ids in longest)
    return Batch(packed, (a, b), longest, labels)


@dataclass(frozen=True)
class Contender:
    """A model in evaluation mode, the form of its input, and its context while it trains or infers.

    masked: whether its scores should be those of sentences without padding. budget: the relative error they may have.
    peer: what coalign is compared with.
    """

    model: nn.Module
    form: Callable[[Batch], object]
    masked: bool = True
    autocast: bool = False
    budget: float = 1e-5
    peer: bool = False

    def scores(self, batch: Batch) -> Tensor:
        with torch.autocast(batch.device, torch.bfloat16, enabled=self.autocast):
            return self.model(self.form(batch))


def contenders(case: ModelCase, book: Book, compiled: bool = True) -> dict[str, Contender]:
    """By name, all with the parameters of `book` and on its device; each has a copy of its own.

    The peers run in half precision too; on a GPU float32 is TF32.
    """
    on_gpu = book.embedding.weight.is_cuda
    exact, half = (1e-2 if on_gpu else 1e-5), 5e-2

    def fifty(batch: Batch) -> object:
        return batch.to_fifty

    def longest(batch: Batch) -> object:
        return batch.to_longest

    def packed(batch: Batch) -> object:
        return batch.packed

    found = {
        BASELINE: Contender(copy.deepcopy(book), fifty, masked=False, peer=True),
        TO_LONGEST: Contender(copy.deepcopy(book), longest, masked=False, peer=True),
    }
    if compiled:
        found[COMPILED] = Contender(torch.compile(copy.deepcopy(book), dynamic=False), fifty, masked=False, peer=True)
    for name, peer in list(found.items()):
        if case.trains:
            found[f"{name}, autocast"] = replace(peer, model=copy.deepcopy(peer.model), autocast=True)
        else:
            found[f"{name}, bfloat16"] = replace(peer, model=copy.deepcopy(peer.model).bfloat16())
    if not on_gpu:  # d2l's own numbers, to which padding adds
        found["unmasked, padded to 50"] = Contender(ours(book, masked=False), fifty, masked=False)
    found["packed"] = Contender(ours(book), packed)
    if case.trains:
        found["packed, autocast"] = Contender(ours(book), packed, autocast=True)
    else:
        if case.pairs > 1:
            found["padded to 50"] = Contender(ours(book), fifty)
            found["packed, bfloat16"] = Contender(ours(book).bfloat16(), packed)
        found["frozen"] = Contender(ours(book).freeze(), packed)
        found["frozen, padded to 50"] = Contender(ours(book).freeze(), fifty)
        found["frozen, bfloat16"] = Contender(ours(book).freeze(torch.bfloat16), packed)
        if not on_gpu:
            found["frozen, unmasked, padded to 50"] = Contender(ours(book, masked=False).freeze(), fifty, masked=False)
    in_half = ("autocast", "bfloat16")
    return {name: replace(of, budget=half if name.endswith(in_half) else exact) for name, of in found.items()}


def ours(book: Book, masked: bool = True) -> DecomposableAttention:
    """coalign's model with the book's parameters, in evaluation mode."""
    vocabulary, embed = book.embedding.weight.shape
    hiddens = book.aggregate.linear.in_features
    padding_idx = PAD if masked else None
    model = DecomposableAttention.from_sizes(vocabulary, embed, hiddens, padding_idx=padding_idx)
    model.load_state_dict(book.state_dict())
    return model.to(book.embedding.weight.device).eval()
