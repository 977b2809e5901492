"""Texts as a model takes them, read as the settings say that it was trained with."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..pair_batch import PairBatch
from .places import places_of
from .settings import NULL, Settings
from .tokens import tokenizer
from .vocabulary import Vocabulary


class PairReader:
    """Pairs of texts to batches. It can be pickled.

    Args:
        settings: lower-casing, tokens, the cut and NULL are theirs. vocabulary: gives the ids.
    """

    def __init__(self, settings: Settings, vocabulary: Vocabulary) -> None:
        self.settings, self.vocabulary = settings, vocabulary
        self._set_up()

    def batch(self, premises: Sequence[str], hypotheses: Sequence[str]) -> PairBatch:
        """The texts as the model takes them, on the host.

        Raises:
            TypeError: what is no text. ValueError: not as many hypotheses as premises.
        """
        ids_a, lengths_a = self._ids("premises", premises)
        ids_b, lengths_b = self._ids("hypotheses", hypotheses)
        if len(lengths_a) != len(lengths_b):
            raise ValueError(f"there are {len(lengths_a)} premises, but {len(lengths_b)} hypotheses")
        return PairBatch.from_lengths(ids_a, ids_b, lengths_a, lengths_b)

    def words(self, text: str) -> list[str]:
        """A text's tokens: cut where the settings cut, after NULL where they put it."""
        words = self._tokens(text)
        if 0 < self._most < len(words):
            words = words[: self._most]
        return [NULL, *words] if self._null else words

    def cut(self, text: str) -> int:
        """How many of its tokens `words` leaves out at its end."""
        return max(0, len(self._tokens(text)) - self._most) if self._most > 0 else 0

    def _ids(self, name: str, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """A side's ids and lengths. A text that comes again, as a premise of several hypotheses does, is read once."""
        if isinstance(texts, str):
            raise TypeError(f"{name} must be a sequence of texts, not one text")
        if not hasattr(texts, "__len__"):
            texts = list(texts)  # they are gone through twice
        if not all(issubclass(kind, str) for kind in set(map(type, texts))):
            place, what = next((i, t) for i, t in enumerate(texts) if not isinstance(t, str))
            raise TypeError(f"{name}[{place}] must be a text, not {type(what).__name__}")
        places: dict[str, int] = {}
        which = [places.setdefault(text, len(places)) for text in texts]
        ids, lengths = self._read(places)
        if len(places) < len(which):
            starts, chosen = lengths.cumsum() - lengths, np.array(which)
            lengths = lengths[chosen]
            ids = ids[places_of(starts[chosen], lengths)]
        return torch.from_numpy(ids), torch.from_numpy(lengths)

    def _read(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and lengths. No sentence's words outlive it, so that the next one's take the same memory."""
        lengths = array("i")

        def sentences() -> Iterator[list[str]]:
            for words in map(self.words, texts):
                lengths.append(len(words))
                yield words

        ids = self.vocabulary.stream(chain.from_iterable(sentences()))
        return ids, np.array(lengths, dtype=np.int32)

    def _set_up(self) -> None:
        self._tokens = tokenizer(self.settings.tokens, self.settings.lower)
        self._most, self._null = self.settings.max_tokens, self.settings.null_id(self.vocabulary) is not None

    # a tokeniser may be a function that pickling can't name

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "vocabulary": self.vocabulary}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_up()
