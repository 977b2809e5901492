"""Word vectors from GloVe's and word2vec's text files: a vocabulary's rows of them, streamed and cached."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..atomic import save_tensors
from .kept import kept
from .rows import BYTE_ORDER_MARK, DataError
from .vocabulary import PADDING, UNKNOWN, Vocabulary

_FORMAT = "2"  # of the cache; a new number when its contents' meaning changes
_NUMBER = re.compile(rb"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
HASHED_VECTORS = 100  # Parikh et al. 2016, section 4: "100 random embeddings"


class WordVectors:
    """What a file of vectors has for a vocabulary.

    Attributes:
        weight: (words, dimension) float32, a row a word of the vocabulary; 0 where the file has none.
        found: (words,) bool, whether the file has the word.
    """

    def __init__(self, weight: Tensor, found: Tensor) -> None:
        self.weight, self.found = weight, found

    @property
    def dimension(self) -> int:
        """How many numbers a vector has."""
        return self.weight.shape[1]

    @property
    def coverage(self) -> float:
        """The share of the vocabulary's words that have a vector, <unk> and <pad> aside; 0 where there are none."""
        return float(self.found[2:].float().mean()) if len(self.found) > 2 else 0.0

    def embedding(
        self, vocabulary: Vocabulary, *, missing: str = "zeros", normalize: bool = False, seed: int = 0
    ) -> Tensor:
        """(words, dimension) for an embedding.

        Args:
            missing: what words without a vector get: "zeros" (d2l) or "hashed", each one of 100 random vectors, by
                its spelling (Parikh et al. 2016, section 4: normal, mean 0, deviation 1). <pad> stays 0.
            normalize: whether every vector that is not 0 is scaled to length 1 (ibid.).
            seed: of the random vectors.

        Raises:
            ValueError: missing is neither.
        """
        weight = self.weight.clone()
        if missing == "hashed":
            pool = torch.randn(
                HASHED_VECTORS, self.dimension, generator=torch.Generator().manual_seed(seed), device="cpu"
            )
            rows = [i for i, found in enumerate(self.found.tolist()) if not found and i != vocabulary.padding]
            chosen = [zlib.crc32(vocabulary.tokens[i].encode("utf-8", "surrogatepass")) % HASHED_VECTORS for i in rows]
            weight[rows] = pool[chosen]
        elif missing != "zeros":
            raise ValueError(f"missing must be 'zeros' or 'hashed', not {missing!r}")
        return torch.nn.functional.normalize(weight, dim=1) if normalize else weight


def load_word_vectors(
    path: str | PathLike[str], vocabulary: Vocabulary, *, cache: bool | str | PathLike[str] = True
) -> WordVectors:
    """Read a vocabulary's vectors from a text file: a word and its numbers a line, with spaces between.

    Any dimension. A first line of two whole numbers (word2vec's: words and dimension) is left out; lines behind it may
    not have more numbers than it says. Where a word comes twice the first one counts. The file is read as a stream
    and only the vocabulary's rows are kept.

    Args:
        path: GloVe's or word2vec's text format, plain, .gz, or the only text file of a .zip; with "archive.zip:name"
            that one of several.
        vocabulary: whose words are wanted.
        cache: a folder to keep what was found in; True: beside the file; False: don't. Kept under a name made of
            the file's name, size and time of change and of the vocabulary: content is not hashed, since these files
            are larger than what reading from them saves.

    Raises:
        OSError: the file can't be read.
        DataError: a line is malformed; the message names file, line and reason.
    """
    archive, member = _split(str(path))
    if cache is False:
        return _read(archive, member, vocabulary)
    folder = archive.parent if cache is True else Path(cache)
    cached = folder / f"{archive.name}.{_key(archive, member, vocabulary)}.vectors"
    found = kept(cached, _load)
    if found is not None:
        return found
    vectors = _read(archive, member, vocabulary)
    try:
        save_tensors({"weight": vectors.weight, "found": vectors.found}, cached)
    except OSError as error:
        warnings.warn(f"the vectors found are not kept: {error}", stacklevel=2)
    return vectors


def _load(path: Path) -> WordVectors:
    with safe_open(path, framework="pt") as file:
        return WordVectors(file.get_tensor("weight"), file.get_tensor("found"))


