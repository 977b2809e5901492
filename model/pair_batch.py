"""Batches of pairs of sentences without padding: token ids one after another, and where each sentence begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from .masks import as_mask, check_dtype, check_mask, of_both
from .segments import offsets_of

Ids = Sequence[Sequence[int]]
IDS = (torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Pairs of sentences as packed token ids: what `DecomposableAttention` takes beside padded tensors.

    Sentence p of side a is ids_a[offsets_a[p] : offsets_a[p + 1]], as in `coalign.soft_align_packed`. Every id is a
    token, <pad> too. `from_lists`, `from_lengths` and `from_padded` build one.

    Args:
        ids_a: (total_a,), ids_b: (total_b,): token ids of premises and hypotheses, int32 or int64.
        offsets_a, offsets_b: (pairs + 1,) int32, on the ids' device: from 0, never falling, up to the total.
        lengths_a, lengths_b: (pairs,) int32, on the host, and there they stay. Left out, they are taken from the
            offsets, for which a GPU must be waited for.
        max_length_a, max_length_b: of the longest premise and hypothesis, or more. Left out, they are taken from the
            lengths.

    Raises:
        TypeError, ValueError: naming the argument and what was expected of it.
    """

    ids_a: Tensor
    ids_b: Tensor
    offsets_a: Tensor
    offsets_b: Tensor
    lengths_a: Tensor = None  # type: ignore[assignment]  # never None once made
    lengths_b: Tensor = None  # type: ignore[assignment]
    max_length_a: int = None  # type: ignore[assignment]
    max_length_b: int = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for letter in "ab":
            lengths = _checked_lengths(letter, self, getattr(self, f"lengths_{letter}"))
            object.__setattr__(self, f"lengths_{letter}", lengths)
            given, longest = getattr(self, f"max_length_{letter}"), _longest(lengths)
            if given is not None and type(given) is not int:
                raise TypeError(f"max_length_{letter} must be an int, not {type(given).__name__}")
            if given is not None and given < longest:
                raise ValueError(f"max_length_{letter} must be {longest} or more, of the longest sentence, not {given}")
            object.__setattr__(self, f"max_length_{letter}", longest if given is None else given)
        if self.offsets_a.shape != self.offsets_b.shape:
            raise ValueError(
                "offsets_a and offsets_b must describe the same number of pairs; they have "
                f"{self.offsets_a.shape[0]} and {self.offsets_b.shape[0]} entries"
            )
        _check_devices(self.ids_a, self.ids_b)

    @classmethod
    def from_lists(cls, premises: Ids, hypotheses: Ids) -> PairBatch:
        """From as many lists of token ids for each side; lists may be empty.

        Raises:
            TypeError: ids that are no integers. ValueError: not as many hypotheses as premises.
        """
        if len(premises) != len(hypotheses):
            raise ValueError(f"there are {len(premises)} premises, but {len(hypotheses)} hypotheses")
        ids_a, lengths_a = _joined("premises", premises)
        ids_b, lengths_b = _joined("hypotheses", hypotheses)
        return cls.from_lengths(ids_a, ids_b, lengths_a, lengths_b)

    @classmethod
    def from_lengths(cls, ids_a: Tensor, ids_b: Tensor, lengths_a: Tensor, lengths_b: Tensor) -> PairBatch:
        """From each side's ids, (total,) on the host, and how many each sentence has, (pairs,) int32.

        Raises:
            TypeError, ValueError: as the class.
        """
        for name, t in (("lengths_a", lengths_a), ("lengths_b", lengths_b)):
            check_dtype(name, t, (torch.int32,))
        return cls(ids_a, ids_b, _offsets(lengths_a), _offsets(lengths_b), lengths_a, lengths_b)

    @classmethod
    def from_padded(
        cls,
        premises: Tensor,
        hypotheses: Tensor,
        *,
        masks: tuple[Tensor | None, Tensor | None] | None = None,
        lengths: tuple[Tensor | None, Tensor | None] | None = None,
        padding_idx: int | None = None,
    ) -> PairBatch:
        """From padded ids (batch, m) and (batch, n), on their device; a GPU is waited for, to learn the totals.

        Args:
            masks: for each side (batch, length) bool, True for a token, or None.
            lengths: for each side (batch,) int32 or int64, or None. A side takes a mask or lengths, not both.
            padding_idx: on a side with neither, the id that is padding, wherever it stands. None: all are tokens.

        Raises:
            TypeError, ValueError: ids, masks or lengths of the wrong kind, shape or value.
        """
        if len(premises) != len(hypotheses):
            raise ValueError(f"there are {len(premises)} premises, but {len(hypotheses)} hypotheses")
        (mask_a, mask_b), (lengths_a, lengths_b) = of_both("masks", masks), of_both("lengths", lengths)
        ids_a, counts_a = _unpadded("a", "premises", premises, mask_a, lengths_a, padding_idx)
        ids_b, counts_b = _unpadded("b", "hypotheses", hypotheses, mask_b, lengths_b, padding_idx)
        _check_devices(ids_a, ids_b)
        offsets_a, offsets_b = (_offsets(t).to(ids_a.device) for t in (counts_a, counts_b))
        return cls.unchecked(
            ids_a=ids_a,
            ids_b=ids_b,
            offsets_a=offsets_a,
            offsets_b=offsets_b,
            lengths_a=counts_a,
            lengths_b=counts_b,
            max_length_a=_longest(counts_a),
            max_length_b=_longest(counts_b),
        )

    @staticmethod
    def unchecked(**values: Tensor | int) -> PairBatch:
        """From all fields by name, for those who know that they fit: nothing is looked at, no GPU is waited for."""
        made = object.__new__(PairBatch)
        for own in fields(PairBatch):
            object.__setattr__(made, own.name, values[own.name])
        return made

    def __len__(self) -> int:
        """How many pairs."""
        return self.offsets_a.shape[0] - 1

    @property
    def most_tokens(self) -> int:
        """Of the pair that has most, both sides together; lengths are on the CPU, so nothing is waited for."""
        return int((self.lengths_a + self.lengths_b).max()) if len(self) else 0

    @property
    def device(self) -> torch.device:
        """Where ids and offsets are."""
        return self.ids_a.device

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PairBatch:
        """The batch on a device; lengths stay on the host. Nothing is checked again, and no GPU is waited for."""
        names, device = ("ids_a", "ids_b", "offsets_a", "offsets_b"), torch.device(device)  # no dtype
        return self._with({name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names})

    def pin_memory(self) -> PairBatch:
        """The batch in page-locked memory, from which `to(device, non_blocking=True)` copies in the background."""
        names = ("ids_a", "ids_b", "offsets_a", "offsets_b")
        return self._with({name: getattr(self, name).pin_memory() for name in names})

    def padded(self, padding_idx: int) -> tuple[Tensor, Tensor]:
        """The ids as (pairs, max_length_a) and (pairs, max_length_b), with padding_idx after each sentence's end."""
        sides = ((self.ids_a, self.offsets_a, self.max_length_a), (self.ids_b, self.offsets_b, self.max_length_b))
        premises, hypotheses = (_padded(ids, offsets, longest, padding_idx) for ids, offsets, longest in sides)
        return premises, hypotheses

    def _with(self, changes: dict[str, Tensor]) -> PairBatch:
        return PairBatch.unchecked(**{own.name: changes.get(own.name, getattr(self, own.name)) for own in fields(self)})


