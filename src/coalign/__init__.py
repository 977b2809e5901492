"""coalign: fast bidirectional soft alignment, and the Decomposable Attention model built on it."""

from ._version import __version__
from .kernels import (
    BACKENDS,
    BackendUnavailable,
    SoftAlignment,
    SoftAlignmentWithLse,
    explain,
    soft_align,
    soft_align_packed,
)
from .model import (
    Aggregate,
    Attend,
    Compare,
    DecomposableAttention,
    FrozenDecomposableAttention,
    IntraAttention,
    PairBatch,
)

__all__ = [
    "BACKENDS",
    "Aggregate",
    "Attend",
    "BackendUnavailable",
    "Compare",
    "DecomposableAttention",
    "FrozenDecomposableAttention",
    "IntraAttention",
    "PairBatch",
    "SoftAlignment",
    "SoftAlignmentWithLse",
    "__version__",
    "explain",
    "soft_align",
    "soft_align_packed",
]
