"""Trained weights and real sentences for `whole_model`: python -m benchmarks --model --trained-on snli_1.0_dev.jsonl

Training closes more of the ReLUs than random weights do, and kernels that leave zeros out gain by it: with random
weights they are measured where they gain least.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from coalign.model.nli import PRESETS, Corpus, Training

from .model_cases import LONGEST, SETS, Book, ModelCase, Subject, in_every_form


def cases(of: list[ModelCase]) -> list[ModelCase]:
    """The same, by names of their own."""
    return [case._replace(name=f"{case.name}, trained") for case in of]


class Trained:
    """Gives d2l's model after training on a corpus, and batches of the corpus' pairs.

    Raises:
        ValueError: the corpus has too few pairs for a case.
    """

    def __init__(self, corpus: Corpus, of: list[ModelCase], epochs: int = 15) -> None:
        needed = SETS * max(case.pairs for case in of)
        if len(corpus) < needed:
            raise ValueError(f"{len(corpus):,} pairs are too few: {needed:,} are measured")
        self.corpus, self.epochs = corpus, epochs

    def __call__(self, case: ModelCase) -> Subject:
        run = self._run
        book = Book(len(run.vocabulary), run.settings.embed_size, run.settings.num_hiddens).eval()
        book.load_state_dict(run.model.state_dict())
        settings = replace(run.settings, batch_size=case.pairs, max_tokens=LONGEST)
        found = settings.batches(self.corpus, run.vocabulary, training=True).epoch(self.epochs)
        batches = [in_every_form(pairs, labels) for pairs, labels, _ in islice(found, SETS)]
        about = f"{self.epochs} epochs of {len(self.corpus):,} pairs, {len(run.vocabulary):,} words"
        return Subject(book, batches, about)

    @cached_property
    def _run(self) -> Training:
        with tempfile.TemporaryDirectory() as folder:
            settings = replace(PRESETS["d2l"], epochs=self.epochs, min_freq=1, batch_size=256)
            run = Training(settings, self.corpus, None, Path(folder))
            run.run()
            return run
