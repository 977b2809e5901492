"""Texts into tokens."""

from __future__ import annotations

import re
from collections.abc import Callable

# a word with what apostrophes join to it (don't, o'clock), a number with its points, or one other character
_WORDS = re.compile(r"\d+(?:[.,]\d+)*|\w+(?:['’]\w+)*|[^\w\s]")

TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "whitespace": str.split,  # d2l's, for text whose tokens already stand apart
    "words": _WORDS.findall,  # for raw text
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
