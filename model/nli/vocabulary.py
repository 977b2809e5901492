"""Words and their ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import overload

import numpy as np

UNKNOWN, PADDING = "<unk>", "<pad>"


class Vocabulary:
    """Words to ids and back, in d2l's conventions.

    Id 0 is <unk>, the id of every word that is not here; id 1 is <pad>; then come the words that occur at
    least min_freq times, the frequent ones first, and in alphabetical order where they are equally frequent.

    sentences: lists of words. Raises TypeError for texts in their place, whose characters would be the words.
    """

    def __init__(self, sentences: Iterable[Sequence[str]], min_freq: int = 1) -> None:
        counts: Counter[str] = Counter()
        for sentence in (sentences,) if isinstance(sentences, str) else sentences:
            if isinstance(sentence, str):
                raise TypeError(f"sentences must be lists of words, not texts as {sentence[:40]!r} is")
            counts.update(sentence)
        self._fill(counts, min_freq)

    @classmethod
    def from_counts(cls, counts: Mapping[str, int], min_freq: int = 1, reserved: Sequence[str] = ()) -> Vocabulary:
        """From how often each word occurs; reserved: words that come after <pad> however often they do."""
        made = cls.__new__(cls)
        made._fill(counts, min_freq, reserved)
        return made

    @classmethod
    def from_tokens(cls, tokens: Sequence[str]) -> Vocabulary:
        """From another vocabulary's tokens.

        Raises:
            ValueError: the first two are not <unk> and <pad>, or a token comes twice.
        """
        if [*tokens[:2]] != [UNKNOWN, PADDING] or len({*tokens}) != len(tokens):
            raise ValueError(f"tokens must begin with {UNKNOWN} and {PADDING}, and each must come once")
        return cls.from_counts({}, reserved=tokens[2:])

    def _fill(self, counts: Mapping[str, int], min_freq: int, reserved: Sequence[str] = ()) -> None:
        first = (UNKNOWN, PADDING, *reserved)
        frequent = sorted((t for t, n in counts.items() if n >= min_freq), key=lambda t: (-counts[t], t))
        self.tokens = [*first, *(t for t in frequent if t not in first)]
        self._ids = {token: i for i, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: str) -> bool:
        return token in self._ids

    @overload
    def __getitem__(self, tokens: str) -> int: ...
    @overload
    def __getitem__(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...
    def __getitem__(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """The id of a word, or the ids of a sequence of words."""
        if isinstance(tokens, str):
            return self._ids.get(tokens, 0)
        return [self._ids.get(token, 0) for token in tokens]

    def stream(self, tokens: Iterable[str]) -> np.ndarray:
        """The ids, (words,) int64, of a stream of words, without Python work for each of them."""
        return np.fromiter(map(self._ids.get, tokens, repeat(0)), np.int64)

    @property
    def padding(self) -> int:
        """The id of <pad>."""
        return self._ids[PADDING]

    def to_tokens(self, ids: Iterable[int]) -> list[str]:
        """The words of these ids. Raises IndexError for an id outside the vocabulary."""
        found = list(ids)
        if any(not 0 <= i < len(self) for i in found):
            raise IndexError(f"ids must lie between 0 and {len(self) - 1}; found {min(found)} to {max(found)}")
        return [self.tokens[i] for i in found]
