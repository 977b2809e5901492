"""Why a model says what it says of a pair: the alignment both ways, and each word's part in the answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checkpoint import NOT_FINITE, Checkpoint
from .pair_reader import PairReader

MOST_WORDS = 100  # of a sentence, in what is made to be looked at


@dataclass(frozen=True, eq=False)
class Explanation:
    """An answer and what led to it.

    Attributes:
        premise, hypothesis: the words as the model reads them. unknown: those of them that its vocabulary lacks.
        cut_a, cut_b: how many words of the premise's and the hypothesis' end it does not read, as its settings say.
        p: (m, n), each premise word's weights over the hypothesis: rows sum to 1.
        q: (m, n), each hypothesis word's weights over the premise: columns sum to 1.
        label: the predicted class. probabilities: each class's, by name.
        contributions_a, contributions_b: (m,), (n,): by how many nats the log-odds of the predicted class,
            log P(label) - log(1 - P(label)), would fall if the word's compare vector (Parikh et al. 2016, equation 3)
            were left out of its sentence's sum. Positive: the word speaks for the class. All other words' vectors
            stay as they are, aligned with this word still; and since the classifier behind the sums is not linear,
            contributions do not add up to the log-odds.
    """

    premise: list[str]
    hypothesis: list[str]
    unknown: list[str]
    cut_a: int
    cut_b: int
    p: Tensor
    q: Tensor
    label: str
    probabilities: dict[str, float]
    contributions_a: Tensor
    contributions_b: Tensor


@torch.no_grad()
def explain_pair(checkpoint: Checkpoint, premise: str, hypothesis: str, *, backend: str | None = None) -> Explanation:
    """Explain the answer of a trained model to two texts, read as its settings say, on the CPU.

    Raises:
        TypeError: what is no text.
        ValueError: a text without words, or with more than 100 of them left where the settings cut it; a model of one
            class, or one whose scores are not finite.
    """
    if len(checkpoint.labels) < 2:
        raise ValueError("the model has one class only: there is nothing to explain")
    for name, text in (("premise", premise), ("hypothesis", hypothesis)):
        if not isinstance(text, str):
            raise TypeError(f"the {name} must be a text, not {type(text).__name__}")
    reader = PairReader(checkpoint.settings, checkpoint.vocabulary)
    words_a, words_b = reader.words(premise), reader.words(hypothesis)
    for name, words in (("premise", words_a), ("hypothesis", words_b)):
        if not 0 < len(words) <= MOST_WORDS:
            raise ValueError(f"the {name} must have 1 to {MOST_WORDS} words to be looked at, not {len(words)}")
    model = checkpoint.build()
    model.backend = backend
    batch = reader.batch([premise], [hypothesis])
    ids = batch.ids_a[None], batch.ids_b[None]
    lengths = batch.lengths_a, batch.lengths_b
    p, q = model.alignment(ids, lengths=lengths)
    (v_a,), (v_b,) = model.compared(ids, lengths=lengths)
    sum_a, sum_b = v_a.sum(0), v_b.sum(0)
    whole = torch.stack([sum_a]), torch.stack([sum_b])
    without_a = sum_a - v_a, sum_b.expand(len(words_a), -1)
    without_b = sum_a.expand(len(words_b), -1), sum_b - v_b
    sides = (torch.cat(side) for side in zip(whole, without_a, without_b, strict=True))
    scores = model.aggregate(*sides).double()
    if not scores.isfinite().all():
        raise ValueError(NOT_FINITE)
    place = int(scores[0].argmax())
    others = [i for i in range(len(checkpoint.labels)) if i != place]
    log_odds = scores[:, place] - scores[:, others].logsumexp(1)
    contributions = (log_odds[0] - log_odds[1:]).float()
    return Explanation(
        words_a,
        words_b,
        [word for word in dict.fromkeys([*words_a, *words_b]) if word not in checkpoint.vocabulary],
        reader.cut(premise),
        reader.cut(hypothesis),
        p[0],
        q[0],
        checkpoint.labels[place],
        dict(zip(checkpoint.labels, scores[0].softmax(0).tolist(), strict=True)),
        contributions[: len(words_a)],
        contributions[len(words_a) :],
    )
