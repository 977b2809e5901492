"""How much of the bare training step's rate `coalign train` keeps: python -m benchmarks.training snli_1.0_dev.jsonl

The same batches, model and optimiser, in one process, taking turns by epochs: on one side the command's own loop with
its bar, batches made as they are needed, sums and checks; on the other batches made before, and nothing but the step.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from coalign.model.nli import PRESETS, LabelledPairs, Training, load_corpus
from torch import nn

from coalign.train import _run

from .measure import settle_allocator
from .pipeline import store

ROUNDS = 5


def bare(run: Training, batches: list[LabelledPairs]) -> float:
    """Seconds of an epoch of steps."""
    run.model.train()
    start = time.perf_counter()
    for pairs, labels, _ in batches:
        run.optimizer.zero_grad()
        nn.functional.cross_entropy(run.model(pairs), labels).backward()
        run.optimizer.step()
    return time.perf_counter() - start


def command(run: Training, epoch: int) -> float:
    """Seconds of an epoch as `coalign train` runs it, without its evaluation and files."""
    run.settings = replace(run.settings, epochs=epoch + 1)
    run.epoch, run.batch = epoch, 0
    _run(run)
    seconds: float = run.history[-1]["seconds"]
    return seconds


def main(source: str) -> None:
    settle_allocator()
    with tempfile.TemporaryDirectory() as folder:
        corpus = load_corpus(source)
        settings = replace(PRESETS["d2l"], epochs=1, min_freq=1)
        vocabulary = settings.vocabulary(corpus)
        ours = Training(settings, corpus, None, Path(folder) / "ours", vocabulary=vocabulary)
        other = Training(settings, corpus, None, Path(folder) / "other", vocabulary=vocabulary)
        batches = [*other.batches.epoch()]
        times: dict[str, list[float]] = {"bare": [], "command": []}
        for turn in range(ROUNDS + 1):  # the first is for warming up
            times["bare"].append(bare(other, batches))
            times["command"].append(command(ours, turn))
        print(json.dumps(store("train", source, len(corpus), times, precision="float32", words=len(vocabulary))))


if __name__ == "__main__":
    main(sys.argv[1])
