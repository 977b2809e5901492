"""Bidirectional soft alignment: the operator and its backends."""

if __name__ != "coalign.kernels":
    raise ImportError(
        f"this package was imported as {__name__!r}; import it as coalign.kernels "
        "(python was probably started in the project's own folder, on whose path it lies as a plain folder)"
    )

from .api import SoftAlignment, SoftAlignmentWithLse, explain, soft_align, soft_align_packed
from .dispatch import BACKENDS, BackendUnavailable
from .matches import Matches, dual_softmax_matches
from .one_way import soft_align_one_way
from .weights import AlignmentWeights, alignment_weights, dual_softmax

__all__ = [
    "BACKENDS",
    "AlignmentWeights",
    "BackendUnavailable",
    "Matches",
    "SoftAlignment",
    "SoftAlignmentWithLse",
    "alignment_weights",
    "dual_softmax",
    "dual_softmax_matches",
    "explain",
    "soft_align",
    "soft_align_one_way",
    "soft_align_packed",
]
