"""Token ids as a model takes them: checked, and with them what says which positions are tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.ops import unobserved
from .masks import of_both
from .pair_batch import PairBatch
from .segments import offsets_of

Pair = tuple[Tensor | None, Tensor | None]


def check_ids(name: str, ids: object, vocabulary: int | None, *, ndim: int = 2, values: bool = True) -> None:
    """Hold ids against what they must be: integers, ndim dimensions, and on the CPU inside the vocabulary.

    vocabulary: how many words there are, where that is known. values: whether the ids themselves are looked at.

    Raises:
        TypeError, ValueError, IndexError: naming the side and what was found.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be a tensor of token ids, not {type(ids).__name__}")
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int32 or int64 token ids, not {ids.dtype}")
    if ids.ndim != ndim:
        raise ValueError(f"{name} must be (batch, length), not {tuple(ids.shape)}")
    if not values or vocabulary is None or not unobserved((ids,)) or ids.device.type != "cpu" or ids.numel() == 0:
        return  # a tracer's or a transform's ids have no values
    least, most = (int(v) for v in ids.aminmax())
    if least < 0 or most >= vocabulary:
        raise IndexError(f"{name} has token id {least if least < 0 else most}, outside the vocabulary of {vocabulary}")


def padded_pair(
    X: tuple[Tensor, Tensor] | PairBatch,
    masks: Pair | None,
    lengths: Pair | None,
    padding_idx: int | None,
    vocabulary: int | None,
    *,
    values: bool = True,
) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    """Premises and hypotheses, checked, and their masks and lengths by the names that the layers give them.

    Without any mask or lengths, what is not padding_idx is a token. A `PairBatch` is padded for it; it has lengths.
    """
    if isinstance(X, PairBatch):
        lengths, X = (X.offsets_a.diff(), X.offsets_b.diff()), X.padded(0)
    try:
        premises, hypotheses = X
    except (TypeError, ValueError):
        what = f"{len(X)} of them" if isinstance(X, (tuple, list)) else type(X).__name__
        raise TypeError(f"the model takes a PairBatch or a pair, premises and hypotheses, not {what}") from None
    check_ids("premises", premises, vocabulary, values=values)
    check_ids("hypotheses", hypotheses, vocabulary, values=values)
    if premises.shape[0] != hypotheses.shape[0]:
        raise ValueError(
            "premises and hypotheses must be the same number of sentences; "
            f"they are {tuple(premises.shape)} and {tuple(hypotheses.shape)}"
        )
    (mask_a, mask_b), (lengths_a, lengths_b) = of_both("masks", masks), of_both("lengths", lengths)
    if padding_idx is not None and all(t is None for t in (mask_a, mask_b, lengths_a, lengths_b)):
        mask_a, mask_b = premises != padding_idx, hypotheses != padding_idx
    extents = {"mask_a": mask_a, "mask_b": mask_b, "lengths_a": lengths_a, "lengths_b": lengths_b}
    return premises, hypotheses, extents


def tokens_first(ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The tokens of padded ids (batch, length), one sentence after another, and int32 offsets (batch + 1,).

    A GPU is not waited for to learn how many there are: as many ids as there were places, those of padding last.
    mask: (batch, length) bool, True for a token; None: all are.
    """
    sentences, length = ids.shape
    if mask is None:
        return ids.reshape(-1), torch.arange(sentences + 1, dtype=torch.int32, device=ids.device) * length
    kept = mask.reshape(-1)
    tokens = kept.cumsum(0)  # up to and with each place
    padding = torch.arange(1, kept.shape[0] + 1, device=ids.device) - tokens
    place = torch.where(kept, tokens - 1, kept.shape[0] - padding)
    return ids.new_empty(kept.shape[0]).scatter_(0, place, ids.reshape(-1)), offsets_of(mask.sum(1))
