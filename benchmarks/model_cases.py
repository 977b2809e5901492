"""What is measured of the whole model: d2l's own, restated here, and coalign's on the same sentences.

Sentences have the lengths of SNLI's and words drawn by Zipf's law from a vocabulary of SNLI's size; sizes are d2l's.
d2l's model knows no masks: it is given sentences padded to 50 tokens, as the book does it, or to the batch's longest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coalign import DecomposableAttention, PairBatch

from .cases import snli_lengths

VOCABULARY, LONGEST, PAD = 18_000, 50, 1
BASELINE = "d2l, padded to 50"

# The ratios to the baseline that the project has set itself.
TARGETS = {
    ("inference", "packed"): 6.0,
    ("inference", "packed, bfloat16"): 11.0,
    ("inference", "frozen"): 24.0,
    ("inference", "frozen, bfloat16"): 40.0,
    ("one pair", "frozen"): 6.0,
    ("training step", "packed"): 8.5,
    ("training step", "packed, autocast"): 9.0,
}
CASES = {"inference": 256, "one pair": 1, "training step": 256}  # pairs in a batch


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


def make_batch(pairs: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        drawn = (VOCABULARY - 2) ** torch.rand(count, generator=generator)  # density 1 / id
        return (drawn.long() + 1).clamp(2, VOCABULARY - 1).tolist()

    lengths = snli_lengths(pairs, LONGEST, LONGEST, seed)
    packed = PairBatch.from_lists(*([words(int(n)) for n in side] for side in lengths))
    longest = packed.padded(PAD)
    a, b = (nn.functional.pad(ids, (0, LONGEST - ids.shape[1]), value=PAD) for ids in longest)
    return Batch(packed, (a, b), longest, torch.randint(3, (pairs,), generator=generator))


@dataclass(frozen=True)
class Contender:
    """A model in evaluation mode, the form of its input, and its context while it trains or infers.

    masked: whether its scores should be those of sentences without padding. budget: the relative error they may have.
    """

    model: nn.Module
    form: Callable[[Batch], object]
    masked: bool = True
    autocast: bool = False
    budget: float = 1e-5

    def scores(self, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return self.model(self.form(batch))


def contenders(case: str, book: Book, compiled: bool = True) -> dict[str, Contender]:
    """By name, all with the parameters of `book`; each has a copy of its own."""

    def fifty(batch: Batch) -> object:
        return batch.to_fifty

    def longest(batch: Batch) -> object:
        return batch.to_longest

    def packed(batch: Batch) -> object:
        return batch.packed

    found = {
        BASELINE: Contender(copy.deepcopy(book), fifty, masked=False),
        "d2l, padded to the longest": Contender(copy.deepcopy(book), longest, masked=False),
    }
    if compiled:
        made = torch.compile(copy.deepcopy(book), dynamic=False)
        found["torch.compile, padded to 50"] = Contender(made, fifty, masked=False)
    found["packed"] = Contender(ours(book), packed)
    if case == "training step":
        found["packed, autocast"] = Contender(ours(book), packed, autocast=True, budget=5e-2)
        return found
    if case == "inference":
        found["padded to 50"] = Contender(ours(book), fifty)
        found["packed, bfloat16"] = Contender(ours(book).bfloat16(), packed, budget=5e-2)
    found["frozen"] = Contender(ours(book).freeze(), packed)
    found["frozen, padded to 50"] = Contender(ours(book).freeze(), fifty)
    found["frozen, bfloat16"] = Contender(ours(book).freeze(torch.bfloat16), packed, budget=5e-2)
    return found


def ours(book: Book, masked: bool = True) -> DecomposableAttention:
    """coalign's model with the book's parameters, in evaluation mode."""
    vocabulary, embed = book.embedding.weight.shape
    hiddens = book.aggregate.linear.in_features
    padding_idx = PAD if masked else None
    model = DecomposableAttention.from_sizes(vocabulary, embed, hiddens, padding_idx=padding_idx)
    model.load_state_dict(book.state_dict())
    return model.eval()
