"""Texts into tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

# a word with what apostrophes join to it (don't, o'clock), a number with its points, or one other character
_WORDS = re.compile(r"\d+(?:[.,]\d+)*|\w+(?:['’]\w+)*|[^\w\s]")
_MARKS_WITHIN = ((0x300, 0x20000), (0xE0100, 0xE01F0))  # where Unicode has its marks; in other planes there are none


@cache
def _marks() -> frozenset[str]:
    """Unicode's marks, such as accents that stand by themselves and India's vowels, which \\w lacks."""
    characters = (chr(code) for first, end in _MARKS_WITHIN for code in range(first, end))
    return frozenset(c for c in characters if unicodedata.category(c).startswith("M"))


@cache
def _marked_words() -> re.Pattern[str]:
    """_WORDS, but that marks belong to the letters before them."""
    word = rf"\w+(?:[{''.join(sorted(_marks()))}]\w*)*"
    return re.compile(rf"\d+(?:[.,]\d+)*|{word}(?:['’]{word})*|[^\w\s]")


def _words(text: str) -> list[str]:
    plain = text.isascii() or _marks().isdisjoint(text)
    return (_WORDS if plain else _marked_words()).findall(text)


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "whitespace": str.split,  # d2l's, for text whose tokens already stand apart
    "words": _words,  # for raw text
}


def tokenizer(name: str, lower: bool = False) -> Callable[[str], list[str]]:
    """The function from a text to its tokens. name: of TOKENIZERS; lower: whether to lower-case first.

    Raises:
        ValueError: no tokenizer has that name.
    """
    if name not in TOKENIZERS:
        raise ValueError(f"{name!r} is no tokenizer; there are {', '.join(TOKENIZERS)}")
    tokenize = TOKENIZERS[name]
    return (lambda text: tokenize(text.lower())) if lower else tokenize
