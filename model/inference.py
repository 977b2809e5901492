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
from torch import Tensor, nn

from ..kernels.dispatch import requested
from ..kernels.native import frozen as native
from ..kernels.transforms import forward_mode
from .as_made import exchanged
from .dropout import Dropout
from .frozen import check_extents, later_layers, word_table
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
    if forward_mode() or exchanged(model) is not None or not _sizes_fit(model):
        return True
    networks: list[Any] = [model.attend.f, model.compare.g, model.aggregate.h]
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


def _sizes_fit(model: DecomposableAttention) -> bool:
    """Whether the layers have the sizes that the kernel takes them to have."""
    networks: list[Any] = [model.attend.f, model.compare.g, model.aggregate.h]
    linears = [layer for network in networks for layer in network if isinstance(layer, nn.Linear)]
    linears.append(model.aggregate.linear)
    embed_size = width = model.embedding.weight.shape[1]
    if model.projection is not None:
        width = model.projection.weight.shape[0]
        if model.projection.weight.shape[1] != embed_size:
            return False
    hidden, h = linears[0].weight.shape[0], linears[2].weight.shape[0]
    sizes = [(hidden, width), (h, hidden), (h, 2 * width), (h, h), (h, 2 * h), (h, h), (len(linears[-1].weight), h)]
    return all(
        layer.weight.shape == size and layer.bias.shape == size[:1] for layer, size in zip(linears, sizes, strict=True)
    )


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
        model.aggregate.linear.weight.shape[0],
    )
    check_extents(status, X.ids_a, X.ids_b)
    return found.to(vectors.dtype)
