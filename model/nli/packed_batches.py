"""Batches of a corpus as `PairBatch`, in an order that a seed decides, without Python work for each example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..pair_batch import PairBatch
from .corpus import Corpus
from .places import places_of
from .vocabulary import Vocabulary

_BUCKETED = 50  # batches that are sorted by length together: enough for near-equal lengths, few enough to stay random


class LabelledPairs(NamedTuple):
    """A batch: pairs, what the model takes; labels (batch,) int64; rows (batch,), which of the corpus they are."""

    pairs: PairBatch
    labels: Tensor
    rows: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> LabelledPairs:
        """pairs and labels on a device; rows stay on the host."""
        labels = self.labels.to(device, non_blocking=non_blocking)
        return LabelledPairs(self.pairs.to(device, non_blocking=non_blocking), labels, self.rows)

    def pin_memory(self) -> LabelledPairs:
        """The same in page-locked memory."""
        return LabelledPairs(self.pairs.pin_memory(), self.labels.pin_memory(), self.rows)


class PackedBatches:
    """A corpus in batches, epoch after epoch.

    Args:
        corpus: the pairs. vocabulary: gives its words their ids; words that it lacks are <unk>.
        batch_size: pairs a batch; an epoch's last may be smaller.
        shuffle: whether each epoch has an order of its own, which seed and the epoch's number decide.
        bucketed: whether to keep pairs of like length together, in batches whose order stays random. Needs shuffle.
        max_tokens: cut sentences after so many tokens (d2l: 50). None: don't.
        first_token: an id that is put before each sentence (Parikh et al.'s NULL). None: nothing is.

    Raises:
        TypeError: batch_size or max_tokens is no int.
        ValueError: batch_size or max_tokens is not positive, or bucketed without shuffle.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        batch_size: int,
        *,
        shuffle: bool = True,
        bucketed: bool = False,
        seed: int = 0,
        max_tokens: int | None = None,
        first_token: int | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
            if value is None and name == "max_tokens":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, not {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}")
        if bucketed and not shuffle:
            raise ValueError("bucketed batches have no fixed order: they need shuffle=True")
        self.corpus, self.batch_size, self.seed = corpus, batch_size, seed
        self.shuffle, self.bucketed = shuffle, bucketed
        self.max_tokens, self.first_token = max_tokens, first_token
        # of each of the corpus' words
        self._ids = torch.tensor(vocabulary[corpus.words], dtype=torch.int64, device="cpu")

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self.corpus) // self.batch_size)

    def epoch(self, number: int = 0, start: int = 0) -> Iterator[LabelledPairs]:
        """The batches of an epoch, from the start-th on. The same seed and number give the same batches."""
        return map(self.batch, self.rows(number, start))

    def rows(self, number: int = 0, start: int = 0) -> Iterator[Tensor]:
        """The row numbers of an epoch's batches, (batch,) int64 each, from the start-th on."""
        order = self._order(number)
        first = range(0, len(order), self.batch_size)
        draw = np.random.default_rng((self.seed, number, 1))
        batches = draw.permutation(len(first)) if self.bucketed else np.arange(len(first))
        for batch in batches[start:].tolist():
            yield order[first[batch] : first[batch] + self.batch_size]

    def batch(self, rows: Tensor) -> LabelledPairs:
        """The pairs with these row numbers, (batch,) int64, in this order."""
        corpus = self.corpus
        ids_a, offsets_a, lengths_a = self._gathered(corpus.words_a, corpus.offsets_a, rows)
        ids_b, offsets_b, lengths_b = self._gathered(corpus.words_b, corpus.offsets_b, rows)
        pairs = PairBatch(ids_a, ids_b, offsets_a, offsets_b, lengths_a, lengths_b)
        return LabelledPairs(pairs, corpus.labels[rows].long(), rows)

    def _order(self, number: int) -> Tensor:
        """The rows in an epoch's order."""
        size = len(self.corpus)
        if not self.shuffle:
            return torch.arange(size, device="cpu")
        order = torch.from_numpy(np.random.default_rng((self.seed, number)).permutation(size))
        if not self.bucketed:
            return order
        tokens = (self.corpus.offsets_a.diff() + self.corpus.offsets_b.diff())[order]
        window = torch.arange(size, device="cpu") // (_BUCKETED * self.batch_size)
        return order[torch.argsort(window * (int(tokens.max()) + 1) + tokens, stable=True)]

    def _gathered(self, words: Tensor, offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, offsets and lengths of some of a side's sentences."""
        starts = offsets[rows]
        lengths = offsets[rows + 1] - starts
        if self.max_tokens is not None:
            lengths = lengths.clamp(max=self.max_tokens)
        extra = 0 if self.first_token is None else 1
        lengths = lengths + extra
        packed = torch.zeros(len(rows) + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(lengths, 0, out=packed[1:])
        places = torch.from_numpy(places_of((starts - extra).numpy(), lengths.numpy()))
        if self.first_token is None:
            ids = self._ids[words[places]]
        else:
            own = torch.ones(len(places), dtype=torch.bool, device="cpu")
            own[packed[:-1]] = False
            ids = torch.full((len(places),), self.first_token, device="cpu")
            ids[own] = self._ids[words[places[own]]]
        return ids, packed.int(), lengths.int()
