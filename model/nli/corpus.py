"""A tokenised file of pairs as packed arrays, cached beside the file and loaded by memory map."""

from __future__ import annotations

import hashlib
import json
import warnings
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..atomic import save_tensors
from .datasets_hub import dataset_rows, is_dataset_name
from .kept import kept
from .pairs import LABELS, UNLABELLED
from .rows import Columns, DataError, Row, read_rows
from .tokens import tokenizer
from .vocabulary import Vocabulary

MOST_LABELS = 256  # that a byte can number
_FORMAT = "2"  # of the cache; a new number when its contents' meaning changes


@dataclass(frozen=True)
class Reading:
    """How texts become tokens and labels become numbers; the defaults are d2l's for SNLI.

    Args:
        columns: what to read. lower: whether to lower-case. tokens: "whitespace", or "words" for raw text.
        labels: their names, whose places are the numbers, as they stand in the file. Pairs with another label are
            an error; "-", "-1", "" and JSON's null say that there is none, where no label is named so.

    Raises:
        ValueError: a label that is named twice, no label, or more than 256.
    """

    columns: Columns = field(default_factory=Columns)
    labels: tuple[str, ...] = LABELS
    lower: bool = False
    tokens: str = "whitespace"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))  # a list's corpus has the label names of its cache
        if not 0 < len(self.labels) <= MOST_LABELS:
            raise ValueError(f"there must be 1 to {MOST_LABELS} labels, not {len(self.labels)}")
        for name in self.labels:
            if self.labels.count(name) > 1:
                raise ValueError(f"the label {name!r} is named twice")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenised pairs. Words are numbered here in the order in which they first occur; a vocabulary's ids come later.

    Attributes:
        words: every different word. counts: (words,) int64, how often each occurs.
        words_a, words_b: (total,) int32, the premises' and the hypotheses' words, all in a row.
        offsets_a, offsets_b: (pairs + 1,) int64: where each sentence begins.
        labels: (pairs,) uint8. label_names: what they mean.
        unlabelled: how many pairs had no label and were left out.
    """

    words: list[str]
    counts: Tensor
    words_a: Tensor
    words_b: Tensor
    offsets_a: Tensor
    offsets_b: Tensor
    labels: Tensor
    label_names: tuple[str, ...]
    unlabelled: int

    def __len__(self) -> int:
        """How many pairs."""
        return len(self.labels)

    def digest(self) -> str:
        """What tells these pairs, in their order and with their labels, from any others."""
        digest = hashlib.sha256(json.dumps([self.words, self.label_names]).encode())
        for t in (self.words_a, self.words_b, self.offsets_a, self.offsets_b, self.labels):
            digest.update(t.numpy().tobytes())
        return digest.hexdigest()[:16]

    def vocabulary(self, min_freq: int = 5, reserved: Sequence[str] = ()) -> Vocabulary:
        """The words that occur at least min_freq times (d2l's default), after the reserved ones."""
        return Vocabulary.from_counts(dict(zip(self.words, self.counts.tolist(), strict=True)), min_freq, reserved)


def load_corpus(
    source: str | PathLike[str], reading: Reading | None = None, *, cache: bool | str | PathLike[str] = True
) -> Corpus:
    """Tokenise a file of pairs, or take what an earlier call made of the same content with the same options.

    Args:
        source: a file, as `read_rows` takes them, or "hf:NAME:SPLIT", a Hugging Face dataset (never cached here).
        reading: how; None: d2l's way with SNLI.
        cache: a folder for the tokenised file; True: beside the source; False: don't keep it. Where the folder
            can't be written to, there is a warning and no cache.

    Raises:
        OSError: the file can't be read. DataError: it is malformed, holds no labelled pair, or is no regular file,
            which can only be read without a cache.
        ImportError: a dataset was named and `datasets` is not installed.
        ValueError: options that do not exist.
    """
    reading = reading or Reading()
    if is_dataset_name(str(source)):
        return tokenised(dataset_rows(str(source), reading.columns), reading, str(source))
    source = Path(source)
    if cache is False:
        return tokenised(read_rows(source, reading.columns), reading, str(source))
    if source.exists() and not source.is_file():
        raise DataError(f"{source} is no regular file: pairs are read twice, so write them to one")
    folder = source.parent if cache is True else Path(cache)
    cached = folder / f"{source.name}.{_key(source, reading)}.tokens"
    found = kept(cached, _load)
    if found is not None:
        return found
    corpus = tokenised(read_rows(source, reading.columns), reading, str(source))
    try:
        _save(corpus, cached)
    except OSError as error:
        warnings.warn(f"the tokenised file is not kept: {error}", stacklevel=2)
    return corpus


class _Numbers(dict[str, int]):
    """Words to numbers, a new word getting the next one."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


def tokenised(rows: Iterable[Row], reading: Reading, source: str) -> Corpus:
    """The corpus of rows, read once and forgotten: no text is kept.

    Raises:
        DataError: a label that is none of reading.labels, or no labelled pair; naming source.
    """
    tokens = tokenizer(reading.tokens, reading.lower)
    label_numbers = {name: i for i, name in enumerate(reading.labels)}
    numbers = _Numbers()
    words_a, words_b, lengths_a, lengths_b, labels = array("i"), array("i"), array("i"), array("i"), array("B")
    unlabelled = 0
    for number, premise, hypothesis, label in rows:
        label_number = label_numbers.get(label)
        if label_number is None:
            if label not in UNLABELLED:
                names = ", ".join(reading.labels)
                raise DataError(f"{source}, line {number}: the label {label!r} is none of {names} or '-'")
            unlabelled += 1
            continue
        labels.append(label_number)
        for text, words, lengths in ((premise, words_a, lengths_a), (hypothesis, words_b, lengths_b)):
            before = len(words)
            words.extend(map(numbers.__getitem__, tokens(text)))
            lengths.append(len(words) - before)
    if not labels:
        raise DataError(f"{source} holds no labelled pair ({unlabelled} without a label)")
    all_a, all_b = (torch.from_numpy(np.array(words, dtype=np.int32)) for words in (words_a, words_b))
    return Corpus(
        list(numbers),
        all_a.bincount(minlength=len(numbers)) + all_b.bincount(minlength=len(numbers)),
        all_a,
        all_b,
        _starts(lengths_a),
        _starts(lengths_b),
        torch.from_numpy(np.array(labels, dtype=np.uint8)),
        reading.labels,
        unlabelled,
    )


def _starts(lengths: array[int]) -> Tensor:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return torch.from_numpy(offsets)


def _key(source: Path, reading: Reading) -> str:
    """What names a cache: the file's content and all that decides what is made of it."""
    digest = hashlib.sha256(json.dumps([_FORMAT, asdict(reading), source.suffix.lower()]).encode())
    with source.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


_TENSORS = ("counts", "words_a", "words_b", "offsets_a", "offsets_b", "labels")


def _save(corpus: Corpus, path: Path) -> None:
    tensors = {name: getattr(corpus, name) for name in _TENSORS}
    # JSON can hold halves of surrogate pairs, which plain UTF-8 can not
    spelling = bytearray("\n".join(corpus.words).encode("utf-8", "surrogatepass"))
    tensors["words"] = torch.frombuffer(spelling or bytearray(1), dtype=torch.uint8)
    about = {"labels": json.dumps(corpus.label_names), "unlabelled": str(corpus.unlabelled)}
    save_tensors(tensors, path, about)


def _load(path: Path) -> Corpus:
    """A cached corpus, its tensors still in the file: pages are read when they are touched."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in _TENSORS}
        words = file.get_tensor("words").numpy().tobytes().decode("utf-8", "surrogatepass")
        about = file.metadata()
    return Corpus(
        words.split("\n") if len(tensors["counts"]) else [],
        **tensors,
        label_names=tuple(json.loads(about["labels"])),
        unlabelled=int(about["unlabelled"]),
    )
