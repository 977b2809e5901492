"""Natural language inference: reading pairs of sentences, the vocabulary, batches."""

from .batches import Batch, batches
from .corpus import Corpus, Reading, load_corpus
from .packed_batches import LabelledPairs, PackedBatches
from .pairs import LABELS, Pair, PairFile, read_snli
from .rows import Columns, DataError, Row, read_rows
from .tokens import TOKENIZERS, tokenizer
from .vocabulary import Vocabulary
from .word_vectors import WordVectors, load_word_vectors

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
    "WordVectors",
    "batches",
    "load_corpus",
    "load_word_vectors",
    "read_rows",
    "read_snli",
    "tokenizer",
]
