"""LightGlue's cross block (Lindenberger et al. 2023, section 3.1): the keypoints of two images attend to each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import soft_align
from ...kernels.checks import expand
from .heads import check_sequences, merge_heads, per_head, split_heads
from .masks import check_masks


class CrossBlock(nn.Module):
    """Stands for lightglue.CrossBlock, and loads its state dict: to_qk, to_v, to_out, ffn.0, ffn.1, ffn.3.

    Args:
        embed_dim: the width of descriptors; num_heads must divide it. flash is accepted and ignored.
        bias: whether the projections have one.
    """

    backend: str | None = None

    def __init__(self, embed_dim: int, num_heads: int, flash: bool = False, bias: bool = True):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"num_heads must divide embed_dim; they are {num_heads} and {embed_dim}")
        self.heads = num_heads
        self.scale = (embed_dim // num_heads) ** -0.5
        self.to_qk = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.to_v = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.to_out = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.ffn = nn.Sequential(
            nn.Linear(2 * embed_dim, 2 * embed_dim),
            nn.LayerNorm(2 * embed_dim),
            nn.GELU(),
            nn.Linear(2 * embed_dim, embed_dim),
        )

    # fmt: off
    def forward(
        self, x0: Tensor, x1: Tensor, mask: Tensor | None = None, *,
        mask0: Tensor | None = None, mask1: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        # fmt: on
        """x0 (batch, m, embed_dim), x1 (batch, n, embed_dim) -> both with the other's message added.

        Args:
            mask: bool, broadcasts to (batch, 1, m, n), as LightGlue has it; True is a pair of keypoints.
            mask0, mask1: (batch, m), (batch, n) bool: the same where mask is their outer product, and faster,
                for the kernels then skip what is padding.

        Raises:
            TypeError: mask is not bool, or a mask is no tensor; others as of `soft_align`.
            ValueError: mask was given together with mask0 or mask1, or does not broadcast; others as of `soft_align`.
        """
        if mask is not None and (mask0 is not None or mask1 is not None):
            raise ValueError("give mask, or mask0 and mask1, not both")
        check_sequences(x0=x0, x1=x1)
        check_masks(mask=mask, mask0=mask0, mask1=mask1)
        if mask is not None and mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True for a pair of keypoints, not {mask.dtype}")
        qk0, qk1 = split_heads(self.to_qk(x0), self.heads), split_heads(self.to_qk(x1), self.heads)
        v0, v1 = split_heads(self.to_v(x0), self.heads), split_heads(self.to_v(x1), self.heads)
        if mask is not None:
            expand("mask", mask, (*qk0.shape[:3], qk1.shape[2]), "(batch, heads, m, n)")
        bias = None if mask is None else torch.zeros_like(mask, dtype=qk0.dtype).masked_fill(~mask, -torch.inf)
        found = soft_align(
            qk0, qk1, v0, v1, mask_a=per_head(mask0), mask_b=per_head(mask1), scale=self.scale, bias=bias,
            backend=self.backend,
        )  # fmt: skip
        m0, m1 = self.to_out(merge_heads(found.beta)), self.to_out(merge_heads(found.alpha))
        return x0 + self.ffn(torch.cat([x0, m0], -1)), x1 + self.ffn(torch.cat([x1, m1], -1))
