"""How much of the frozen model's rate `coalign predict` keeps: python -m benchmarks.predict_command snli_1.0_dev.jsonl

The file's lines are repeated until there are 100,000. In one process, taking turns: on one side the command's own loop,
from file to file with its bar; on the other the frozen model alone, on the very batches that those lines are. The
model has d2l's sizes, the file's words and random parameters, with which its kernels find fewest zeros to leave out.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from coalign.model import PairBatch
from coalign.model.nli import PRESETS, Checkpoint, JsonPairs, Predictor, load_corpus, predict_lines
from coalign.model.nli.prediction_stream import _blocks

from coalign.predict import PRECISIONS, _sink, _source, _telling

from .measure import settle_allocator
from .pipeline import store

ROUNDS, LINES = 9, 100_000


def bare(predictor: Predictor, batches: list[PairBatch]) -> float:
    """Seconds of the model on all batches."""
    start = time.perf_counter()
    for batch in batches:
        predictor.model(batch)
    return time.perf_counter() - start


def command(predictor: Predictor, source: Path, out: Path) -> float:
    """Seconds from file to file as `coalign predict` goes, without loading the model."""
    start = time.perf_counter()
    with _telling(source, out) as told, _source(source) as file, _sink(out) as write:
        reached = predict_lines(predictor, file, write, complain=told.complain, progress=told)
    assert reached[:2] == (LINES, 0), reached
    return time.perf_counter() - start


def main(given: str) -> None:
    settle_allocator()
    corpus = load_corpus(given, cache=False)
    settings = PRESETS["d2l"]
    vocabulary = corpus.vocabulary(min_freq=1)
    checkpoint = Checkpoint(
        settings, vocabulary, corpus.label_names, settings.model(len(vocabulary), len(corpus.label_names)).state_dict()
    )
    lines = Path(given).read_bytes().splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "pairs.jsonl", Path(folder) / "answers.jsonl"
        source.write_bytes(b"".join((lines * (LINES // len(lines) + 1))[:LINES]))
        for name, dtype in PRECISIONS.items():
            predictor = Predictor(checkpoint, dtype=dtype)
            pairs = JsonPairs()
            with source.open("rb") as file:
                batches = [predictor.reader.batch(*pairs.read(block.lines)[:2]) for block in _blocks(file, None)]
            times: dict[str, list[float]] = {"bare": [], "command": []}
            for _ in range(ROUNDS + 1):  # the first is for warming up
                times["bare"].append(bare(predictor, batches))
                times["command"].append(command(predictor, source, out))
            print(json.dumps(store("predict", given, LINES, times, precision=name, words=len(vocabulary))))


if __name__ == "__main__":
    main(sys.argv[1])
