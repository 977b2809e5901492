"""Natural language inference: reading pairs of sentences, the vocabulary, batches."""

from .batches import Batch, batches
from .pairs import LABELS, DataError, Pair, PairFile, read_snli
from .vocabulary import Vocabulary

__all__ = ["LABELS", "Batch", "DataError", "Pair", "PairFile", "Vocabulary", "batches", "read_snli"]
