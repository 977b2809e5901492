"""The feed-forward network that d2l uses for f, g and h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.native import mlp as native
from ..kernels.transforms import forward_mode, transforming
from .dropout import Dropout, draw_seed, hashed_dropout, on_native


def mlp(num_inputs: int, num_hiddens: int, *, flatten: bool, dropout: float = 0.2) -> FeedForward:
    """Dropout, Linear, ReLU, twice; with flatten each followed by Flatten, as in d2l, whose names depend on it.

    Shapes: (*, num_inputs) to (*, num_hiddens). The linear layers are entries 1 and 4, or 1 and 5 with flatten.
    """
    layers: list[nn.Module] = []
    for width in (num_inputs, num_hiddens):
        layers += [Dropout(dropout), nn.Linear(width, num_hiddens), nn.ReLU()]
        if flatten:
            layers.append(nn.Flatten(start_dim=1))
    return FeedForward(*layers)


class FeedForward(nn.Sequential):
    """`mlp`'s layers. On the CPU they are one C++ kernel forward and one backward, in float32, under autocast to
    bfloat16, and, without gradients, in bfloat16; with them the same numbers are dropped there, for an activation may
    be made without them and made again with them (checkpointing). Everywhere else, and once a layer was exchanged or
    given a hook, they run one by one.

    backend: "reference" always runs them one by one.
    """

    backend: str | None = None

    def forward(self, input: Tensor, other: Tensor | None = None) -> Tensor:
        """input (*, d), or beside it other (*, d2) for the concatenation of the two -> (*, num_hiddens)."""
        p = self._fused(input, other)
        if p is None:
            result: Tensor = super().forward(input if other is None else torch.cat([input, other], dim=-1))
            return result
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else input.dtype
        x, x2 = _rows(input, dtype), None if other is None else _rows(other, dtype)
        w1, b1, w2, b2 = self._weights()
        seed = draw_seed() if p else 0
        y: Tensor
        if not _needs_grad((x, x2, w1, b1, w2, b2)):
            y = _forward((x, x2, w1, b1, w2, b2), p, seed, save=False)[0]
        elif w1.dtype == torch.float32:
            y = _Fused.apply(x, x2, w1, b1, w2, b2, p, seed)
        else:
            y = layer_by_layer(x, x2, w1, b1, w2, b2, p, seed)
        return y if input.ndim == 2 else y.reshape(*input.shape[:-1], y.shape[-1])

    def is_unchanged(self) -> bool:
        """Whether the layers are still those that `mlp` made, without hooks, and so are their weights and classes."""
        kinds = (Dropout, nn.Linear, nn.ReLU, nn.Flatten)[: len(self) // 2]
        layers: list[Any] = list(self._modules.values())
        return (
            [type(layer) for layer in layers] == [*kinds, *kinds]
            and not are_hooked(*layers)
            and not is_redefined(_CLASSES)
            and all(has_own_parameters(layer, "weight", "bias") for layer in self.linears())
        )

    def linears(self) -> tuple[nn.Linear, nn.Linear]:
        """Both linear layers, of an unchanged network. Attributes are slower to find, and so are entries."""
        layers: list[Any] = list(self._modules.values())
        return layers[1], layers[len(layers) // 2 + 1]

    def dropouts(self) -> tuple[Dropout, Dropout]:
        """The dropout before each of them."""
        layers: list[Any] = list(self._modules.values())
        return layers[0], layers[len(layers) // 2]

    def _weights(self) -> tuple[Tensor, ...]:
        """Of both linear layers, each with its bias."""
        found: Any = tuple(layer._parameters[name] for layer in self.linears() for name in ("weight", "bias"))
        return found

    def _fused(self, input: Tensor, other: Tensor | None) -> float | None:
        """The dropout's rate, 0 where it is off, if the layers can run as one, with gradients or without; else None."""
        if self.backend == "reference" or input.ndim < 2 or input.dtype not in (torch.float32, torch.bfloat16):
            return None
        if not self.is_unchanged():
            return None
        if len(self) == 8 and input.ndim != 2:  # it flattens
            return None
        rates = {layer.p if layer.training else 0.0 for layer in self.dropouts()}
        w1, b1, w2, b2 = weights = self._weights()
        if (
            len(rates) != 1
            or not w1.ndim == w2.ndim == 2
            or b1.shape != w1.shape[:1]
            or b2.shape != w2.shape[:1]
            or not _fit(input, other, weights)
            or (other is not None and other.shape[:-1] != input.shape[:-1])
            or input.shape[-1] + (0 if other is None else other.shape[-1]) != w1.shape[1]
            or w1.shape[0] != w2.shape[1]
            or not on_native(input, other, *weights)
        ):
            return None
        return float(rates.pop())


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(*, d) as (rows, d)."""
    return (x if x.ndim == 2 else x.reshape(-1, x.shape[-1])).to(dtype)


def _fit(input: Tensor, other: Tensor | None, weights: tuple[Tensor, ...]) -> bool:
    """Whether the kernel computes in these: float32; bfloat16; autocast from float32 to bfloat16."""
    if any(t.layout != torch.strided for t in weights):
        return False
    inputs = {t.dtype for t in (input, other) if t is not None}
    layers = {t.dtype for t in weights}
    if torch.is_autocast_enabled("cpu"):
        half = torch.get_autocast_dtype("cpu") == torch.bfloat16
        return half and layers == {torch.float32} and inputs <= {torch.float32, torch.bfloat16}
    return layers == inputs and len(inputs) == 1


def _needs_grad(tensors: tuple[Tensor | None, ...]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def are_hooked(*layers: nn.Module) -> bool:
    """Whether calling one of the layers does more than its class says."""
    if _has_any_global_hook():
        return True
    for layer in layers:
        if (
            layer._forward_hooks
            or layer._forward_pre_hooks
            or layer._backward_hooks
            or layer._backward_pre_hooks
            or "forward" in layer.__dict__
        ):
            return True
    return False


Forwards = tuple[tuple[type[nn.Module], Any], ...]


def forwards(*kinds: type[nn.Module]) -> Forwards:
    """Classes with what their instances compute, to be held against what they compute later."""
    return tuple((kind, kind.forward) for kind in kinds)


def is_redefined(classes: Forwards) -> bool:
    """Whether one of the classes has been given another forward since, as d2l's add_to_class does."""
    if torch.compiler.is_compiling():
        return False
    for kind, own in classes:  # noqa: SIM110 (quicker than the generator of any(), and each call asks)
        if kind.forward is not own:
            return True
    return False


