"""Pairs from Hugging Face's `datasets`, which is an optional dependency."""

from __future__ import annotations

from collections.abc import Iterator

from .rows import Columns, DataError, Row

_PREFIX = "hf:"


def is_dataset_name(source: str) -> bool:
    """Whether a source names a dataset and not a file."""
    return source.startswith(_PREFIX)


def dataset_rows(source: str, columns: Columns) -> Iterator[Row]:
    """The rows of "hf:NAME:SPLIT", say "hf:stanfordnlp/snli:train"; labels by their names, none where they are -1.

    Raises:
        ImportError: `datasets` is not installed. DataError: the name or its columns are not understood.
    """
    name, _, split = source.removeprefix(_PREFIX).rpartition(":")
    if not name or not split:
        raise DataError(f"{source}: a dataset is named hf:NAME:SPLIT, for example hf:stanfordnlp/snli:train")
    try:
        import datasets
    except ImportError:
        raise ImportError(f'{source} needs the package datasets: pip install "coalign[datasets]"') from None
    found = datasets.load_dataset(name, split=split)
    try:
        premise, hypothesis, label = columns.among(found.column_names)
    except ValueError as reason:
        raise DataError(f"{source}: {reason}") from None
    names = getattr(found.features[label], "names", None)
    for number, row in enumerate(found, 1):
        for column in (premise, hypothesis):
            if not isinstance(row[column], str):
                raise DataError(f"{source}, row {number}: {column} must be a string")
        value = row[label]
        if names is not None and isinstance(value, int):
            value = names[value] if value >= 0 else ""
        yield Row(number, row[premise], row[hypothesis], "" if value is None else str(value))
