"""One file of JSON lines predicted by several processes, each its share of the lines, put together in order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..atomic import replacing
from .prediction import Predictor
from .prediction_stream import BLOCK, JsonPairs, Reached, predict_lines
from .ranks import Ranks


def predict_shard(
    predictor: Predictor, source: Path, out: Path, pairs: JsonPairs, ranks: Ranks, **told: Callable[..., Any]
) -> Reached:
    """Predict this rank's share of a file, and wait for the others: rank 0 then writes all into out.

    Every rank must call this with the same source, which all can read, and out, in a folder that all can write to: in
    it each keeps its part, `.<name>.<rank>-of-<ranks>.part`, until all are there. Shares are ranges of bytes that end
    where lines do. told: complain and progress, as in `predict_lines`, with the file's own line numbers.

    Returns:
        What all ranks reached together.

    Raises:
        OSError: reading or writing failed here. RuntimeError: it did on another rank. Out is as it was before.
    """
    parts = [out.with_name(f".{out.name}.{rank}-of-{ranks.world_size}.part") for rank in range(ranks.world_size)]
    failure: Exception | None = None
    reached = Reached(0, 0, 0)
    counts = torch.zeros(ranks.world_size, dtype=torch.int64, device="cpu")
    file = None
    try:
        file = source.open("rb")
        size = source.stat().st_size
        start, end = (_line_start(file, size * rank // ranks.world_size) for rank in (ranks.rank, ranks.rank + 1))
        counts[ranks.rank] = _line_ends(file, start, end)
        file.seek(0)
        pairs.settle(file, start)
    except OSError as error:
        failure = error
    ranks.total(counts)
    try:
        if file is not None and failure is None:
            try:
                with parts[ranks.rank].open("wb") as part:
                    file.seek(start)
                    first = 1 + int(counts[: ranks.rank].sum())
                    reached = predict_lines(
                        predictor, file, part.write, pairs=pairs, size=end - start, first_line=first, **told
                    )
            except (OSError, ValueError) as error:
                failure = error
            finally:
                file.close()
        if ranks.any(failure is not None):
            raise failure or RuntimeError("another of the processes failed; nothing was written")
        if ranks.first:
            try:
                _join(parts, out)
            except OSError as error:
                failure = error
        if ranks.any(failure is not None):
            raise failure or RuntimeError(f"{out} could not be written")
    finally:
        parts[ranks.rank].unlink(missing_ok=True)
    return Reached(*ranks.total(torch.tensor(reached, device="cpu")).tolist())


def _line_start(file: BinaryIO, place: int) -> int:
    """The first beginning of a line at or after a place, or the file's end."""
    if place == 0:
        return 0
    file.seek(place - 1)
    while (piece := file.readline(BLOCK)) and not piece.endswith(b"\n"):
        pass
    return file.tell()


def _line_ends(file: BinaryIO, start: int, end: int) -> int:
    file.seek(start)
    found = 0
    while start < end and (block := file.read(min(BLOCK, end - start))):
        found += block.count(b"\n")
        start += len(block)
    return found


def _join(parts: list[Path], out: Path) -> None:
    with replacing(out) as unfinished, unfinished.open("wb") as whole:
        for path in parts:
            with path.open("rb") as part:
                shutil.copyfileobj(part, whole)
