"""Natural language inference: reading pairs of sentences, the vocabulary, batches."""

from .batches import Batch, batches
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .corpus import Corpus, Reading, load_corpus
from .evaluation import Evaluation, evaluate
from .packed_batches import LabelledPairs, PackedBatches
from .pairs import LABELS, Pair, PairFile, read_snli
from .ranks import Ranks
from .rows import Columns, DataError, Row, read_rows
from .settings import PRESETS, Settings
from .tokens import TOKENIZERS, tokenizer
from .training import Training, TrainingError
from .vocabulary import Vocabulary
from .word_vectors import WordVectors, load_word_vectors

__all__ = [
    "LABELS",
    "PRESETS",
    "TOKENIZERS",
    "Batch",
    "Checkpoint",
    "Columns",
    "Corpus",
    "DataError",
    "Evaluation",
    "LabelledPairs",
    "PackedBatches",
    "Pair",
    "PairFile",
    "Ranks",
    "Reading",
    "Row",
    "Settings",
    "Training",
    "TrainingError",
    "Vocabulary",
    "WordVectors",
    "batches",
    "evaluate",
    "load_checkpoint",
    "load_corpus",
    "load_word_vectors",
    "read_rows",
    "read_snli",
    "save_checkpoint",
    "tokenizer",
]