def _checked_lengths(letter: str, batch: PairBatch, given: Tensor | None) -> Tensor:
    """The lengths of a side, once its ids and offsets are what they must be."""
    ids, offsets = getattr(batch, f"ids_{letter}"), getattr(batch, f"offsets_{letter}")
    for name, t, dtypes in ((f"ids_{letter}", ids, IDS), (f"offsets_{letter}", offsets, (torch.int32,))):
        check_dtype(name, t, dtypes)
        if t.ndim != 1:
            raise ValueError(f"{name} must have one dimension, not the shape {tuple(t.shape)}")
    if ids.device != offsets.device:
        raise ValueError(f"offsets_{letter} must be on {ids.device}, like ids_{letter}, not on {offsets.device}")
    if len(offsets) < 1:
        raise ValueError(f"offsets_{letter} must be (pairs + 1,), not (0,)")
    lengths = offsets.diff().cpu() if given is None else given
    if not isinstance(lengths, Tensor) or lengths.dtype != torch.int32 or lengths.device.type != "cpu":
        raise TypeError(f"lengths_{letter} must be an int32 tensor on the CPU")
    if lengths.shape != (len(offsets) - 1,):
        raise ValueError(f"lengths_{letter} must be ({len(offsets) - 1},), not {tuple(lengths.shape)}")
    first = 0 if offsets.device.type != "cpu" else int(offsets[0])
    if first or (lengths < 0).any() or int(lengths.sum()) != len(ids):
        raise ValueError(
            f"offsets_{letter} must start at 0, never fall, and end at {len(ids)}, the number of ids; found a start "
            f"of {first}, a smallest step of {int(lengths.min()) if len(lengths) else 0} and steps that add up to "
            f"{int(lengths.sum())}"
        )
    if given is not None and offsets.device.type == "cpu" and not torch.equal(offsets.diff(), given):
        raise ValueError(f"lengths_{letter} must be the differences of offsets_{letter}")
    return lengths


