"""Aligning two sentences by the spelling of their words: no training, no data.

A word becomes the bag of its character n-grams, hashed into a vector of length 1, so that words which share
letters in the same order have a large product ("dog", "dogs"). It knows no meaning: a trained model does.
"""

from __future__ import annotations

from typing import NamedTuple
from zlib import crc32

import torch
from torch import Tensor

from .kernels import soft_align

WIDTH = 256


class WordAlignment(NamedTuple):
    """p (m, n): each premise word over the hypothesis' words. q (m, n): each hypothesis word over the premise's."""

    premise: list[str]
    hypothesis: list[str]
    p: Tensor
    q: Tensor


def character_vectors(words: list[str], width: int = WIDTH) -> Tensor:
    """(words, width): each word's n-grams of 1 to 4 characters, its ends marked, hashed with signs, length 1."""
    vectors = torch.zeros(len(words), width)
    for vector, word in zip(vectors, words, strict=True):
        marked = f"<{word.lower()}>"
        for n in range(1, 5):
            for i in range(len(marked) - n + 1):
                code = crc32(marked[i : i + n].encode("utf-8", "surrogatepass"))
                vector[code % width] += 1 - 2 * (code >> 31)
    return torch.nn.functional.normalize(vectors, dim=-1)


def align_words(
    premise: list[str], hypothesis: list[str], scale: float = 8.0, backend: str | None = None
) -> WordAlignment:
    """The operator on the words' character vectors; scale says how sharply.

    Raises:
        ValueError: a sentence without words, or a scale that is not finite or too large for float32.
    """
    for name, words in (("premise", premise), ("hypothesis", hypothesis)):
        if not words:
            raise ValueError(f"the {name} has no words")
    a, b = character_vectors(premise), character_vectors(hypothesis)
    # what is aligned are the words' places, one-hot, so that the aligned values are the weights themselves
    found = soft_align(a, b, torch.eye(len(a)), torch.eye(len(b)), scale=scale, backend=backend)
    if not (found.beta.isfinite().all() and found.alpha.isfinite().all()):
        raise ValueError(f"the scale {scale:g} is too large: the scores exceed float32")
    return WordAlignment(premise, hypothesis, found.beta, found.alpha.mT)
