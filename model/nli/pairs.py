"""Pairs of sentences as lists of words, from SNLI's files (Bowman et al. 2015) and others like them."""

from __future__ import annotations

from os import PathLike
from typing import NamedTuple

from .rows import DataError, read_rows
from .tokens import tokenizer

LABELS = ("entailment", "contradiction", "neutral")  # in d2l's order: a label is an index
UNLABELLED = ("-", "", "-1")  # SNLI's mark where the annotators did not agree; none; Hugging Face's


class Pair(NamedTuple):
    """Two tokenised sentences and how they relate, an index into LABELS."""

    premise: list[str]
    hypothesis: list[str]
    label: int


class PairFile(NamedTuple):
    """A file's labelled pairs, and how many others had no label and were left out."""

    pairs: list[Pair]
    unlabelled: int


def read_snli(path: str | PathLike[str], *, lower: bool = False, limit: int | None = None) -> PairFile:
    """Read a file of pairs whole, for what is small enough; `load_corpus` is for the rest.

    Args:
        path: SNLI's .jsonl or .txt, or another file that `read_rows` takes.
        lower: whether to lower-case. Tokens are what stands between white space, as in d2l.
        limit: read no more than so many labelled pairs.

    Raises:
        ValueError: limit is not positive.
        OSError: the file can't be read.
        DataError: a line is malformed, or the file holds no labelled pair.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be 1 or more, not {limit}")
    pairs: list[Pair] = []
    unlabelled = 0
    tokens = tokenizer("whitespace", lower)
    for number, premise, hypothesis, label in read_rows(path):
        if limit is not None and len(pairs) >= limit:
            break
        if label in UNLABELLED:
            unlabelled += 1
        elif label in LABELS:
            pairs.append(Pair(tokens(premise), tokens(hypothesis), LABELS.index(label)))
        else:
            raise DataError(f"{path}, line {number}: the label {label!r} is none of {', '.join(LABELS)} or '-'")
    if not pairs:
        raise DataError(f"{path} holds no labelled pair ({unlabelled} without a label)")
    return PairFile(pairs, unlabelled)