def _check_devices(ids_a: Tensor, ids_b: Tensor) -> None:
    if ids_a.device != ids_b.device:
        raise ValueError(f"ids_b must be on {ids_a.device}, like ids_a, not on {ids_b.device}")


def _longest(lengths: Tensor) -> int:
    return int(lengths.max()) if lengths.numel() else 0


def _offsets(lengths: Tensor) -> Tensor:
    """(sentences + 1,) int32 from lengths."""
    if int(lengths.sum()) >= 2**31:
        raise ValueError(f"a batch can hold at most 2^31 - 1 tokens a side, not {int(lengths.sum())}")
    return offsets_of(lengths)


def _joined(name: str, sentences: Ids) -> tuple[Tensor, Tensor]:
    """All ids of lists one after another, int64, and the lists' lengths."""
    try:
        lengths = np.fromiter(map(len, sentences), dtype=np.int32, count=len(sentences))
        ids = np.array(list(chain.from_iterable(sentences)), dtype=None if lengths.any() else np.int64)
    except (TypeError, ValueError) as error:  # ids where lists should be; lists where ids should be
        raise TypeError(f"{name} must be lists of integer token ids: {error}") from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or (ids.dtype == np.uint64 and (ids > np.iinfo(np.int64).max).any()):
        raise TypeError(
            f"{name} must be lists of integer token ids; found {ids.dtype} in {max(ids.ndim, 1)} dimensions"
        )
    return torch.from_numpy(ids.astype(np.int64, copy=False)), torch.from_numpy(lengths)


def _unpadded(
    side: str, name: str, ids: Tensor, mask: Tensor | None, lengths: Tensor | None, padding_idx: int | None
) -> tuple[Tensor, Tensor]:
    """A side's tokens one after another, and how many each sentence has, on the host."""
    check_dtype(name, ids, IDS)
    if ids.ndim != 2:
        raise ValueError(f"{name} must be (batch, length), not {tuple(ids.shape)}")
    if mask is None and lengths is None and padding_idx is not None:
        mask = ids != padding_idx
    if isinstance(lengths, Tensor) and not lengths.is_cpu:
        check_mask(side, ids, mask, lengths.cpu())  # their values too: the device is waited for in any case
    keep = as_mask(side, ids.unsqueeze(-1), mask, lengths)
    if keep is None:
        return ids.reshape(-1), torch.full((ids.shape[0],), ids.shape[1], dtype=torch.int32, device="cpu")
    return ids[keep], keep.sum(1, dtype=torch.int32).cpu()


def _padded(ids: Tensor, offsets: Tensor, longest: int, padding_idx: int) -> Tensor:
    place = torch.arange(longest, device=ids.device)
    keep = place < offsets.diff().unsqueeze(-1)
    padded = ids.new_full(keep.shape, padding_idx)
    return padded.masked_scatter(keep, ids)
