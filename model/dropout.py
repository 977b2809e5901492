"""Dropout that costs the CPU little: torch's own draws one random number after another, on one thread."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.dispatch import requested
from ..kernels.native import mlp as native
from ..kernels.ops import unobserved
from ..kernels.transforms import forward_mode, overriding, transforming

DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, to be used like it.

    On the CPU, which numbers stay is a hash of their place and of one seed drawn from torch's generator in each call:
    so `torch.manual_seed` and checkpointing repeat it, and its backward pass needs no mask. (They are other numbers
    than torch's for the same seed.) On other devices, which do the same themselves, and where a compiler traces the
    model, it is torch's.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or self.inplace or not on_native(input) or input.dtype not in DTYPES:
            return super().forward(input)
        dropped: Tensor = HashedDropout.apply(input, self.p, draw_seed(), 0)
        return dropped


class HashedDropout(torch.autograd.Function):
    """Linear and symmetric: its gradient is itself, as often as one likes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: int, layer: int) -> Tensor:
        ctx.drawn = p, seed, layer
        return native.dropout(x, p, seed, layer)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return hashed_dropout(grads[0], *ctx.drawn), None, None, None


def hashed_dropout(x: Tensor, p: float, seed: int, layer: int) -> Tensor:
    """`HashedDropout`, also of what torch.func or a tangent stands for: products are known to them, Functions not."""
    if p == 0:
        return x
    if transforming() or forward_mode():
        return x * native.dropout(torch.ones(x.shape, dtype=x.dtype, device="cpu"), p, seed, layer)
    dropped: Tensor = HashedDropout.apply(x, p, seed, layer)
    return dropped


def draw_seed() -> int:
    """63 random bits from torch's generator of the CPU."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


def on_native(*tensors: Tensor | None) -> bool:
    """Whether C++ may compute with these: on the CPU, nothing tracing, differentiating forwards or changing PyTorch's
    functions, the reference not asked for."""
    return (
        unobserved(tensors)
        and not forward_mode()
        and not overriding()
        and all(t is None or t.device.type == "cpu" for t in tensors)
        and requested(None) in (None, "native")
        and native.available()
    )
