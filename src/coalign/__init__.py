"""coalign: fast bidirectional soft alignment, and the Decomposable Attention model built on it."""

from ._version import __version__
from .kernels import (
    BACKENDS,
    AlignmentWeights,
    BackendUnavailable,
    Matches,
    SoftAlignment,
    SoftAlignmentWithLse,
    alignment_weights,
    decompositions,
    dual_softmax,
    dual_softmax_matches,
    explain,
    soft_align,
    soft_align_one_way,
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
    "AlignmentWeights",
    "Attend",
    "BackendUnavailable",
    "Compare",
    "DecomposableAttention",
    "FrozenDecomposableAttention",
    "IntraAttention",
    "Matches",
    "PairBatch",
    "SoftAlignment",
    "SoftAlignmentWithLse",
    "__version__",
    "alignment_weights",
    "decompositions",
    "dual_softmax",
    "dual_softmax_matches",
    "explain",
    "soft_align",
    "soft_align_one_way",
    "soft_align_packed",
]
