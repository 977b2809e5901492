"""Layers of other projects on the fused operator: same state dict, same formula."""

from .allennlp import AllenNlpDecomposableAttention
from .bidirectional_cross_attention import BidirectionalCrossAttention
from .esim import LocalInference, SoftmaxAttention
from .graph_matching import CrossGraphAttention
from .grounding_dino import BiMultiHeadAttention
from .lightglue import CrossBlock

__all__ = [
    "AllenNlpDecomposableAttention",
    "BiMultiHeadAttention",
    "BidirectionalCrossAttention",
    "CrossBlock",
    "CrossGraphAttention",
    "LocalInference",
    "SoftmaxAttention",
]
