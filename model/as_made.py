"""What of a model is still as it was made: whoever computes around its layers' own calls looks here first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from .aggregate import Aggregate
from .attend import Attend
from .compare import Compare
from .mlp import FeedForward, has_own_parameters, is_hooked

if TYPE_CHECKING:
    from .decomposable_attention import DecomposableAttention


def exchanged(model: DecomposableAttention) -> str | None:
    """The name of a layer that was exchanged, has a hook, or whose weights are no longer its own parameters."""
    kinds: dict[str, type[nn.Module]] = {
        "embedding": nn.Embedding,
        "attend": Attend,
        "compare": Compare,
        "aggregate": Aggregate,
    }
    for name, kind in kinds.items():
        layer: nn.Module = getattr(model, name)
        if type(layer) is not kind or is_hooked(layer):
            return name
    if model.embedding.max_norm is not None or not has_own_parameters(model.embedding, "weight"):
        return "embedding"  # with a max_norm, looking a word up changes its vector
    projection, linear = model.projection, model.aggregate.linear
    if projection is not None and not (_is_linear(projection, "weight") and projection.bias is None):
        return "projection"
    networks = {"attend.f": model.attend.f, "compare.g": model.compare.g, "aggregate.h": model.aggregate.h}
    for name, network in networks.items():
        if type(network) is not FeedForward or is_hooked(network) or not network.is_unchanged():
            return name
    return None if _is_linear(linear, "weight", "bias") else "aggregate.linear"


def _is_linear(layer: nn.Module, *parameters: str) -> bool:
    return type(layer) is nn.Linear and not is_hooked(layer) and has_own_parameters(layer, *parameters)
