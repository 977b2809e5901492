"""The Decomposable Attention model and its layers, in d2l's names."""

from .aggregate import Aggregate
from .attend import Attend
from .compare import Compare
from .decomposable_attention import DecomposableAttention
from .frozen import FrozenDecomposableAttention
from .intra_attention import IntraAttention
from .pair_batch import PairBatch

__all__ = [
    "Aggregate",
    "Attend",
    "Compare",
    "DecomposableAttention",
    "FrozenDecomposableAttention",
    "IntraAttention",
    "PairBatch",
]
