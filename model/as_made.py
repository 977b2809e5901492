"""What of a model is still as it was made: whoever computes around its layers' own calls looks here first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from .aggregate import Aggregate
from .attend import Attend
from .compare import Compare
from .mlp import FeedForward, are_hooked, forwards, has_own_parameters, is_redefined

if TYPE_CHECKING:
    from .decomposable_attention import DecomposableAttention


NETWORKS = (("attend", "f"), ("compare", "g"), ("aggregate", "h"))
_KINDS: dict[str, type[nn.Module]] = {
    "embedding": nn.Embedding,
    "attend": Attend,
    "compare": Compare,
    "aggregate": Aggregate,
}
_FORWARDS = {name: forwards(kind) for name, kind in _KINDS.items()}


def exchanged(model: DecomposableAttention) -> str | None:
    """The name of a layer that was exchanged, has a hook, whose class was given another forward, or whose weights are
    no longer its own parameters."""
    inside: dict[str, Any] = model._modules  # a module takes ten times as long to find a layer by its attribute
    for name, kind in _KINDS.items():
        if type(inside.get(name)) is not kind or are_hooked(inside[name]) or is_redefined(_FORWARDS[name]):
            return name
    embedding, projection = inside["embedding"], inside.get("projection")
    if embedding.max_norm is not None or not has_own_parameters(embedding, "weight"):
        return "embedding"  # with a max_norm, looking a word up changes its vector
    if projection is not None and not (_is_linear(projection, "weight") and projection.bias is None):
        return "projection"
    for part, name in NETWORKS:
        if not is_as_made(inside[part]._modules.get(name)):
            return f"{part}.{name}"
    return None if _is_linear(inside["aggregate"]._modules.get("linear"), "weight", "bias") else "aggregate.linear"


def is_as_made(network: nn.Module | None) -> bool:
    """Whether a network is one of ours, unchanged and without hooks."""
    return type(network) is FeedForward and not are_hooked(network) and network.is_unchanged()


def _is_linear(layer: nn.Module | None, *parameters: str) -> bool:
    return type(layer) is nn.Linear and not are_hooked(layer) and has_own_parameters(layer, *parameters)
