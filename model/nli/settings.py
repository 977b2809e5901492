"""What a training run is: its settings, and the presets d2l, parikh and parikh-intra."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..decomposable_attention import DecomposableAttention
from .corpus import Corpus, Reading
from .packed_batches import PackedBatches
from .pairs import LABELS
from .rows import Columns
from .vocabulary import Vocabulary

NULL = "<null>"  # Parikh et al. 2016, section 4: prepended to each sentence, so that a word may align with nothing


def _setting(default: Any, about: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": about, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """Every choice of a training run; the defaults are d2l's. The command line has an option for each.

    Raises:
        TypeError: naming a setting that is not of its default's type; whole numbers serve as floats.
        ValueError: naming a setting that is none of its choices or is out of range.
    """

    embed_size: int = _setting(100, "Width of a word's vector.")
    num_hiddens: int = _setting(200, "Width of f, g and h.")
    projection_size: int = _setting(0, "Width to which words' vectors are projected; 0: they are not.")
    intra_attention: bool = _setting(False, "Join each word with its own sentence's words first.")
    dropout: float = _setting(0.2, "Share left out before each linear layer of f, g and h.")
    train_embedding: bool = _setting(True, "Whether the words' vectors are trained.")
    missing: str = _setting("zeros", "What words get that the vectors' file lacks.", ("zeros", "hashed"))
    normalize: bool = _setting(False, "Scale the file's vectors to length 1.")
    null_token: bool = _setting(False, "Put a NULL token before each sentence.")
    min_freq: int = _setting(5, "Words that occur less often are <unk>.")
    lower: bool = _setting(False, "Lower-case the text.")
    tokens: str = _setting("whitespace", "How text becomes tokens.", ("whitespace", "words"))
    max_tokens: int = _setting(50, "Cut sentences after so many tokens; 0: don't cut.")
    optimizer: str = _setting("adam", "Which optimiser.", ("adam", "adagrad"))
    learning_rate: float = _setting(1e-3, "The optimiser's.")
    batch_size: int = _setting(256, "Pairs a step, on all devices together.")
    epochs: int = _setting(4, "How often to go through the training pairs.")
    bucketed: bool = _setting(False, "Batch pairs of like length together.")
    precision: str = _setting("float32", "bfloat16: under autocast.", ("float32", "bfloat16"))
    seed: int = _setting(0, "Of parameters, order and dropout.")

    def __post_init__(self) -> None:
        for own in fields(self):
            value, choices, kind = getattr(self, own.name), own.metadata["choices"], type(own.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise TypeError(f"{own.name} must be of type {kind.__name__}, not {type(value).__name__}")
            if choices and value not in choices:
                raise ValueError(f"{own.name} must be one of {', '.join(choices)}, not {value!r}")
            if isinstance(value, int) and value >= 2**31 and own.name != "seed":
                raise ValueError(f"{own.name} must be below 2^31, not {value}")
        for name in ("embed_size", "num_hiddens", "batch_size", "epochs", "min_freq"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("projection_size", "max_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie between 0 and 2^63 - 1, not {self.seed}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive and finite, not {self.learning_rate}")

    def reading(self, columns: Columns | None = None, labels: tuple[str, ...] = LABELS) -> Reading:
        """How these settings have a file read."""
        return Reading(columns or Columns(), labels, self.lower, self.tokens)

    def vocabulary(self, corpus: Corpus) -> Vocabulary:
        """The vocabulary of the training pairs."""
        return corpus.vocabulary(self.min_freq, (NULL,) if self.null_token else ())

    def null_id(self, vocabulary: Vocabulary) -> int | None:
        """NULL's id; None where there is no NULL. Raises ValueError: the vocabulary lacks it."""
        if not self.null_token:
            return None
        if NULL not in vocabulary:
            raise ValueError(f"null_token needs a vocabulary with {NULL}, which Settings.vocabulary makes")
        return vocabulary[NULL]

    def batches(self, corpus: Corpus, vocabulary: Vocabulary, *, training: bool) -> PackedBatches:
        """A corpus in batches: shuffled for training, in order otherwise."""
        return PackedBatches(
            corpus,
            vocabulary,
            self.batch_size,
            shuffle=training,
            bucketed=self.bucketed and training,
            seed=self.seed,
            max_tokens=self.max_tokens or None,
            first_token=self.null_id(vocabulary),
        )

    def model(self, vocabulary_size: int, num_classes: int = 3, vectors: Tensor | None = None) -> DecomposableAttention:
        """A new model, its parameters drawn from torch's generator; vectors: (words, embed_size) to begin with.

        Raises:
            ValueError: vectors of another shape.
        """
        made = DecomposableAttention.from_sizes(
            vocabulary_size,
            self.embed_size,
            self.num_hiddens,
            num_classes=num_classes,
            projection_size=self.projection_size or None,
            intra_attention=self.intra_attention,
            padding_idx=1,
            dropout=self.dropout,
        )
        if vectors is not None:
            if vectors.shape != made.embedding.weight.shape:
                raise ValueError(
                    f"the vectors must be {tuple(made.embedding.weight.shape)}, (words, embed_size), "
                    f"not {tuple(vectors.shape)}"
                )
            with torch.no_grad():
                made.embedding.weight.copy_(vectors)
        made.embedding.weight.requires_grad_(self.train_embedding)
        return made

    def make_optimizer(self, model: DecomposableAttention) -> torch.optim.Optimizer:
        """The optimiser of the parameters that are trained; Adagrad's sums of squares begin at 0.1."""
        trained = [p for p in model.parameters() if p.requires_grad]
        if self.optimizer == "adagrad":
            return torch.optim.Adagrad(trained, self.learning_rate, initial_accumulator_value=0.1)
        return torch.optim.Adam(trained, self.learning_rate, fused=True)


# Parikh et al. 2016, section 4, without intra-sentence attention. The paper counts steps; the epochs are not its
_PARIKH = Settings(
    embed_size=300,
    projection_size=200,
    train_embedding=False,
    missing="hashed",
    normalize=True,
    null_token=True,
    min_freq=1,
    max_tokens=0,
    optimizer="adagrad",
    learning_rate=0.05,
    batch_size=4,
    epochs=50,
)

PRESETS = {
    # d2l, "Natural Language Inference: Using Attention", with the book's 100-dimensional GloVe vectors
    "d2l": Settings(),
    "parikh": _PARIKH,
    "parikh-intra": replace(_PARIKH, intra_attention=True, learning_rate=0.025),
}
