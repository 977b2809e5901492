"""Reading labelled pairs of texts, a row at a time: JSON lines, tab-separated and comma-separated files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple

# SNLI's names before others'; its tokens stand in the binary parse, where the plain sentence is raw text
_PREMISES = ("sentence1_binary_parse", "sentence1", "premise")
_HYPOTHESES = ("sentence2_binary_parse", "sentence2", "hypothesis")
_LABELS = ("gold_label", "label")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DECODER = json.JSONDecoder()
_WITHOUT_BRACKETS = str.maketrans("", "", "()")


class DataError(ValueError):
    """A data file is not what it should be; the message names the file, the line and the reason."""


@dataclass(frozen=True)
class Columns:
    """The names of the columns (JSON: fields) to read.

    None: for the premise the first that is there of sentence1_binary_parse, sentence1 and premise; for the
    hypothesis likewise; for the label gold_label or label. The brackets of a binary parse are left out.
    """

    premise: str | None = None
    hypothesis: str | None = None
    label: str | None = None

    def among(self, present: Mapping[str, object] | list[str]) -> tuple[str, str, str]:
        """The three names, given those that a file has. Raises ValueError with the reason."""
        return *self.texts_among(present), _among(present, self.label, _LABELS)

    def texts_among(self, present: Mapping[str, object] | list[str]) -> tuple[str, str]:
        """The premise's and the hypothesis' names, where no label is needed; likewise."""
        return _among(present, self.premise, _PREMISES), _among(present, self.hypothesis, _HYPOTHESES)


def _among(present: Mapping[str, object] | list[str], wanted: str | None, usual: tuple[str, ...]) -> str:
    """The name that is wanted, or the first usual one, that is present, once."""
    candidates = usual if wanted is None else (wanted,)
    name = next((c for c in candidates if c in present), None)
    if name is None:
        missing = candidates[0] if len(candidates) == 1 else "each of " + ", ".join(candidates)
        raise ValueError(f"{missing} is missing; there are {', '.join(map(repr, present)) or 'no columns'}")
    if isinstance(present, list) and present.count(name) > 1:
        raise ValueError(f"the column {name} is there {present.count(name)} times")
    return name


class Row(NamedTuple):
    """A row's texts and label as they stand there, and its first line's number. label: "" where there is none."""

    number: int
    premise: str
    hypothesis: str
    label: str


def read_rows(path: str | PathLike[str], columns: Columns | None = None) -> Iterator[Row]:
    """The rows of a file in UTF-8: .jsonl, .json or .ndjson (an object a line); .tsv or .txt; .csv.

    Tab- and comma-separated files begin with a line of column names. Tabs end cells whatever stands around them,
    as in SNLI's .txt files; commas may be quoted. Blank lines at the end are no rows.

    Raises:
        OSError: the file can't be read.
        DataError: its name's ending or a line is not understood.
    """
    readers = {
        ".jsonl": _json_rows,
        ".json": _json_rows,
        ".ndjson": _json_rows,
        ".tsv": _tab_rows,
        ".txt": _tab_rows,
        ".csv": _comma_rows,
    }
    reader = readers.get(Path(path).suffix.lower())
    if reader is None:
        raise DataError(f"{path}: the name must end in one of {', '.join(readers)}")
    with Path(path).open("rb") as file:
        numbered = _Lines(file)
        try:
            yield from reader(numbered, columns or Columns())
        except (ValueError, csv.Error) as reason:
            raise DataError(f"{path}, line {max(numbered.number, 1)}: {reason}") from None


class _Lines:
    """A file's lines as text, without blank ones at its end, and the number of the one given last."""

    def __init__(self, file: Iterator[bytes]) -> None:
        self._file = file
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        blank: list[bytes] = []
        for line in self._file:
            if line.isspace():
                blank.append(line)
                continue
            for each in (*blank, line):
                self.number += 1
                if self.number == 1:
                    each = each.removeprefix(BYTE_ORDER_MARK)
                yield decoded(each)
            blank.clear()


def decoded(line: bytes) -> str:
    """The text of a line in UTF-8. Raises ValueError naming the first byte that is not."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None


def text_reader(column: str) -> Callable[[str], str]:
    """What makes a column's cell a text: without brackets where it is SNLI's binary parse."""
    if column.endswith("_binary_parse"):
        return lambda cell: cell.translate(_WITHOUT_BRACKETS)
    return lambda cell: cell


def _value(line: str) -> object:
    """json.loads, in half of its time where no white space stands around the value."""
    try:
        value, end = _DECODER.raw_decode(line)
    except json.JSONDecodeError:
        return json.loads(line)
    return value if end == len(line) else json.loads(line)


def json_fields(line: str) -> dict[str, object]:
    """The object that a line of JSON is. Raises ValueError with the reason why it is none."""
    try:
        fields = _value(line)
    except json.JSONDecodeError as error:
        if not line.strip():
            raise ValueError("empty; expected a JSON object") from None
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, not {type(fields).__name__}")
    return fields


def json_text(fields: Mapping[str, object], name: str) -> str:
    """A field that must be a string. Raises ValueError where it is not."""
    text = fields.get(name)
    if not isinstance(text, str):
        raise ValueError(f"{name} is missing" if name not in fields else f"{name} must be a string")
    return text


def _json_rows(lines: _Lines, columns: Columns) -> Iterator[Row]:
    names: tuple[str, str, str] | None = None
    for line in lines:
        fields = json_fields(line)
        if names is None:
            names = columns.among(fields)
            premise_text, hypothesis_text = text_reader(names[0]), text_reader(names[1])
        premise, hypothesis = json_text(fields, names[0]), json_text(fields, names[1])
        label = fields.get(names[2], names)
        if label is names:
            raise ValueError(f"{names[2]} is missing")
        if isinstance(label, bool) or not (label is None or isinstance(label, (str, int))):
            raise ValueError(f"{names[2]} must be a string, a whole number or null")
        yield Row(
            lines.number,
            premise_text(premise),
            hypothesis_text(hypothesis),
            "" if label is None else str(label),
        )


def _tab_rows(lines: _Lines, columns: Columns) -> Iterator[Row]:
    return _table_rows(lines, ((lines.number, line.rstrip("\r\n").split("\t")) for line in lines), columns)


def _comma_rows(lines: _Lines, columns: Columns) -> Iterator[Row]:
    return _table_rows(lines, _comma_table(lines), columns)


def _comma_table(lines: _Lines) -> Iterator[tuple[int, list[str]]]:
    """Each row's first line, for quotes may go over several, and its cells. What is wrong is told of that line."""
    begun = 1
    try:
        for cells in csv.reader(lines, strict=True):
            yield begun, cells
            begun = lines.number + 1
    except csv.Error as reason:
        if begun >= lines.number:
            raise
        reached, lines.number = lines.number, begun
        raise csv.Error(f"a quote in the row that begins here is open up to line {reached}: {reason}") from None


def _table_rows(lines: _Lines, table: Iterator[tuple[int, list[str]]], columns: Columns) -> Iterator[Row]:
    _, header = next(table, (0, None))
    if header is None:
        raise ValueError("the file is empty; expected a line of column names")
    names = columns.among(header)
    places = [header.index(name) for name in names]
    premise_text, hypothesis_text = text_reader(names[0]), text_reader(names[1])
    for number, cells in table:
        if not max(places) < len(cells) <= len(header):
            lines.number = number
            raise ValueError(f"found {len(cells)} columns where the first line names {len(header)}")
        premise, hypothesis, label = (cells[place] for place in places)
        yield Row(number, premise_text(premise), hypothesis_text(hypothesis), label)
