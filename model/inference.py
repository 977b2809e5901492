"""Inference on the CPU without gradients: the frozen model's kernel on a table of the batch's own words.

A batch has far fewer words than tokens: of 6,300 tokens in 256 SNLI-like pairs 2,300 differ. What depends on one word
alone (see frozen.py) is computed for these, in every call, for parameters may change between calls without a sign.
With u words and t tokens of d2l's sizes that is 2 (100,000 u + 40,000 t) operations for f and g, against 280,000 t
token by token.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..kernels.dispatch import requested
from ..kernels.native import frozen as native
from .dropout import Dropout
from .frozen import check_extents, later_layers, word_table
from .mlp import FeedForward
from .pair_batch import PairBatch

if TYPE_CHECKING:
    from .decomposable_attention import DecomposableAttention


def unsupported(model: DecomposableAttention) -> bool:
    """Whether scores of this model, as it is now, need another way: gradients, dropout, exchanged layers.

    With intra-sentence attention words' vectors depend on their sentences.
    """
    if model.intra_attention is not None:
        return True
    if requested(model.backend) not in (None, native.NAME) or torch.is_autocast_enabled("cpu"):
        return True
    networks: list[Any] = [model.attend.f, model.compare.g, model.aggregate.h]
    if not all(isinstance(network, FeedForward) and network.is_unchanged() for network in networks):
        return True
    weight, differentiable = model.embedding.weight, torch.is_grad_enabled()
    for layer in (model.embedding, model.projection, *chain.from_iterable(networks), model.aggregate.linear):
        if isinstance(layer, Dropout) and layer.training and layer.p:
            return True
        for p in layer._parameters.values() if layer is not None else ():  # parameters() takes as long as a small call
            if p is None:
                continue
            if p.dtype != weight.dtype or p.device != weight.device or (differentiable and p.requires_grad):
                return True
    return bool(native.unsupported(weight))


@torch.no_grad()
def scores(model: DecomposableAttention, X: PairBatch) -> Tensor:
    """The model's scores of checked pairs, (pairs, classes), in the parameters' dtype."""
    words, places = torch.unique(torch.cat([X.ids_a, X.ids_b]), return_inverse=True)
    vectors = model.embedding.weight[words]
    if model.projection is not None:
        vectors = model.projection(vectors)
    first: Any = model.compare.g[1]
    a, b = places.split([X.ids_a.shape[0], X.ids_b.shape[0]])
    found, status = native.scores(
        word_table(vectors, model.attend.f, first),
        a,
        b,
        X.offsets_a.contiguous(),
        X.offsets_b.contiguous(),
        [native.pack(layer.weight, layer.bias) for layer in later_layers(model)],
        model.aggregate.linear.out_features,
    )
    check_extents(status, X.ids_a, X.ids_b)
    return found.to(vectors.dtype)
