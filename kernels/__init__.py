"""Bidirectional soft alignment: the operator and its backends."""

if __name__ == "kernels":
    raise ImportError(
        "this package was imported as 'kernels'; import it as coalign.kernels "
        "(python was probably started in the project's own folder, on whose path it lies as a plain folder)"
    )

from .api import SoftAlignment, SoftAlignmentWithLse, explain, soft_align, soft_align_packed
from .decompositions import decompositions
from .dispatch import BackendUnavailable
from .flops import flop_formulas
from .matches import Matches, dual_softmax_matches
from .names import BACKENDS
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
    "decompositions",
    "dual_softmax",
    "dual_softmax_matches",
    "explain",
    "flop_formulas",
    "soft_align",
    "soft_align_one_way",
    "soft_align_packed",
]
