"""Predictions for lines of JSON, one line for each, in order, with memory for a few blocks of them."""

from __future__ import annotations

import json
import select
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Barrier
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .prediction import Predictor
from .rows import BYTE_ORDER_MARK, Columns, decoded, json_fields, json_text, text_reader

BLOCK = 1 << 18  # bytes read at a time: a batch for the model, some thousand pairs
PATIENCE = 1e-3  # seconds that a thread with its scores waits for Python from the one that parses; 5e-3 is usual
LONGEST = 1 << 24  # bytes of a line: more is an error, so that a file without line ends does not fill the memory


class Reached(NamedTuple):
    """So far: lines, how many of them were malformed, and bytes read."""

    lines: int
    malformed: int
    bytes: int


class _Block(NamedTuple):
    """Lines in their order, None for one that is too long, and the bytes that they took."""

    lines: list[bytes | None]
    bytes: int


class JsonPairs:
    """The two texts of each line; which fields hold them, the first line decides that has them.

    Args:
        columns: the fields' names. None: as in `Columns`.
    """

    def __init__(self, columns: Columns | None = None) -> None:
        self._columns = columns or Columns()
        self._names: tuple[str, str] | None = None

    def settle(self, file: BinaryIO, size: int) -> None:
        """Let a file's first lines, of so many bytes, decide where reading begins behind them."""
        for block in _blocks(file, size):
            self.read(block.lines)
            if self._names is not None:
                return

    def read(self, lines: Sequence[bytes | None]) -> tuple[list[str], list[str], dict[int, str]]:
        """Premises and hypotheses of the lines that have them, and for the others by place what is wrong."""
        premises, hypotheses, wrong = [], [], {}
        for place, line in enumerate(lines):
            try:
                if line is None:
                    raise ValueError(f"longer than {LONGEST} bytes")
                fields = json_fields(decoded(line.removeprefix(BYTE_ORDER_MARK)))
                if self._names is None:
                    self._names = self._columns.texts_among(fields)
                    self._texts = text_reader(self._names[0]), text_reader(self._names[1])
                premise, hypothesis = json_text(fields, self._names[0]), json_text(fields, self._names[1])
            except ValueError as reason:
                wrong[place] = str(reason)
                continue
            premises.append(self._texts[0](premise))
            hypotheses.append(self._texts[1](hypothesis))
        return premises, hypotheses, wrong


def predict_lines(
    predictor: Predictor,
    file: BinaryIO,
    write: Callable[[bytes], object],
    *,
    pairs: JsonPairs | None = None,
    size: int | None = None,
    first_line: int = 1,
    complain: Callable[[int, str], object] = lambda number, reason: None,
    progress: Callable[[Reached], object] = lambda reached: None,
) -> Reached:
    """Read JSON objects, a line each, and write one line for each of them, in order.

    A line's answer is {"label": ..., "probabilities": {...}}; a malformed line's is {"line": its number, "error":
    what is wrong}. While threads compute, each a block of lines alone, the next blocks are read and parsed: as many
    threads as PyTorch would use in this one. Where nothing more has arrived yet, as from a pipe, what has is answered
    before anything is waited for.

    Args:
        predictor: the model. file: what is read, from where it stands. write: takes whole lines.
        pairs: which fields are read. None: as in `Columns`.
        size: stop after so many bytes, which must be the end of a line. None: at the end of the file.
        first_line: the number of the first line, for complaints and records.
        complain: told each malformed line's number and what is wrong. progress: told after each block.

    Raises:
        OSError: reading or writing failed.
    """
    predictor([], [])  # what is built or packed once is so before several threads need it
    pairs = pairs or JsonPairs()
    template = _template(predictor.labels)
    lines = malformed = read = 0
    waiting: deque[tuple[_Block, dict[int, str], Future[Tensor]]] = deque()

    def finish() -> None:
        nonlocal lines, malformed, read
        block, wrong, scores = waiting.popleft()
        answers = _answers(template, predictor.labels, predictor.normalised(scores.result()))
        for place, reason in wrong.items():
            number = first_line + lines + place
            complain(number, reason)
            answers.insert(place, json.dumps({"line": number, "error": reason}) + "\n")
        write("".join(answers).encode())
        lines, malformed, read = lines + len(block.lines), malformed + len(wrong), read + block.bytes
        progress(Reached(lines, malformed, read))

    def finish_all() -> None:
        while waiting:
            finish()

    with _workers() as (pool, ahead):
        for block in _blocks(file, size, before_waiting=finish_all):
            premises, hypotheses, wrong = pairs.read(block.lines)
            batch = predictor.reader.batch(premises, hypotheses)
            waiting.append((block, wrong, pool.submit(predictor.scores, batch)))
            if len(waiting) > ahead:
                finish()
        finish_all()
    return Reached(lines, malformed, read)


@contextmanager
def _workers() -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Threads that compute with one thread each, and how many: together they do what one with all would, unhindered
    by whatever else runs on their cores, for none of them waits for another."""
    count, interval = torch.get_num_threads(), sys.getswitchinterval()
    all_here = Barrier(count + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        all_here.wait()

    with ThreadPoolExecutor(count) as pool, ExitStack() as stack:
        stack.callback(sys.setswitchinterval, interval)
        sys.setswitchinterval(min(interval, PATIENCE))
        try:
            for _ in range(count):
                pool.submit(begin)
            all_here.wait()
        except BaseException:  # such as that no more threads can be started: those that are here wait no longer
            all_here.abort()
            raise
        torch.set_num_threads(count)  # for threads that are made later take the number that was set last
        yield pool, count


def record(labels: Sequence[str], probabilities: np.ndarray) -> str:
    """The line for one pair of these probabilities, (classes,)."""
    return _answers(_template(labels), labels, probabilities[None])[0]


def _template(labels: Sequence[str]) -> str:
    """A line with places for the label and for each probability."""
    names = (json.dumps(name).replace("%", "%%") for name in labels)
    return '{"label": %s, "probabilities": {' + ", ".join(f"{name}: %.6f" for name in names) + "}}\n"


def _answers(template: str, labels: Sequence[str], probabilities: np.ndarray) -> list[str]:
    names = np.array([json.dumps(name) for name in labels], dtype=object)[probabilities.argmax(1)]
    return list(map(template.__mod__, zip(names.tolist(), *probabilities.T.tolist(), strict=True)))


def _blocks(file: BinaryIO, size: int | None, before_waiting: Callable[[], object] = lambda: None) -> Iterator[_Block]:
    """The file's whole lines, a block at a time; what a pipe has is taken as it comes."""
    take = getattr(file, "read1", file.read)

    def read(most: int) -> bytes:
        if not _has_more(file):
            before_waiting()
        data: bytes = take(most)
        return data

    begun, too_long, left, consumed = b"", False, size, 0
    while data := read(BLOCK if left is None else min(BLOCK, left)):
        if left is not None:
            left -= len(data)
        consumed += len(data)
        pieces: list[bytes | None] = []
        pieces.extend((begun + data).split(b"\n"))
        begun = pieces.pop() or b""
        if pieces and (too_long or len(pieces[0] or b"") > LONGEST):
            pieces[0], too_long = None, False
        if too_long or len(begun) > LONGEST:
            begun, too_long = b"", True
        if pieces:
            yield _Block(pieces, consumed)
            consumed = 0
    if begun or too_long:
        yield _Block([None if too_long else begun], consumed)


def _has_more(file: BinaryIO) -> bool:
    """Whether reading returns at once, as far as the system can tell."""
    try:
        return bool(select.select([file], [], [], 0)[0])
    except (OSError, TypeError, ValueError):  # no file of the system's
        return True
