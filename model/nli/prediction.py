"""From texts to labels: one pair as d2l's `predict_snli` takes it, and a trained model that reads texts in batches."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..pair_batch import PairBatch
from .checkpoint import NOT_FINITE, Checkpoint, load_checkpoint
from .evaluation import evaluating
from .pair_reader import PairReader
from .pairs import LABELS


class WordIds(Protocol):
    """What d2l's vocabularies and ours share: a list of words to their ids."""

    def __getitem__(self, tokens: list[str], /) -> list[int]: ...


def predict_snli(model: nn.Module, vocab: WordIds, premise: list[str], hypothesis: list[str]) -> str:
    """The relation of two sentences: 'entailment', 'contradiction' or 'neutral' (d2l's function of this name).

    Args:
        model: what scores ids (1, m) and (1, n) for those three classes, in this order; frozen or not. It runs in
            evaluation mode, and its layers are then in the modes they were in before.
        vocab: gives the words' ids. premise, hypothesis: words, taken as they are: nothing is lower-cased, cut or
            put before them. `Predictor` does what a checkpoint's settings say.

    Raises:
        TypeError: a sentence that is no list of words.
    """
    for name, words in (("premise", premise), ("hypothesis", hypothesis)):
        if isinstance(words, str) or not all(isinstance(word, str) for word in words):
            raise TypeError(f"the {name} must be a list of words, not {words!r}")
    device = next(t.device for state in (model.parameters(), model.buffers()) for t in state)
    ids = [torch.tensor([vocab[list(words)]], dtype=torch.int64, device=device) for words in (premise, hypothesis)]
    with torch.no_grad(), evaluating(model):
        scores = model((ids[0], ids[1]))
    return LABELS[int(scores.argmax(1))]


class Predictions(NamedTuple):
    """labels: a name for each pair. probabilities: (pairs, classes) float32, in the order of `Predictor.labels`."""

    labels: list[str]
    probabilities: np.ndarray


class Predictor:
    """A trained model, frozen, that takes texts and reads them as its checkpoint's settings say.

    With intra-sentence attention, where nothing can be frozen, the model is as it was trained. A predictor can be
    pickled into other processes, and moved with `to`. On the CPU the pairs beside a pair never change a frozen model's
    answer on the native backend; elsewhere they can by rounding.

    Args:
        checkpoint: the trained model. dtype: of the frozen one, torch.float32 or torch.bfloat16.
        backend: "reference" is plain PyTorch; None: the fastest there is.

    Attributes:
        labels: the classes' names. reader: makes batches of texts. model: the frozen one. device: where it is.

    Raises:
        TypeError: what is no checkpoint. ValueError: a dtype in which no model can be frozen.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32, backend: str | None = None
    ) -> None:
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(f"a Predictor is made of a Checkpoint, not {type(checkpoint).__name__}; see Predictor.load")
        self.labels, self.reader = checkpoint.labels, PairReader(checkpoint.settings, checkpoint.vocabulary)
        model = checkpoint.build()
        model.backend = backend
        self.model: nn.Module = model
        self.device = torch.device("cpu")
        if not checkpoint.settings.intra_attention:
            self.model = model.freeze(dtype)
        elif dtype != torch.float32:
            raise ValueError(f"a model with intra-sentence attention is not frozen: it has no {dtype}")

    @classmethod
    def load(cls, path: str | PathLike[str], **options: Any) -> Predictor:
        """From a folder that `coalign train` wrote, or a checkpoint's .json; errors as of `load_checkpoint`."""
        return cls(load_checkpoint(Path(path)), **options)

    def to(self, device: torch.device | str) -> Predictor:
        """The same, on a device."""
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    def __call__(self, premises: Sequence[str], hypotheses: Sequence[str]) -> Predictions:
        """What each pair of texts is, in their order. Sequences of any kind: lists, arrays, columns of a table.

        Raises:
            TypeError: what is no text. ValueError: not as many hypotheses as premises.
        """
        probabilities = self.probabilities(self.reader.batch(premises, hypotheses))
        return Predictions([self.labels[i] for i in probabilities.argmax(1).tolist()], probabilities)

    def probabilities(self, pairs: PairBatch) -> np.ndarray:
        """(pairs, classes) float32, each row adding up to 1.

        Raises:
            ValueError: the model's scores are not finite.
        """
        return self.normalised(self.scores(pairs))

    def scores(self, pairs: PairBatch) -> Tensor:
        """(pairs, classes) on the predictor's device, before they are `normalised`."""
        with torch.no_grad():
            found: Tensor = self.model(pairs.to(self.device))
        return found

    def normalised(self, scores: Tensor) -> np.ndarray:
        """Probabilities of the model's scores; as `probabilities` otherwise."""
        found: np.ndarray = scores.softmax(1).cpu().numpy()
        if not np.isfinite(found).all():
            raise ValueError(NOT_FINITE)
        return found
