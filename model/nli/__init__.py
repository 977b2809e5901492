"""Natural language inference: reading pairs of sentences, the vocabulary, batches."""

from .batches import Batch, batches
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .corpus import Corpus, Reading, load_corpus
from .evaluation import Evaluation, evaluate
from .explanation import Explanation, explain_pair
from .packed_batches import LabelledPairs, PackedBatches
from .pair_reader import PairReader
from .pairs import LABELS, Pair, PairFile, read_snli
from .prediction import Predictions, Predictor, predict_snli
from .prediction_stream import JsonPairs, Reached, predict_lines, record
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
    "Explanation",
    "JsonPairs",
    "LabelledPairs",
    "PackedBatches",
    "Pair",
    "PairFile",
    "PairReader",
    "Predictions",
    "Predictor",
    "Ranks",
    "Reached",
    "Reading",
    "Row",
    "Settings",
    "Training",
    "TrainingError",
    "Vocabulary",
    "WordVectors",
    "batches",
    "evaluate",
    "explain_pair",
    "load_checkpoint",
    "load_corpus",
    "load_word_vectors",
    "predict_lines",
    "predict_snli",
    "read_rows",
    "read_snli",
    "record",
    "save_checkpoint",
    "tokenizer",
]
