"""Inference on the CPU without gradients: the frozen model's kernel on a table of the batch's own words.

A batch has far fewer words than tokens: of 6,300 tokens in 256 SNLI-like pairs 2,300 differ. What depends on one word
alone (see frozen.py) is computed for these, in every call, for parameters may change between calls without a sign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..kernels.dispatch import requested
from ..kernels.native import frozen, inference
from ..kernels.ops import unobserved
from ..kernels.transforms import forward_mode, overriding
from .as_made import NETWORKS, exchanged
from .frozen import check_extents
from .ids import check_ids
from .pair_batch import PairBatch

if TYPE_CHECKING:
    from .decomposable_attention import DecomposableAttention


def scores(model: DecomposableAttention, X: PairBatch) -> Tensor | None:
    """The model's scores of pairs on the CPU, (pairs, classes), in the parameters' dtype.

    None where the model, as it is now, needs another way: gradients, dropout, layers of other kinds or sizes,
    intra-sentence attention, with which words' vectors depend on their sentences.

    Raises:
        IndexError: a token id outside the vocabulary. ValueError: offsets that are none.
    """
    inside: dict[str, Any] = model._modules
    if inside.get("intra_attention") is not None or exchanged(model) is not None:
        return None
    if requested(model.backend) not in (None, frozen.NAME) or torch.is_autocast_enabled("cpu"):
        return None
    if forward_mode() or overriding():
        return None
    networks = [inside[part]._modules[name] for part, name in NETWORKS]
    if any(dropout.training and dropout.p for network in networks for dropout in network.dropouts()):
        return None
    linears = [linear for network in networks for linear in network.linears()]
    linears.append(inside["aggregate"]._modules["linear"])
    first = [layer for layer in (inside["embedding"], inside.get("projection")) if layer is not None]
    embedding = first[0].weight
    parameters = [p for layer in (*first, *linears) for p in layer._parameters.values() if p is not None]
    if not unobserved(tuple(parameters)) or any(p.layout != torch.strided for p in parameters):
        return None
    if any(p.dtype != embedding.dtype or p.device != embedding.device for p in parameters):
        return None
    if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
        return None
    if embedding.ndim != 2 or not embedding.is_contiguous() or frozen.unsupported(embedding):
        return None
    projection = first[1].weight if len(first) > 1 else None
    found, status = inference.scores(embedding, projection, (X.ids_a, X.ids_b), (X.offsets_a, X.offsets_b), linears)
    if status == frozen.BAD_SIZES:
        return None
    if status == frozen.BAD_IDS:
        check_ids("premises", X.ids_a, len(embedding), ndim=1)
        check_ids("hypotheses", X.ids_b, len(embedding), ndim=1)
    check_extents(status, X.ids_a, X.ids_b)
    return found.to(embedding.dtype)
