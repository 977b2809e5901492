"""The model learns from real sentences: SNLI's development set, where it is there, split by premise."""

import json
import random
from pathlib import Path

from coalign.model.nli import Settings, Training, load_corpus

SNLI = Path(__file__).parents[2] / "shared/data/snli_1.0/snli_1.0_dev.jsonl"
SETTINGS = Settings(lower=True, batch_size=64, epochs=8)  # otherwise d2l's, with random vectors


def split_by_premise(folder, pairs, seed=0):
    """Two files of labelled pairs, about `pairs` of them and the rest, with no premise in both."""
    by_premise = {}
    for line in SNLI.read_text().splitlines():
        row = json.loads(line)
        if row["gold_label"] != "-":
            by_premise.setdefault(row["sentence1"], []).append(line)
    groups = list(by_premise.values())
    random.Random(seed).shuffle(groups)
    parts = [], []
    for group in groups:
        parts[len(parts[0]) + len(group) > pairs].extend(group)
    files = [folder / "training.jsonl", folder / "validation.jsonl"]
    for file, lines in zip(files, parts, strict=True):
        file.write_text("\n".join(lines))
    return files


def train(folder, settings, backend=None):
    training, validation = (load_corpus(file, settings.reading()) for file in split_by_premise(folder, 8000))
    run = Training(settings, training, validation, folder / str(backend), backend=backend)
    run.run()
    return run
