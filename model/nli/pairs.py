"""Reading pairs of sentences from SNLI's JSON lines (Bowman et al. 2015)."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import NamedTuple

LABELS = ("entailment", "contradiction", "neutral")  # in d2l's order: a label is an index
_NO_LABEL = "-"  # the annotators did not agree


class Pair(NamedTuple):
    """Two tokenised sentences and how they relate, an index into LABELS."""

    premise: list[str]
    hypothesis: list[str]
    label: int


class PairFile(NamedTuple):
    """A file's labelled pairs, and how many others had no label and were left out."""

    pairs: list[Pair]
    unlabelled: int


class DataError(ValueError):
    """A data file is not what it should be; the message names the file, the line and the reason."""


def read_snli(path: str | PathLike[str], *, lower: bool = False, limit: int | None = None) -> PairFile:
    """Read an SNLI file in JSON lines: objects with gold_label, sentence1 and sentence2.

    Args:
        path: the file, in UTF-8.
        lower: whether to lower-case. Tokens are what stands between white space, as in d2l.
        limit: read no more than so many labelled pairs.

    Raises:
        OSError: the file can't be read.
        DataError: a line is malformed, or the file holds no labelled pair.
    """
    pairs: list[Pair] = []
    unlabelled = 0
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(pairs) >= limit:
                break
            try:
                pair = _parse(line, lower)
            except ValueError as reason:
                raise DataError(f"{path}, line {number}: {reason}") from None
            if pair is None:
                unlabelled += 1
            else:
                pairs.append(pair)
    if not pairs:
        raise DataError(f"{path} holds no labelled pair ({unlabelled} without a label)")
    return PairFile(pairs, unlabelled)


def _parse(line: bytes, lower: bool) -> Pair | None:
    """The pair on a line; None where it has no label. Raises ValueError with the reason."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    if not text.strip():
        raise ValueError("empty; expected a JSON object")
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, not {type(fields).__name__}")
    for name in ("gold_label", "sentence1", "sentence2"):
        if not isinstance(fields.get(name), str):
            raise ValueError(f"{name} is missing" if name not in fields else f"{name} must be a string")
    label = fields["gold_label"]
    if label == _NO_LABEL:
        return None
    if label not in LABELS:
        raise ValueError(f"gold_label {label!r} is none of {', '.join(LABELS)} or {_NO_LABEL}")
    premise, hypothesis = (fields[name].lower() if lower else fields[name] for name in ("sentence1", "sentence2"))
    return Pair(premise.split(), hypothesis.split(), LABELS.index(label))
