"""How well a model classifies: accuracy, each class, the confusion matrix, by length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .packed_batches import LabelledPairs
from .ranks import ALONE, Ranks

LENGTH_BOUNDS = (10, 15, 20, 25, 30, 40)  # tokens of premise and hypothesis together


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        pairs: how many. loss: mean cross-entropy, in nats. accuracy: the share that is right.
        confusion: [true class][predicted class], pairs.
        classes: for each class by name its precision, recall, f1 and number of pairs; 0 where there is nothing to
            divide by.
        by_length: pairs and accuracy for ranges of tokens, premise and hypothesis together; empty ranges left out.
    """

    pairs: int
    loss: float
    accuracy: float
    confusion: list[list[int]]
    classes: dict[str, dict[str, float]]
    by_length: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name, plain data that JSON can hold."""
        return asdict(self)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards each of its layers is in the mode it was in before."""
    before = [(layer, layer.training) for layer in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for layer, training in before:
            layer.training = training


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[LabelledPairs],
    label_names: tuple[str, ...],
    *,
    device: torch.device | str = "cpu",
    autocast: AbstractContextManager[object] | None = None,
    progress: Callable[[int], None] = lambda pairs: None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Run a model, in evaluation mode, over batches; afterwards its layers are in the modes they were in before.

    ranks: where several processes evaluate, each on batches of its own, all get what was found in all of them.

    Raises:
        ValueError: there is no batch.
    """
    classes = len(label_names)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    ranges = torch.tensor(LENGTH_BOUNDS, dtype=torch.int32, device="cpu")
    by_length = torch.zeros(2, len(LENGTH_BOUNDS) + 1, dtype=torch.int64, device="cpu")
    loss = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(model):
        for batch in batches:
            pairs, labels, _ = batch.to(device)
            with autocast or nullcontext():
                scores = model(pairs).float()
            loss += nn.functional.cross_entropy(scores, labels, reduction="sum").double()
            predicted = scores.argmax(1)
            confusion += torch.bincount(labels * classes + predicted, minlength=classes * classes)
            place = torch.bucketize(pairs.lengths_a + pairs.lengths_b, ranges)
            by_length[0] += torch.bincount(place, minlength=by_length.shape[1])
            by_length[1] += torch.bincount(place[(predicted == labels).cpu()], minlength=by_length.shape[1])
            progress(len(pairs))
    for counted in (confusion, by_length, loss):
        ranks.total(counted)
    matrix = confusion.reshape(classes, classes).cpu()
    total = int(matrix.sum())
    if total == 0:
        raise ValueError("there are no pairs to evaluate")
    return Evaluation(
        pairs=total,
        loss=float(loss) / total,
        accuracy=int(matrix.trace()) / total,
        confusion=matrix.tolist(),
        classes={name: _class(matrix, i) for i, name in enumerate(label_names)},
        by_length=_lengths(by_length),
    )


def _class(matrix: Tensor, i: int) -> dict[str, float]:
    right, true, predicted = int(matrix[i, i]), int(matrix[i].sum()), int(matrix[:, i].sum())
    return {
        "precision": right / max(predicted, 1),
        "recall": right / max(true, 1),
        "f1": 2 * right / max(true + predicted, 1),
        "pairs": true,
    }


def _lengths(counts: Tensor) -> dict[str, dict[str, float]]:
    lower = [0, *(bound + 1 for bound in LENGTH_BOUNDS)]
    names = [f"{a}-{b}" for a, b in zip(lower, LENGTH_BOUNDS, strict=False)] + [f"{lower[-1]}+"]
    rows = zip(names, *counts.tolist(), strict=True)
    return {name: {"pairs": pairs, "accuracy": right / pairs} for name, pairs, right in rows if pairs}
