"""Batches of pairs as padded tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .pairs import Pair
from .vocabulary import Vocabulary


class Batch(NamedTuple):
    """premises (batch, m), hypotheses (batch, n): token ids, padded to the longest of each; how many of them
    are tokens, (batch,) for each side; and the labels, (batch,). All int64.
    """

    premises: Tensor
    hypotheses: Tensor
    lengths: tuple[Tensor, Tensor]
    labels: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """All of it on a device."""
        lengths_a, lengths_b = (t.to(device) for t in self.lengths)
        return Batch(
            self.premises.to(device), self.hypotheses.to(device), (lengths_a, lengths_b), self.labels.to(device)
        )


def batches(pairs: Sequence[Pair], vocabulary: Vocabulary, batch_size: int) -> Iterator[Batch]:
    """The pairs in their order, so many at a time; the last batch may be smaller.

    Raises:
        ValueError: batch_size is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    for start in range(0, len(pairs), batch_size):
        some = pairs[start : start + batch_size]
        premises, lengths_a = _padded([vocabulary[pair.premise] for pair in some], vocabulary.padding)
        hypotheses, lengths_b = _padded([vocabulary[pair.hypothesis] for pair in some], vocabulary.padding)
        labels = torch.tensor([pair.label for pair in some], device="cpu")
        yield Batch(premises, hypotheses, (lengths_a, lengths_b), labels)


def _padded(sentences: list[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    """(sentences, longest) ids, and the lengths."""
    lengths = torch.tensor([len(s) for s in sentences], device="cpu")
    ids = torch.full((len(sentences), int(lengths.max())), padding, device="cpu")
    ids[torch.arange(ids.shape[1], device="cpu") < lengths[:, None]] = torch.tensor(
        [i for s in sentences for i in s], dtype=ids.dtype, device="cpu"
    )
    return ids, lengths