_CLASSES = forwards(Dropout, nn.Linear, nn.ReLU, nn.Flatten)

# Absent from some future PyTorch, it leaves out hooks of all modules, which few have.
_has_any_global_hook = getattr(nn.modules.module, "_has_any_global_hook", lambda: False)


def has_own_parameters(layer: nn.Module, *names: str) -> bool:
    """Whether these are the layer's parameters: neither absent, nor tensors put in their place, nor computed ones."""
    return all(layer._parameters.get(name) is not None for name in names)


def _forward(operands: tuple[Any, ...], p: float, seed: int, save: bool) -> tuple[Tensor, Tensor]:
    x, x2, w1, b1, w2, b2 = _contiguous(operands)
    return native.forward(x, x2, w1, b1, w2, b2, p, seed, save)


def _contiguous(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(t if t is None else t.contiguous() for t in tensors)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *operands, p, seed = arguments
        y, hidden = _forward(tuple(operands), p, seed, save=True)
        ctx.save_for_backward(*operands, y, hidden)
        ctx.drawn = p, seed
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, x2, w1, b1, w2, b2, y, hidden = ctx.saved_tensors
        p, seed = ctx.drawn
        needed = ctx.needs_input_grad[:6]
        if torch.is_grad_enabled():  # create_graph=True: the gradient needs a gradient of its own
            return (*_differentiable_backward((x, x2, w1, b1, w2, b2), p, seed, grads[0], needed), None, None)
        if transforming() or forward_mode():  # what arrives is several gradients at once, or has tangents
            plain = _plain_backward((x, x2, w1, w2), y, hidden, p, seed, grads[0])
            return (*(t if n else None for t, n in zip(plain, needed, strict=True)), None, None)
        x, x2, w1, w2, y, hidden = _contiguous((x, x2, w1, w2, y, hidden))  # hooks may lay them out otherwise
        found = native.backward(grads[0], y, hidden, x, x2, w1, w2, p, seed, needed[0], needed[1])
        return (*(t if n else None for t, n in zip(found, needed, strict=True)), None, None)


def _plain_backward(
    operands: tuple[Tensor, Tensor | None, Tensor, Tensor], y: Tensor, hidden: Tensor, p: float, seed: int, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The same gradient from PyTorch's operators, for what transforms what arrives."""
    x, x2, w1, w2 = operands
    joined = hashed_dropout((x if x2 is None else torch.cat([x, x2], dim=-1)).float(), p, seed, native.FIRST)
    dz2 = grad.float() * (y > 0)
    dz1 = hashed_dropout(dz2 @ w2.to(x.dtype).float(), p, seed, native.SECOND) * (hidden > 0)
    dx = hashed_dropout(dz1 @ w1.to(x.dtype).float(), p, seed, native.FIRST).to(x.dtype)
    width = x.shape[1]
    dx2 = None if x2 is None else dx[:, width:].to(x2.dtype)
    return dx[:, :width], dx2, dz1.mT @ joined, dz1.sum(0), dz2.mT @ hidden.float(), dz2.sum(0)


def _differentiable_backward(
    operands: tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor],
    p: float,
    seed: int,
    grad: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """The same gradient through layers one by one, with the same numbers dropped; of aliases, for an input may have
    been made of another."""
    apart: Any = [t.view_as(t) if t is not None and n else t for t, n in zip(operands, needed, strict=True)]
    x, x2, w1, b1, w2, b2 = apart
    inputs = [t for t, n in zip(apart, needed, strict=True) if n and t is not None]
    found = iter(torch.autograd.grad(layer_by_layer(x, x2, w1, b1, w2, b2, p, seed), inputs, grad, create_graph=True))
    return tuple(next(found) if n else None for n in needed)


def layer_by_layer(
    x: Tensor, x2: Tensor | None, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, p: float, seed: int
) -> Tensor:
    """What the fused kernel computes, in PyTorch's operators, dropout with the seed's numbers."""
    joined = x if x2 is None else torch.cat([x, x2], dim=-1)
    w1, b1, w2, b2 = (t.to(joined.dtype) for t in (w1, b1, w2, b2))
    hidden = torch.relu(F.linear(hashed_dropout(joined, p, seed, native.FIRST), w1, b1))
    return torch.relu(F.linear(hashed_dropout(hidden, p, seed, native.SECOND), w2, b2))