def _split(path: str) -> tuple[Path, str | None]:
    """A file, and which member of it where it is named so."""
    named = re.fullmatch(r"(.*\.zip):(.*)", path, re.IGNORECASE | re.DOTALL)
    return (Path(named[1]), named[2]) if named and not Path(path).exists() else (Path(path), None)


def _key(archive: Path, member: str | None, vocabulary: Vocabulary) -> str:
    about = archive.stat()
    named = [_FORMAT, archive.name, member, about.st_size, about.st_mtime_ns, vocabulary.tokens]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


@contextmanager
def _opened(archive: Path, member: str | None) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked."""
    if archive.suffix.lower() == ".gz":
        with gzip.open(archive, "rb") as unpacked:
            yield unpacked  # type: ignore[misc]
    elif archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            names = [info.filename for info in zipped.infolist() if not info.is_dir()]
            if member is None and len(names) != 1:
                example = f"{archive}:{names[0]}" if names else "nothing"
                raise DataError(f"{archive} holds {len(names)} files; name one of them: {example}")
            if member is not None and member not in names:
                raise DataError(f"{archive} holds no {member}; it has {', '.join(names)}")
            with zipped.open(member or names[0]) as unpacked:
                yield unpacked
    else:
        with archive.open("rb") as plain:
            yield plain


def _read(archive: Path, member: str | None, vocabulary: Vocabulary) -> WordVectors:
    # <unk> and <pad> are this project's words: what a file calls so is something else
    wanted = {
        token.encode("utf-8", "surrogatepass"): i
        for i, token in enumerate(vocabulary.tokens)
        if token not in (UNKNOWN, PADDING)
    }
    weight: np.ndarray | None = None
    found = np.zeros(len(vocabulary), dtype=bool)
    words, dimension, number, source = None, 0, 0, str(archive) if member is None else f"{archive}:{member}"
    try:
        with _opened(archive, member) as lines:
            for line in lines:
                number += 1
                line = line.rstrip()
                if weight is None:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                    words, dimension = _dimension(line)
                    weight = np.zeros((len(vocabulary), dimension), dtype=np.float32)
                    if words is not None:
                        continue
                if line.count(b" ") == dimension:  # the usual case, and the fast one
                    word = line[: line.index(b" ")]
                elif not line and all(map(bytes.isspace, lines)):  # blank lines at the end are no rows
                    number -= 1
                    break
                elif len(line.split()) <= dimension:
                    raise ValueError(_expected(dimension, line))
                else:  # a word can hold spaces itself (GloVe's 840B has ". . ."), so numbers are counted from the end
                    word = line.rsplit(None, dimension)[0]
                    surplus = word.split()[1:]
                    if words is not None and surplus and all(map(_NUMBER.fullmatch, surplus)):
                        raise ValueError(_expected(dimension, line))
                row = wanted.get(word)
                if row is not None and not found[row]:
                    numbers = line[len(word) :].split()
                    if len(numbers) != dimension:
                        raise ValueError(_expected(dimension, line))
                    weight[row] = list(map(float, numbers))
                    if not np.isfinite(weight[row]).all():
                        raise ValueError(f"the vector of {word.decode()!r} is not finite")
                    found[row] = True
        if words is not None and number - 1 < words:
            raise ValueError(f"the first line says {words} words, but there are {number - 1}: the end is missing")
    except DataError:
        raise
    except (ValueError, EOFError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile, RuntimeError) as reason:
        raise DataError(f"{source}, line {max(number, 1)}: {reason}") from None
    if weight is None:
        raise DataError(f"{source} is empty; expected a word and its numbers on each line")
    return WordVectors(torch.from_numpy(weight), torch.from_numpy(found))


def _expected(dimension: int, line: bytes) -> str:
    return f"expected a word and {dimension} numbers, found {len(line.split())} fields"


def _dimension(line: bytes) -> tuple[int | None, int]:
    """How many words there are, if a file's first line is word2vec's header, and how many numbers each has."""
    fields = line.split()
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        return int(fields[0]), int(fields[1])
    if len(fields) < 2:
        raise ValueError(f"expected a word and its numbers, found {len(fields)} fields")
    for field in fields[1:]:
        float(field)
    return None, len(fields) - 1
