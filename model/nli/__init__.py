"""Natural language inference: reading pairs of sentences, the vocabulary, batches."""

from .batches import Batch, batches
from .corpus import Corpus, Reading, load_corpus
from .packed_batches import LabelledPairs, PackedBatches
from .pairs import LABELS, Pair, PairFile, read_snli
from .rows import Columns, DataError, Row, read_rows
from .tokens import TOKENIZERS, tokenizer
from .vocabulary import Vocabulary

__all__ = [
    "LABELS",
    "TOKENIZERS",
    "Batch",
    "Columns",
    "Corpus",
    "DataError",
    "LabelledPairs",
    "PackedBatches",
    "Pair",
    "PairFile",
    "Reading",
    "Row",
    "Vocabulary",
    "batches",
    "load_corpus",
    "read_rows",
    "read_snli",
    "tokenizer",
]
